//! Choosing the certificate for a handshake, and replacing the whole set while handshakes go on.

use std::cmp::Reverse;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{Certificate, HostName, Source};
use crate::fault::OperatorFault;

/// Presents the right certificate for a server name, the meta certificate last in its chain.
#[derive(Debug)]
pub struct Resolver {
    source: Source,
    hostname: Option<HostName>,
    meta: CertificateDer<'static>,
    /// From `source`.
    own: RwLock<Arc<Set>>,
    /// From control; before the own ones where there are some.
    steered: RwLock<Option<Arc<Set>>>,
}

/// Certificates to present, the default first. Put in force whole or not at all, never empty.
#[derive(Debug)]
pub struct Set(Vec<Presented>);

#[derive(Debug)]
struct Presented {
    certificate: Certificate,
    with_meta: Arc<CertifiedKey>,
    /// Whether it was made for this relay by who vouches for it.
    vouched: bool,
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
    /// first. `None` for none, or where none is for the hostname: control gives every relay the
    /// same, and another's are no fault. Expired ones are passed over at each handshake.
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

    /// Presents `set` from now on, or the own certificates alone again.
    pub fn steer(&self, set: Option<Arc<Set>>) {
        *self.steered.write().unwrap_or_else(PoisonError::into_inner) = set;
    }

    /// The pin of the default certificate for a DERP map, if it is self-made or for an IP address:
    /// no public authority vouches for those.
    #[must_use]
    pub fn pin(&self, now: SystemTime) -> Option<String> {
        let sets = self.sets();
        let default = self.defaults(&sets).min_by_key(|it| it.certificate.has_expired(now))?;
        let unvouched =
            !default.vouched || self.hostname.as_ref().is_some_and(|name| name.ip().is_some());
        unvouched.then(|| default.certificate.pin()).flatten()
    }

    /// The earliest expiry of a certificate in force at `now`, in seconds since 1970.
    #[must_use]
    pub fn expiry_unix_s(&self, now: SystemTime) -> i64 {
        let sets = self.sets();
        let in_force = self.in_force(&sets, now).into_iter();
        in_force.map(|it| it.certificate.expiry_unix_s()).min().unwrap_or_default()
    }

    /// Names of every certificate in force at `now`.
    #[must_use]
    pub fn names(&self, now: SystemTime) -> Vec<String> {
        let sets = self.sets();
        let in_force = self.in_force(&sets, now).into_iter();
        in_force.flat_map(|it| it.certificate.names().to_vec()).collect()
    }

    /// Control's that have not expired, and of the own ones those with a name that none of these is
    /// for. A self-made one has such names, too, for trying the relay on its host, and counts alone.
    fn in_force<'a>(&self, sets: &'a Sets, now: SystemTime) -> Vec<&'a Presented> {
        let steered = sets.steered().iter().filter(|it| !it.certificate.has_expired(now));
        let steered: Vec<_> = steered.collect();
        let covered = |name: &String| steered.iter().any(|it| it.certificate.has_name(name));
        let counts = |own: &&Presented| {
            steered.is_empty() || own.vouched && !own.certificate.names().iter().all(covered)
        };
        let own: Vec<_> = sets.own.0.iter().filter(counts).collect();
        [steered, own].concat()
    }

    /// The chain to present at `now` to a client that asks for `name` and can check `suits`.
    ///
    /// Of those for the name the first, control's before the own ones, but rather one that the client
    /// can check, and then one that has not expired. Without a name, the same of the defaults. With
    /// certificate files an unknown name gets nothing and its handshake fails, as derper does it,
    /// unless the relay is known by an IP address.
    fn choose(
        &self,
        name: Option<&str>,
        now: SystemTime,
        suits: impl Fn(&CertifiedKey) -> bool,
    ) -> Option<Arc<CertifiedKey>> {
        let sets = self.sets();
        let rank = |it: &&Presented| (!suits(&it.with_meta), it.certificate.has_expired(now));
        let asked_for = |it: &&Presented| name.is_some_and(|name| it.certificate.has_name(name));
        let all = sets.steered().iter().chain(&sets.own.0);
        let presented = match all.filter(asked_for).min_by_key(rank) {
            Some(presented) => presented,
            None if name.is_some() && self.insists_on_names() => return None,
            None => self.defaults(&sets).min_by_key(rank)?,
        };
        Some(Arc::clone(&presented.with_meta))
    }

    /// What suits a client that asks for no name: those of control's that are for the relay's name,
    /// then the own ones. A relay without a hostname has the names of its first own certificate.
    fn defaults<'a>(&self, sets: &'a Sets) -> impl Iterator<Item = &'a Presented> + use<'a> {
        let names = match &self.hostname {
            Some(hostname) => vec![hostname.to_string()],
            None => sets.own.0[0].certificate.names().to_vec(),
        };
        let ours = move |it: &&Presented| names.iter().any(|name| it.certificate.has_name(name));
        sets.steered().iter().filter(ours).chain(&sets.own.0)
    }

    fn insists_on_names(&self) -> bool {
        self.source != Source::SelfSigned
            && self.hostname.as_ref().is_none_or(|name| name.ip().is_none())
    }

    fn sets(&self) -> Sets {
        let steered = self.steered.read().unwrap_or_else(PoisonError::into_inner).clone();
        let own = Arc::clone(&self.own.read().unwrap_or_else(PoisonError::into_inner));
        Sets { steered, own }
    }
}

/// What there is to choose from at a moment.
struct Sets {
    steered: Option<Arc<Set>>,
    own: Arc<Set>,
}

impl Sets {
    fn steered(&self) -> &[Presented] {
        self.steered.as_deref().map_or(&[], |set| &set.0)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let now = SystemTime::now();
        self.choose(hello.server_name(), now, |pair| pair.key.choose_scheme(schemes).is_some())
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
            Presented { certificate, with_meta, vouched }
        };
        Ok(Self(certificates.into_iter().map(present).collect()))
    }
}

#[cfg(test)]
mod tests;
