//! Whom a probe trusts over TLS: the system's authorities, or what a node's map entry says instead.
//!
//! `CertName` is a name to verify in place of HostName, or `sha256-raw:` and the digest of the one
//! certificate there may be beside derper's meta certificate; it goes over `InsecureForTests`
//! (Tailscale's `tlsdial` and `derphttp`). Sessions are never resumed, as a resumed one would show no
//! certificate. Authorities are read once; `SSL_CERT_FILE` names others.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_native_certs::ErrorKind;
use tokio::sync::Mutex;
use wire::key::Key;
use wire::meta_cert;
use x509_parser::parse_x509_certificate;

use super::Fault;
use crate::fault::{plain, words};
use crate::resource::Node;

/// What a pin in `CertName` begins with.
const PIN_PREFIX: &str = "sha256-raw:";

/// What a server must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// A certificate of a known authority for the name that is dialled.
    Dialled,
    /// The same, for this name.
    Named(ServerName<'static>),
    /// The certificate with this SHA-256, and no other.
    Pinned([u8; 32]),
    /// Anything.
    Nothing,
}

impl Expected {
    /// What clients expect of `node`.
    pub(super) fn of(node: &Node) -> Result<Self, Fault> {
        let text = node.cert_name.as_str();
        if let Some(pin) = text.strip_prefix(PIN_PREFIX) {
            // A digest is as long as a key and written the same way.
            let pin = Key::from_hex(pin).ok_or_else(|| {
                Fault::failed(format_args!("CertName: {text}: is no SHA-256 in hex"))
            })?;
            return Ok(Self::Pinned(pin.0));
        }
        match (text, node.insecure_for_tests) {
            ("", true) => Ok(Self::Nothing),
            ("", false) => Ok(Self::Dialled),
            (name, _) => ServerName::try_from(name.to_owned())
                .map(Self::Named)
                .map_err(|_| Fault::failed(format_args!("CertName: {name}: is no host name"))),
        }
    }
}

/// The authorities of this system, read when they are first needed: that takes some milliseconds.
#[derive(Debug)]
pub struct Trust {
    provider: Arc<CryptoProvider>,
    authorities: Mutex<Option<Arc<WebPkiServerVerifier>>>,
}

impl Default for Trust {
    fn default() -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Self { provider, authorities: Mutex::default() }
    }
}

impl Trust {
    /// Settings for one handshake with a server that must show what is `expected`.
    pub(super) async fn settings(&self, expected: Expected) -> Result<Arc<ClientConfig>, Fault> {
        let authorities = match expected {
            Expected::Dialled | Expected::Named(_) => Some(self.authorities().await?),
            Expected::Pinned(_) | Expected::Nothing => None,
        };
        let provider = Arc::clone(&self.provider);
        let verifier = Verifier { provider: Arc::clone(&provider), authorities, expected };
        let mut settings = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Fault::failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        settings.resumption = Resumption::disabled();
        Ok(Arc::new(settings))
    }

    /// Has the authorities read again when they are next needed.
    pub async fn forget(&self) {
        *self.authorities.lock().await = None;
    }

    async fn authorities(&self) -> Result<Arc<WebPkiServerVerifier>, Fault> {
        let mut known = self.authorities.lock().await;
        if let Some(known) = &*known {
            return Ok(Arc::clone(known));
        }
        let provider = Arc::clone(&self.provider);
        let read = tokio::task::spawn_blocking(move || read_authorities(provider)).await;
        // A failure may be mended, so it is not kept.
        let read = read.unwrap_or_else(|error| Err(Fault::failed(error)))?;
        *known = Some(Arc::clone(&read));
        Ok(read)
    }
}

fn read_authorities(provider: Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, Fault> {
    let mut roots = RootCertStore::empty();
    // Some systems have certificates that no library takes; those that it takes are what there is.
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let none = |why: String| {
        let fix = "mend this, or name others in SSL_CERT_FILE";
        Fault::failed(format_args!("no certificate authorities: {why}; {fix}"))
    };
    built.map_err(|_| match found.errors.first() {
        Some(error) => match &error.kind {
            ErrorKind::Io { inner, path } => none(format!("{}: {}", path.display(), words(inner))),
            _ => none(plain(&error.to_string())),
        },
        None => {
            Fault::failed("this system has no certificate authorities; install ca-certificates")
        }
    })
}

/// Judges the certificates of one server.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// There are some whenever a name is expected.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    expected: Expected,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by_name = |name: &ServerName<'_>| match &self.authorities {
            Some(authorities) => authorities.verify_server_cert(leaf, others, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        match &self.expected {
            Expected::Dialled => by_name(dialled),
            Expected::Named(name) => by_name(name),
            Expected::Pinned(pin) => {
                is_pinned(pin, std::iter::once(leaf).chain(others), dialled, now)
                    .map(|()| ServerCertVerified::assertion())
            }
            Expected::Nothing => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether `shown` is the pinned certificate, valid now, for the name that was dialled, beside meta
/// certificates and nothing else.
fn is_pinned<'a>(
    pin: &[u8; 32],
    shown: impl Iterator<Item = &'a CertificateDer<'a>>,
    dialled: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let mut own = shown.filter(|certificate| meta_cert::announced(certificate).is_none());
    let (Some(only), None) = (own.next(), own.next()) else {
        return Err(Error::General("shows other certificates than the one pinned".into()));
    };
    if digest(&SHA256, only).as_ref() != pin {
        return Err(Error::General("shows another certificate than the one pinned".into()));
    }
    let (_, parsed) =
        parse_x509_certificate(only).map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    match dialled {
        ServerName::DnsName(_) => verify_server_name(&ParsedCertificate::try_from(only)?, dialled),
        // Go's client knows no name for an address, so stock clients check none.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(name: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        let key = KeyPair::generate().expect("the system has random bytes");
        params.self_signed(&key).expect("it signs itself").der().clone()
    }

    fn pin(certificate: &CertificateDer<'_>) -> [u8; 32] {
        digest(&SHA256, certificate).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// A day of 2026, since when everything above is valid.
    const NOW: u64 = 1_780_000_000;

    #[test]
    fn a_pin_is_for_one_valid_certificate_of_the_dialled_name() {
        let [good, other] = ["relay.example", "other.example"].map(certificate);
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let name = ServerName::try_from("relay.example").expect("a name");
        let judge = |pin: &[u8; 32], shown: &[&CertificateDer<'static>], now: u64| {
            is_pinned(pin, shown.iter().copied(), &name, at(now))
        };
        assert_eq!(judge(&pin(&good), &[&good], NOW), Ok(()));
        assert_eq!(
            judge(&pin(&good), &[&good], NOW + 40_000_000),
            Err(CertificateError::Expired.into())
        );
        assert_eq!(judge(&pin(&good), &[&good], 0), Err(CertificateError::NotValidYet.into()));
        for shown in [vec![&other], vec![&good, &other], vec![]] {
            assert!(matches!(judge(&pin(&good), &shown, NOW), Err(Error::General(_))));
        }
        assert!(judge(&pin(&other), &[&other], NOW).is_err(), "a name it is not for");
        let address = ServerName::try_from("192.0.2.1").expect("an address");
        let by_address = is_pinned(&pin(&other), std::iter::once(&other), &address, at(NOW));
        assert_eq!(by_address, Ok(()));
    }

    #[test]
    fn the_certificate_name_goes_over_insecure_for_tests() {
        let of = |cert_name: &str, insecure_for_tests| {
            let cert_name = cert_name.to_owned();
            Expected::of(&Node { cert_name, insecure_for_tests, ..Node::default() })
        };
        assert_eq!(of("", false), Ok(Expected::Dialled));
        assert_eq!(of("", true), Ok(Expected::Nothing));
        let name = ServerName::try_from("a.example").expect("a name");
        assert_eq!(of("a.example", true), Ok(Expected::Named(name)));
        let hex = "ab".repeat(32);
        assert_eq!(of(&format!("sha256-raw:{hex}"), true), Ok(Expected::Pinned([0xab; 32])));
        assert!(of("sha256-raw:ab", true).is_err() && of("not a name", false).is_err());
    }
}
