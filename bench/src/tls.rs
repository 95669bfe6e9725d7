//! TLS handshakes on blocking sockets, handing over to `record` with not one byte lost.
//!
//! rustls does the handshake and then gives up its secrets. It is fed exactly one record at a time, so
//! nothing of what follows the handshake can be left inside it. Owns the one cipher suite and key
//! exchange that all compared programs are held to; never verifies a certificate: this is load, not trust.

use crate::record::{self, Opener, Sealer};
use anyhow::{Context as _, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, DigitallySignedStruct, ExtractedSecrets,
    ServerConfig, ServerConnection, SignatureScheme,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;

/// TLS 1.3, AES-128-GCM and X25519 alone, so that every server does the same work.
fn one_suite() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![provider::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![provider::kx_group::X25519],
        ..provider::default_provider()
    })
}

/// The client side: any certificate will do.
pub(crate) fn client_config() -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(one_suite())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The server side of the limit programs: a fresh self-signed P-256 certificate, no session tickets.
pub(crate) fn server_config() -> Result<Arc<ServerConfig>> {
    let pair = self_signed()?;
    let key =
        PrivateKeyDer::try_from(pair.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut config = ServerConfig::builder_with_provider(one_suite())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)?;
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A P-256 certificate for 127.0.0.1: the kind every compared server presents.
pub(crate) fn self_signed() -> Result<rcgen::CertifiedKey<rcgen::KeyPair>> {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).context("generating a certificate")
}

/// What a finished handshake leaves: the two halves of the record layer and the server's chain.
pub(crate) struct Secured {
    /// Opens what the peer sends.
    pub(crate) opener: Opener,
    /// Seals what we send.
    pub(crate) sealer: Sealer,
    /// The peer's certificates as presented; empty on the server's side.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// Handshakes as the client of a server at a loopback address.
pub(crate) fn connect(config: &Arc<ClientConfig>, stream: &mut TcpStream) -> Result<Secured> {
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST.into()));
    let mut connection = ClientConnection::new(Arc::clone(config), name)?;
    handshake(&mut connection, stream)?;
    let chain = connection.peer_certificates().unwrap_or_default().to_vec();
    secured(connection.dangerous_extract_secrets()?, chain)
}

/// Handshakes as the server of one accepted connection.
pub(crate) fn accept(config: &Arc<ServerConfig>, stream: &mut TcpStream) -> Result<Secured> {
    let mut connection = ServerConnection::new(Arc::clone(config))?;
    handshake(&mut connection, stream)?;
    secured(connection.dangerous_extract_secrets()?, Vec::new())
}

fn secured(secrets: ExtractedSecrets, chain: Vec<CertificateDer<'static>>) -> Result<Secured> {
    Ok(Secured { opener: Opener::new(secrets.rx)?, sealer: Sealer::new(secrets.tx)?, chain })
}

/// Runs the handshake, reading record by record so that not a byte beyond it is taken.
fn handshake<Data>(connection: &mut ConnectionCommon<Data>, stream: &mut TcpStream) -> Result<()> {
    let mut record = Vec::with_capacity(record::PLAINTEXT_LEN_MAX);
    let mut flight = Vec::new();
    loop {
        while connection.wants_write() {
            connection.write_tls(&mut flight)?;
        }
        stream.write_all(&flight).context("sending a handshake flight")?;
        flight.clear();
        if !connection.is_handshaking() {
            return Ok(());
        }
        read_record(stream, &mut record)?;
        let mut unread = &record[..];
        while !unread.is_empty() {
            if connection.read_tls(&mut unread)? == 0 {
                bail!("handshake wants no more input");
            }
        }
        connection.process_new_packets()?;
    }
}

fn read_record(stream: &mut TcpStream, record: &mut Vec<u8>) -> Result<()> {
    record.resize(record::HEADER_LEN, 0);
    stream.read_exact(record).context("reading a record header")?;
    let len = record::record_len(record).context("record header incomplete")?;
    record.resize(len, 0);
    stream.read_exact(&mut record[record::HEADER_LEN..]).context("reading a record")
}

/// Accepts every certificate: the load generator pays for no verification.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}
