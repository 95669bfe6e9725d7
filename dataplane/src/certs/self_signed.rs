//! A certificate of our own making, for a relay that was given none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::parse_x509_certificate;
use x509_parser::x509::X509Name;
use zeroize::Zeroizing;

use super::{Certificate, HostName};
use crate::fault::{ExitCode, OperatorFault};

/// One year, as derper makes them; some clients refuse much longer ones.
const VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far a client's clock may be behind ours.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
/// Longest common name in characters (X.520, ub-common-name).
const COMMON_NAME_LEN_MAX: usize = 64;

/// A made certificate, ready to use and to be written down.
pub(super) struct SelfSigned {
    pub(super) certificate: Certificate,
    pub(super) cert_pem: String,
    pub(super) key_pem: Zeroizing<String>,
}

/// A P-256 certificate for `hostname`, and for this host's own names so that it can be tried locally.
pub(super) fn make(hostname: &HostName, now: SystemTime) -> Result<SelfSigned, OperatorFault> {
    let failed = |fault: &dyn std::fmt::Display| {
        OperatorFault::new(
            ExitCode::Failed,
            format_args!("hostname: cannot make a certificate for {hostname}: {fault}"),
        )
    };
    let params = params(hostname, now).map_err(|fault| failed(&fault))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|fault| failed(&fault))?;
    let made = params.self_signed(&key).map_err(|fault| failed(&fault))?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
    let signer = any_supported_type(&der).map_err(|fault| failed(&fault))?;
    let expiry = (now + VALIDITY).duration_since(UNIX_EPOCH).unwrap_or_default();
    let certificate = Certificate {
        chain: vec![made.der().clone()],
        key: signer,
        names: names(hostname).into(),
        expiry_unix_s: expiry.as_secs().cast_signed(),
    };
    Ok(SelfSigned {
        certificate,
        cert_pem: made.pem(),
        key_pem: Zeroizing::new(key.serialize_pem()),
    })
}

/// Whether `leaf` has the names and the issuer of what [`make`] makes for `hostname`.
pub(super) fn is_ours(leaf: &[u8], hostname: &HostName) -> bool {
    let Ok((_, parsed)) = parse_x509_certificate(leaf) else { return false };
    let names_of = |name: &X509Name<'_>| {
        name.iter_common_name().filter_map(|name| name.as_str().ok()).collect::<String>()
    };
    parsed.issuer() == parsed.subject() && names_of(parsed.subject()) == hostname.to_string()
}

fn params(hostname: &HostName, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names(hostname))?;
    let name = hostname.to_string();
    let common_name = if name.len() <= COMMON_NAME_LEN_MAX { &name } else { "relay" };
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + VALIDITY).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    debug_assert!(
        params
            .subject_alt_names
            .iter()
            .all(|name| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_)))
    );
    Ok(params)
}

/// The host itself first, then the loopback names that are not already there.
fn names(hostname: &HostName) -> Vec<String> {
    let mut names = vec![hostname.to_string()];
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    for name in
        std::iter::once("localhost".to_owned()).chain(loopback.map(|address| address.to_string()))
    {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
