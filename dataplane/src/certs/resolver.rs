//! Choosing the certificate for a handshake, and replacing the whole set while handshakes go on.

use std::cmp::Reverse;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{Certificate, HostName, Source, name};
use crate::fault::OperatorFault;

/// Presents the right certificate for a server name, the meta certificate last in its chain.
#[derive(Debug)]
pub struct Resolver {
    source: Source,
    hostname: Option<HostName>,
    meta: CertificateDer<'static>,
    /// From `source`.
    own: RwLock<Arc<Set>>,
    /// From control; in the place of the own ones where there are some.
    steered: RwLock<Option<Arc<Set>>>,
}

/// Certificates to present, the default first. Put in force whole or not at all, never empty.
#[derive(Debug)]
pub struct Set {
    presented: Vec<Presented>,
    /// Whether they were made for this relay by who vouches for them.
    vouched: bool,
}

#[derive(Debug)]
struct Presented {
    certificate: Certificate,
    with_meta: Arc<CertifiedKey>,
}

impl Resolver {
    /// A resolver over `source` as it is at `now`. `hostname` is the relay's name if the operator
    /// gave one; a certificate must then be for it.
    ///
    /// # Errors
    /// When a certificate cannot be loaded, see [`Source::load`].
    pub fn new(
        source: Source,
        hostname: Option<HostName>,
        meta: CertificateDer<'static>,
        now: SystemTime,
    ) -> Result<Self, OperatorFault> {
        let vouched = source != Source::SelfSigned;
        let set = Set::new(source.load(hostname.as_ref(), now)?, vouched, &meta)?;
        let own = RwLock::new(Arc::new(set));
        Ok(Self { source, hostname, meta, own, steered: RwLock::default() })
    }

    /// Loads the certificates again. A self-signed one stays as it is, because maps pin it; then
    /// this is false.
    ///
    /// # Errors
    /// When a certificate cannot be loaded; the old ones then stay in force.
    pub fn reload(&self, now: SystemTime) -> Result<bool, OperatorFault> {
        if self.source == Source::SelfSigned {
            return Ok(false);
        }
        let set = Set::new(self.source.load(self.hostname.as_ref(), now)?, true, &self.meta)?;
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
        Ok(true)
    }

    /// What [`Resolver::steer`] takes: `certificates` as control has them, those that last longest
    /// first. `None` for none, or where none is for the relay's name: control gives every relay the
    /// same, and another's are no fault.
    ///
    /// # Errors
    /// Never for certificates that fit their keys.
    pub fn prepare(
        &self,
        mut certificates: Vec<Certificate>,
    ) -> Result<Option<Arc<Set>>, OperatorFault> {
        if certificates.is_empty() {
            return Ok(None);
        }
        if let Err(fault) = super::check_hostname(&certificates, self.hostname.as_ref()) {
            tracing::warn!(%fault, "control's certificates are not used, the own ones stay");
            return Ok(None);
        }
        certificates.sort_by_key(|certificate| Reverse(certificate.expiry_unix_s()));
        Ok(Some(Arc::new(Set::new(certificates, true, &self.meta)?)))
    }

    /// Presents `set` from now on, or the own certificates again.
    pub fn steer(&self, set: Option<Arc<Set>>) {
        *self.steered.write().unwrap_or_else(PoisonError::into_inner) = set;
    }

    /// The pin of the default certificate for a DERP map, if it is self-made or for an IP address:
    /// no public authority vouches for those.
    #[must_use]
    pub fn pin(&self) -> Option<String> {
        let set = self.set();
        let unvouched =
            !set.vouched || self.hostname.as_ref().is_some_and(|name| name.ip().is_some());
        unvouched.then(|| set.default().certificate.pin()).flatten()
    }

    /// The earliest expiry of a certificate in force, in seconds since 1970.
    #[must_use]
    pub fn expiry_unix_s(&self) -> i64 {
        let set = self.set();
        set.presented
            .iter()
            .map(|presented| presented.certificate.expiry_unix_s())
            .min()
            .unwrap_or_default()
    }

    /// Names of every certificate in force.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.set()
            .presented
            .iter()
            .flat_map(|presented| presented.certificate.names().to_vec())
            .collect()
    }

    /// The chain to present to a client that asks for `name` and can check `suits`.
    ///
    /// Without a name, the default. With certificate files an unknown name gets nothing and its
    /// handshake fails, as derper does it, unless the relay is known by an IP address.
    fn choose(
        &self,
        name: Option<&str>,
        suits: impl Fn(&CertifiedKey) -> bool,
    ) -> Option<Arc<CertifiedKey>> {
        let set = self.set();
        let for_name = |presented: &&Presented| {
            name.is_some_and(|name| {
                presented.certificate.names().iter().any(|pattern| name::stands_for(pattern, name))
            })
        };
        let mut matching = set.presented.iter().filter(for_name).peekable();
        let presented = match matching.peek().copied() {
            Some(first) => matching.find(|presented| suits(&presented.with_meta)).unwrap_or(first),
            None if name.is_none() || !self.insists_on_names(&set) => set
                .presented
                .iter()
                .find(|presented| suits(&presented.with_meta))
                .unwrap_or_else(|| set.default()),
            None => return None,
        };
        Some(Arc::clone(&presented.with_meta))
    }

    fn insists_on_names(&self, set: &Set) -> bool {
        set.vouched && self.hostname.as_ref().is_none_or(|name| name.ip().is_none())
    }

    fn set(&self) -> Arc<Set> {
        let steered = self.steered.read().unwrap_or_else(PoisonError::into_inner).clone();
        steered
            .unwrap_or_else(|| Arc::clone(&self.own.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        self.choose(hello.server_name(), |pair| pair.key.choose_scheme(schemes).is_some())
    }
}

impl Set {
    fn new(
        certificates: Vec<Certificate>,
        vouched: bool,
        meta: &CertificateDer<'static>,
    ) -> Result<Self, OperatorFault> {
        if certificates.is_empty() {
            return Err(OperatorFault::config(
                "cert: names no certificate; give one or leave it out for a self-signed one",
            ));
        }
        let present = |certificate: Certificate| {
            let chain = certificate.chain.iter().chain([meta]).cloned().collect();
            let with_meta = Arc::new(CertifiedKey::new(chain, Arc::clone(&certificate.key)));
            Presented { certificate, with_meta }
        };
        Ok(Self { presented: certificates.into_iter().map(present).collect(), vouched })
    }

    fn default(&self) -> &Presented {
        &self.presented[0]
    }
}

#[cfg(test)]
mod tests;
