//! The way to control: a socket on this host, or mutual TLS 1.3.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certs;
use crate::config::steering::{Control, TlsFiles};
use crate::fault::OperatorFault;

/// Time for a connection and its TLS handshake.
const DIAL: Duration = Duration::from_secs(5);

/// A connection to control.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Dials control; reads the files of TLS anew each time, so that they can be renewed.
pub(super) struct Dialer {
    tls: Option<TlsFiles>,
}

impl Dialer {
    /// One that has found the files in order.
    ///
    /// # Errors
    /// When one of them is not.
    pub(super) fn new(tls: Option<&TlsFiles>) -> Result<Self, OperatorFault> {
        tls.map(client_config).transpose()?;
        Ok(Self { tls: tls.cloned() })
    }

    /// A connection to `control`, or why there is none.
    pub(super) async fn dial(&self, control: &Control) -> Result<Box<dyn Stream>, String> {
        let dialled = timeout(DIAL, async {
            match (control, &self.tls) {
                (Control::Unix(path), _) => {
                    let stream = UnixStream::connect(path).await.map_err(|it| it.to_string())?;
                    Ok(Box::new(stream) as Box<dyn Stream>)
                }
                (Control::Tls { host, port }, Some(files)) => {
                    let config = client_config(files).map_err(|fault| fault.to_string())?;
                    let name = host.to_string();
                    let stream = tls(config, &name, *port).await.map_err(|it| it.to_string())?;
                    Ok(Box::new(stream) as Box<dyn Stream>)
                }
                // Settings with such a place have the files.
                (Control::Tls { .. }, None) => Err("no certificate to show".to_owned()),
            }
        });
        dialled.await.unwrap_or_else(|_| Err(format!("no connection within {DIAL:?}")))
    }
}

async fn tls(config: ClientConfig, host: &str, port: u16) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn client_config(files: &TlsFiles) -> Result<ClientConfig, OperatorFault> {
    let TlsFiles { own, ca_file } = files;
    let fault = |what: &str| {
        OperatorFault::config(format_args!(
            "{}: {what}; steer_ca must hold who vouches for control, as PEM",
            ca_file.display()
        ))
    };
    let pem = fs::read(ca_file).map_err(|error| {
        OperatorFault::file(ca_file, &error, "steer_ca must be a readable PEM file")
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| fault("is not well-formed PEM"))?;
        roots.add(certificate).map_err(|_| fault("holds a malformed certificate"))?;
    }
    if roots.is_empty() {
        return Err(fault("holds no certificate"));
    }
    let own: CertifiedKey = own.load_pair()?;
    let config = ClientConfig::builder_with_provider(Arc::new(certs::provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| fault("TLS 1.3 is not available"))?
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)));
    Ok(config)
}
