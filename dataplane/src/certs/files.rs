//! Reading certificates and keys, and the checks a pair must pass before it is used.

use std::fmt::Display;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SigningKey};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;
use zeroize::Zeroizing;

use super::{CertFiles, Certificate, HostName, self_signed, unix_s};
use crate::fault::OperatorFault;
use crate::identity::write_private;

impl CertFiles {
    /// The certificate and key, which must fit each other and be valid at `now`.
    pub(super) fn load(&self, now: SystemTime) -> Result<Certificate, OperatorFault> {
        self.load_at(Some(now))
    }

    /// As [`CertFiles::load`]; without a `now` it may have expired.
    fn load_at(&self, now: Option<SystemTime>) -> Result<Certificate, OperatorFault> {
        let chain = read_chain(&self.cert_file)?;
        let key = read_key(&self.key_file)?;
        let [from, key_from] = [&self.cert_file, &self.key_file].map(|path| path.display());
        fit((&from, chain), (&key_from, key), now)
    }

    /// Certificate and key, which must fit each other, to be shown to a server that judges them.
    pub(crate) fn load_pair(&self) -> Result<CertifiedKey, OperatorFault> {
        let Certificate { chain, key, .. } = self.load_at(None)?;
        Ok(CertifiedKey::new(chain, key))
    }
}

impl Certificate {
    /// What control calls `name`. It may have expired, or seem not to count yet where our clock is
    /// wrong: clients judge that, and all else that control says must not wait for it.
    pub(crate) fn steered(name: &str, texts: &steer::Certificate) -> Result<Self, OperatorFault> {
        let [from, key_from] = ["chain", "key"].map(|part| format!("certificates: {name}: {part}"));
        let chain = parse_chain(&from, texts.chain.as_bytes())?;
        let key = parse_key(&key_from, texts.key.expose().as_bytes())?;
        fit((&from, chain), (&key_from, key), None)
    }
}

/// A chain of at least one certificate and a key, each with where it is from, if they fit each other.
fn fit(
    (from, chain): (&dyn Display, Vec<CertificateDer<'static>>),
    (key_from, key): (&dyn Display, Arc<dyn SigningKey>),
    now: Option<SystemTime>,
) -> Result<Certificate, OperatorFault> {
    let (names, expiry_unix_s) = check_leaf(from, &chain[0], now)?;
    let pair = CertifiedKey::new(chain, key);
    pair.keys_match().map_err(|_| {
        OperatorFault::config(format_args!(
            "{key_from}: is not the key of the certificate in {from}; give the key it was issued for"
        ))
    })?;
    Ok(Certificate { chain: pair.cert, key: pair.key, names, expiry_unix_s })
}

/// The pair named after `hostname`, as derper's `-certmode manual` has it.
pub(super) fn in_directory(directory: &Path, hostname: &HostName) -> CertFiles {
    let stem: String = hostname
        .to_string()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c))
        .collect();
    CertFiles {
        cert_file: directory.join(format!("{stem}.crt")),
        key_file: directory.join(format!("{stem}.key")),
    }
}

impl CertFiles {
    /// Whether the pair is to be made: an address has none, or is left with the first of two files
    /// of our own making, whose key never was written. A foreign certificate is never replaced.
    pub(super) fn are_to_be_made(&self, hostname: &HostName) -> bool {
        let half = || {
            let chain = read_chain(&self.cert_file).unwrap_or_default();
            chain.first().is_some_and(|leaf| self_signed::is_ours(leaf, hostname))
        };
        hostname.ip().is_some() && !self.key_file.exists() && (!self.cert_file.exists() || half())
    }
}

/// derper's `-certmode manual`: the pair named after the host, made anew for an address that has none.
pub(super) fn from_directory(
    directory: &Path,
    hostname: Option<&HostName>,
    now: SystemTime,
) -> Result<Certificate, OperatorFault> {
    let hostname = hostname.unwrap_or(&HostName::LOOPBACK);
    let files = in_directory(directory, hostname);
    if !files.are_to_be_made(hostname) {
        return files.load(now);
    }
    let made = self_signed::make(hostname, now)?;
    // The certificate first: a key without one would be taken for the operator's.
    for (path, pem) in [(&files.cert_file, &*made.cert_pem), (&files.key_file, &*made.key_pem)] {
        write_private(path, pem.as_bytes()).map_err(|fault| {
            let fix = "the directory of certificates must be one that this process may write";
            OperatorFault::file(path, &fault, fix)
        })?;
    }
    Ok(made.certificate)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, OperatorFault> {
    let pem = fs::read(path).map_err(|fault| {
        OperatorFault::file(path, &fault, "the certificate must be a readable PEM file")
    })?;
    parse_chain(&path.display(), &pem)
}

/// At least one certificate.
fn parse_chain(
    from: &dyn Display,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, OperatorFault> {
    let bad = |what: &str| {
        OperatorFault::config(format_args!(
            "{from}: {what}; it must hold the certificate and its intermediates as PEM"
        ))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Err(_) => Err(bad("is not well-formed PEM")),
        Ok(chain) if chain.is_empty() => Err(bad("holds no certificate")),
        Ok(chain) => Ok(chain),
    }
}

fn read_key(path: &Path) -> Result<Arc<dyn SigningKey>, OperatorFault> {
    let pem = fs::read(path).map_err(|fault| {
        OperatorFault::file(path, &fault, "the certificate's key must be a readable PEM file")
    })?;
    parse_key(&path.display(), &Zeroizing::new(pem))
}

fn parse_key(from: &dyn Display, pem: &[u8]) -> Result<Arc<dyn SigningKey>, OperatorFault> {
    let bad = |what: &str| {
        OperatorFault::config(format_args!(
            "{from}: {what}; it must hold the certificate's private key as PEM without a passphrase"
        ))
    };
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| bad("holds no private key"))?;
    any_supported_type(&der).map_err(|_| bad("is no RSA, ECDSA or Ed25519 key"))
}

/// Names and expiry of the certificate itself, if it is well-formed and valid at `now`, if given.
fn check_leaf(
    from: &dyn Display,
    leaf: &CertificateDer<'_>,
    now: Option<SystemTime>,
) -> Result<(Arc<[String]>, i64), OperatorFault> {
    let fault =
        |what: String, fix: &str| OperatorFault::config(format_args!("{from}: {what}; {fix}"));
    let malformed = || {
        fault("the first certificate is malformed".into(), "get it issued again as X.509 version 3")
    };
    let (_, parsed) = parse_x509_certificate(leaf).map_err(|_| malformed())?;
    ParsedCertificate::try_from(leaf).map_err(|_| malformed())?;
    let validity = parsed.validity();
    let now_unix_s = now.map(unix_s);
    if now_unix_s.is_some_and(|now| validity.not_after.timestamp() < now) {
        return Err(fault(
            format!("expired on {}", day(validity.not_after)),
            "renew the certificate",
        ));
    }
    if now_unix_s.is_some_and(|now| validity.not_before.timestamp() > now) {
        let what = format!("is not valid before {}", day(validity.not_before));
        return Err(fault(what, "set the clock right or use the previous certificate"));
    }
    let names = parsed.subject_alternative_name().ok().flatten();
    let names =
        names.iter().flat_map(|names| &names.value.general_names).filter_map(name_text).collect();
    Ok((names, validity.not_after.timestamp()))
}

fn day(time: ASN1Time) -> String {
    time.to_datetime().date().to_string()
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    }
}
