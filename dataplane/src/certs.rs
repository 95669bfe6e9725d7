//! The certificates this relay presents: loaded, checked, chosen by server name, replaced while running.
//!
//! Owns every private key of TLS; none leaves its signer. The meta certificate, by which clients
//! learn the relay's key early, is the last of each chain. The front makes a [`Resolver`] at start,
//! builds [`ServerConfigs`] over it and calls [`Resolver::reload`] on demand.

mod files;
mod name;
mod node;
mod resolver;
mod self_signed;
mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::sign::SigningKey;

use crate::fault::OperatorFault;

pub use name::{HostName, NotAHostName};
pub use node::{DerpNode, Reach};
pub use resolver::{Resolver, Set};
pub use server::ServerConfigs;
pub(crate) use server::provider;

/// The files of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertFiles {
    /// PEM: the certificate, then its intermediates.
    pub cert_file: PathBuf,
    /// PEM: its private key, as PKCS #8, PKCS #1 or SEC 1.
    pub key_file: PathBuf,
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// These files, chosen by server name; the first is the default.
    Files(Vec<CertFiles>),
    /// derper's `-certmode manual`: `<hostname>.crt` and `.key` in this directory. For an IP address
    /// without files they are made, self-signed.
    Directory(PathBuf),
    /// Made at each start and kept nowhere.
    SelfSigned,
}

impl Source {
    /// The certificates, each checked at `now`; one of the files' must be for `hostname` if given.
    ///
    /// # Errors
    /// When a file is unreadable or wrong, or no certificate is for `hostname`.
    pub fn load(
        &self,
        hostname: Option<&HostName>,
        now: SystemTime,
    ) -> Result<Vec<Certificate>, OperatorFault> {
        let certificates = match self {
            Self::Files(files) => {
                files.iter().map(|files| files.load(now)).collect::<Result<Vec<_>, _>>()?
            }
            Self::Directory(directory) => vec![files::from_directory(directory, hostname, now)?],
            Self::SelfSigned => {
                vec![self_signed::make(hostname.unwrap_or(&HostName::LOOPBACK), now)?.certificate]
            }
        };
        check_hostname(&certificates, hostname)?;
        Ok(certificates)
    }

    /// Whether [`Source::load`] would write a pair of files.
    #[must_use]
    pub fn would_make(&self, hostname: Option<&HostName>) -> bool {
        match self {
            Self::Files(_) | Self::SelfSigned => false,
            Self::Directory(directory) => {
                let hostname = hostname.unwrap_or(&HostName::LOOPBACK);
                files::in_directory(directory, hostname).are_to_be_made(hostname)
            }
        }
    }
}

/// Refuses certificates none of which is for `hostname`, if one was given.
fn check_hostname(
    certificates: &[Certificate],
    hostname: Option<&HostName>,
) -> Result<(), OperatorFault> {
    let Some(hostname) = hostname else { return Ok(()) };
    if certificates.iter().any(|certificate| certificate.is_for(hostname)) {
        return Ok(());
    }
    let names = certificates
        .iter()
        .flat_map(|certificate| &*certificate.names)
        .cloned()
        .collect::<Vec<_>>();
    Err(OperatorFault::config(format_args!(
        "hostname: no certificate is for {hostname} (they are for {}); change hostname or add its certificate",
        if names.is_empty() { "no name".to_owned() } else { names.join(", ") },
    )))
}

/// A certificate chain and its key, which fit each other.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate and its intermediates, never empty, without the meta certificate.
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
    names: Arc<[String]>,
    expiry_unix_s: i64,
}

impl Certificate {
    /// DNS names and addresses it is for, as written in it.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// When it expires, in seconds since 1970.
    #[must_use]
    pub fn expiry_unix_s(&self) -> i64 {
        self.expiry_unix_s
    }

    /// Whether it counts no longer at `now`.
    pub(crate) fn has_expired(&self, now: SystemTime) -> bool {
        self.expiry_unix_s < unix_s(now)
    }

    fn has_name(&self, name: &str) -> bool {
        self.names.iter().any(|pattern| name::stands_for(pattern, name))
    }

    /// The pin by which a DERP map may trust it: `sha256-raw:` and the digest of its DER. Clients
    /// take a pin only for a chain of this one certificate; `None` for a longer chain.
    #[must_use]
    pub fn pin(&self) -> Option<String> {
        use std::fmt::Write;
        let [leaf] = &*self.chain else { return None };
        let mut pin = String::from("sha256-raw:");
        for byte in digest(&SHA256, leaf).as_ref() {
            let _ = write!(pin, "{byte:02x}");
        }
        Some(pin)
    }

    fn is_for(&self, hostname: &HostName) -> bool {
        // Parsed once when it was loaded; a chain is never empty.
        self.chain.first().is_some_and(|leaf| name::is_for(leaf, hostname))
    }
}

fn unix_s(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed()
}

#[cfg(test)]
mod tests;
