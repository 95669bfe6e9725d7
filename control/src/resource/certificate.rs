//! A certificate that relays serve, with its key.
//!
//! Owns the check that a chain parses and the key is its own. The key goes into the store and to
//! relays, and is shown to nobody: it has no `Debug`, and [`super::shown`] takes it out of bodies.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::{FieldFault, Resource, Scope, check_name};
use crate::clock::Stamp;
use crate::store::Kind;

/// The field of a certificate's body that is never shown.
pub(super) const SECRET: &str = "key";
/// Certificates of a chain, at most: more than any authority's path has.
const CHAIN_MAX: usize = 16;
/// Characters of a line of PEM (RFC 7468, section 2).
const PEM_LINE_LEN: usize = 64;

/// A private key as PEM.
#[allow(missing_debug_implementations, reason = "a secret is not printed")]
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct KeyPem(String);

impl KeyPem {
    /// This text, whatever it is: [`Certificate::check`] judges it.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the way to a relay.
    #[must_use]
    pub fn reveal(self) -> String {
        self.0
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A certificate that relays serve for its names.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Its name.
    pub name: String,
    /// The chain as PEM, the relay's own certificate first.
    pub chain: String,
    /// Its private key as PEM. Only ever written.
    #[serde(default, skip_serializing_if = "KeyPem::is_empty")]
    #[schema(write_only, value_type = String)]
    pub key: KeyPem,
    /// The DNS names and addresses it is for; the certificate's to say.
    #[serde(default)]
    #[schema(read_only)]
    pub names: Vec<String>,
    /// When it ends; the certificate's to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub expires_at: Option<Stamp>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.name)
    }
}

impl Resource for Certificate {
    const KIND: Kind = Kind::Certificate;
    const PLURAL: &'static str = "certificates";
    const WRITE: Scope = Scope::Operate;
    const FIXED: Option<&'static str> = Some("name");

    fn check(&mut self) -> Result<(), FieldFault> {
        check_name("name", &self.name)?;
        let chain = read_chain(&self.chain)?;
        (self.names, self.expires_at) = read_leaf(&chain)?;
        // The text may hold more than certificates, a key even, and it is shown.
        self.chain = chain.iter().map(|certificate| pem(certificate)).collect();
        check_key(chain, &self.key)
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

fn chain_fault(why: &str) -> FieldFault {
    FieldFault::new("chain", format!("{why}; give certificates as PEM, the relay's own first"))
}

fn read_chain(text: &str) -> Result<Vec<CertificateDer<'static>>, FieldFault> {
    let read = CertificateDer::pem_slice_iter(text.as_bytes()).take(CHAIN_MAX + 1);
    let chain: Vec<_> = read.collect::<Result<_, _>>().map_err(|_| chain_fault("is no PEM"))?;
    if chain.len() > CHAIN_MAX {
        return Err(chain_fault(&format!("has more than {CHAIN_MAX} certificates")));
    }
    match chain.iter().all(|der| parse_x509_certificate(der).is_ok_and(|(rest, _)| rest.is_empty()))
    {
        true => Ok(chain),
        false => Err(chain_fault("has something that is no certificate")),
    }
}

/// The names and the end of the first certificate.
fn read_leaf(chain: &[CertificateDer<'_>]) -> Result<(Vec<String>, Option<Stamp>), FieldFault> {
    let leaf = chain.first().ok_or_else(|| chain_fault("has no certificate"))?;
    let (_, leaf) = parse_x509_certificate(leaf).map_err(|_| chain_fault("is no certificate"))?;
    let alternatives = leaf.subject_alternative_name().ok().flatten();
    let names = alternatives.iter().flat_map(|found| &found.value.general_names);
    let names: Vec<_> = names.filter_map(name_of).collect();
    if names.is_empty() {
        return Err(chain_fault("is for no name"));
    }
    Ok((names, Some(Stamp(leaf.validity().not_after.timestamp()))))
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => {
            name.bytes().all(|byte| byte.is_ascii_graphic()).then(|| (*name).to_owned())
        }
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|octets| Ipv4Addr::from(octets).to_string());
            let v6 = <[u8; 16]>::try_from(*bytes).map(|octets| Ipv6Addr::from(octets).to_string());
            v4.or(v6).ok()
        }
        _ => None,
    }
}

fn check_key(chain: Vec<CertificateDer<'static>>, key: &KeyPem) -> Result<(), FieldFault> {
    let fault = |why: &str| FieldFault::new(SECRET, why);
    let der = PrivateKeyDer::from_pem_slice(key.0.as_bytes())
        .map_err(|_| fault("is no private key; give PEM without a password"))?;
    let key = default_provider()
        .key_provider
        .load_private_key(der)
        .map_err(|_| fault("is of no kind that TLS knows; take ECDSA, Ed25519 or RSA"))?;
    CertifiedKey::new(chain, key)
        .keys_match()
        .map_err(|_| fault("is not the key of the chain's first certificate"))
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = BASE64_STANDARD.encode(certificate);
    let mut lines = String::from("-----BEGIN CERTIFICATE-----\n");
    for at in (0..text.len()).step_by(PEM_LINE_LEN) {
        lines += &text[at..text.len().min(at + PEM_LINE_LEN)];
        lines.push('\n');
    }
    lines + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn made(names: &[&str]) -> Certificate {
        let key = KeyPair::generate().expect("the system has random bytes");
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let params = CertificateParams::new(names).expect("names");
        let chain = params.self_signed(&key).expect("it signs itself").pem();
        let key = KeyPem(key.serialize_pem());
        Certificate { name: "edge".into(), chain, key, ..Certificate::default() }
    }

    fn fault_of(mut certificate: Certificate) -> &'static str {
        certificate.check().expect_err("it is wrong").field
    }

    #[test]
    fn a_certificate_tells_its_names_and_its_end() {
        let mut good = made(&["a.example.com", "192.0.2.1", "2001:db8::1"]);
        let key = good.key.0.clone();
        good.check().expect("it is right");
        assert_eq!(good.names, ["a.example.com", "192.0.2.1", "2001:db8::1"]);
        assert!(good.expires_at.is_some());
        assert!(!format!("{good:?}").contains("BEGIN"));
        let body = shown(good.draft().body);
        assert!(body["chain"].is_string() && !body.to_string().contains("PRIVATE"));
        // What else was in the file of the chain is not kept, a key least of all.
        let mut both =
            Certificate { chain: format!("{key}\n# us\n{}", good.chain), ..good.clone() };
        both.check().expect("the chain is in it");
        assert_eq!(both.chain, good.chain);
    }

    fn shown(body: serde_json::Value) -> serde_json::Value {
        super::super::shown(Kind::Certificate, body)
    }

    #[test]
    fn what_is_no_pair_is_refused_by_its_field() {
        let good = || made(&["a.example.com"]);
        assert_eq!(fault_of(Certificate { chain: String::new(), ..good() }), "chain");
        assert_eq!(fault_of(Certificate { chain: "nonsense".into(), ..good() }), "chain");
        let cut = good().chain.replacen("MII", "MIJ", 1);
        assert_eq!(fault_of(Certificate { chain: cut, ..good() }), "chain");
        let many = good().chain.repeat(CHAIN_MAX + 1);
        assert_eq!(fault_of(Certificate { chain: many, ..good() }), "chain");
        assert_eq!(fault_of(made(&[])), "chain");
        assert_eq!(fault_of(Certificate { key: KeyPem::default(), ..good() }), "key");
        assert_eq!(fault_of(Certificate { key: KeyPem("nonsense".into()), ..good() }), "key");
        assert_eq!(fault_of(Certificate { key: good().key, ..good() }), "key");
    }
}
