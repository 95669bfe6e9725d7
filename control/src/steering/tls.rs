//! Mutual TLS 1.3: whose certificates are taken, and for which nodes they are.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use tokio_rustls::TlsAcceptor;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::config::SteerTls;
use crate::fault::OperatorFault;

/// The files of mutual TLS, and what takes connections by them.
#[derive(Debug)]
pub(crate) struct Door {
    files: SteerTls,
    acceptor: RwLock<Files>,
}

/// What files said when they were read.
#[derive(Clone)]
pub(crate) struct Files(TlsAcceptor);

/// It holds a private key.
impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

impl Door {
    /// What takes connections by these files, which are read.
    pub(crate) fn open(files: SteerTls) -> Result<Self, OperatorFault> {
        let acceptor = RwLock::new(Files(acceptor(&files)?));
        Ok(Self { files, acceptor })
    }

    /// Reads the files again; nothing changes yet.
    pub(crate) fn read(&self) -> Result<Files, OperatorFault> {
        acceptor(&self.files).map(Files)
    }

    /// Takes connections by what was read, from now on.
    pub(crate) fn change(&self, read: Files) {
        *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = read;
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

fn acceptor(files: &SteerTls) -> Result<TlsAcceptor, OperatorFault> {
    let fault =
        |path: &Path, why: &str| OperatorFault::config(format!("{}: {why}", path.display()));
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.client_ca)? {
        roots.add(authority).map_err(|_| fault(&files.client_ca, "is no authority"))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.build().map_err(|_| fault(&files.client_ca, "has no certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&bytes(&files.key)?)
        .map_err(|_| fault(&files.key, "has no private key in PEM without a password"))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| OperatorFault::failed(format!("TLS: {error}")))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.cert)?, key)
        .map_err(|error| fault(&files.cert, &format!("{error}; --steer-key must be its key")))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The DNS names that the other side's certificate is for.
pub(super) fn names(connection: &ServerConnection) -> Vec<String> {
    let leaf = connection.peer_certificates().and_then(|chain| chain.first());
    let parsed = leaf.and_then(|leaf| parse_x509_certificate(leaf).ok());
    let Some((_, leaf)) = parsed else { return Vec::new() };
    let alternatives = leaf.subject_alternative_name().ok().flatten();
    let names = alternatives.iter().flat_map(|found| &found.value.general_names);
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    names.filter_map(name).collect()
}

fn bytes(path: &Path) -> Result<Vec<u8>, OperatorFault> {
    std::fs::read(path)
        .map_err(|error| OperatorFault::file(path, &error, "it must be a readable PEM file"))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, OperatorFault> {
    let read = bytes(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => {
            Err(OperatorFault::config(format!("{}: has no certificate in PEM", path.display())))
        }
    }
}
