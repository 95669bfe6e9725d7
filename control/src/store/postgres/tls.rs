//! TLS to the database: what each `sslmode` means, and its rustls settings.
//!
//! The modes are libpq's. `prefer` and `require` encrypt and trust whoever answers, as they do
//! there; `verify-full` also verifies the server's certificate and name. Settings are made when the
//! store is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::fault::OperatorFault;

/// Whose certificate is taken for the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Anybody's.
    All,
    /// One with the server's name, by an authority that this host trusts.
    System,
    /// One with the server's name, by an authority in this PEM file.
    File(PathBuf),
}

impl Trust {
    /// What the parameters `sslmode` and `sslrootcert` say.
    pub(super) fn from_parameters(
        mode: Option<&str>,
        roots: Option<String>,
    ) -> Result<(SslMode, Self), String> {
        let verifies = mode == Some("verify-full");
        let trust = match roots {
            Some(_) if !verifies => return Err("sslrootcert goes with sslmode=verify-full".into()),
            Some(path) if path != "system" => Self::File(path.into()),
            Some(_) | None if verifies => Self::System,
            Some(_) | None => Self::All,
        };
        let mode = match mode {
            Some("disable") => SslMode::Disable,
            None | Some("prefer") => SslMode::Prefer,
            Some("require" | "verify-full") => SslMode::Require,
            Some(_) => return Err("sslmode takes disable, prefer, require or verify-full".into()),
        };
        Ok((mode, trust))
    }

    /// How connections are made that trust like this.
    pub(super) fn connector(&self) -> Result<MakeRustlsConnect, OperatorFault> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let fault = |error: rustls::Error| OperatorFault::failed(format!("database: TLS: {error}"));
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(fault)?;
        let config = match self {
            Self::All => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            }
            Self::System => builder.with_platform_verifier().map_err(fault)?,
            Self::File(path) => builder.with_root_certificates(roots(path)?),
        };
        Ok(MakeRustlsConnect::new(config.with_no_client_auth()))
    }
}

fn roots(path: &Path) -> Result<RootCertStore, OperatorFault> {
    let fault = |why: String| {
        let path = path.display();
        OperatorFault::config(format!("{path}: {why}; sslrootcert must name certificates in PEM"))
    };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in read {
        let certificate = certificate.map_err(|error| fault(error.to_string()))?;
        roots.add(certificate).map_err(|error| fault(error.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(fault("has no certificate".to_owned())),
        false => Ok(roots),
    }
}

/// Takes every certificate whose key is the one that the other end has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
