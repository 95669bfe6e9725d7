//! A rustls client, and the handshake that leaves our record layer with the server's keys.

#[path = "any_chain.rs"]
mod any_chain;

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use dataplane::certs::{Resolver, ServerConfigs, Source};
use dataplane::tls::{self, Rx, Tx};
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, ClientConnection, Error, SupportedCipherSuite};

use self::any_chain::TakesAnyChain;

/// Every suite that our self-made certificate serves.
pub(crate) fn suites() -> [SupportedCipherSuite; 6] {
    [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ]
}

/// The relay's own configuration, with a certificate made for this run.
pub(crate) fn server_configs() -> &'static ServerConfigs {
    static CONFIGS: OnceLock<ServerConfigs> = OnceLock::new();
    CONFIGS.get_or_init(|| {
        let meta = CertificateDer::from(&b"\x30\x03\x02\x01\x02"[..]);
        let resolver = Resolver::new(Source::SelfSigned, None, meta, SystemTime::now());
        ServerConfigs::new(Arc::new(resolver.expect("a certificate is made"))).expect("TLS works")
    })
}

/// A client that speaks `suite` and nothing else.
pub(crate) fn client(suite: SupportedCipherSuite) -> ClientConnection {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![suite];
    // A short hello, so that it can be cut at every byte.
    provider.kx_groups = vec![kx_group::X25519];
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[suite.version()])
        .expect("the suite is of this version")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakesAnyChain(algorithms)))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("a good configuration")
}

/// A client, our keys, and what the client sent behind its part of the handshake.
pub(crate) fn shake_hands(suite: SupportedCipherSuite) -> (ClientConnection, Rx, Tx, Vec<u8>) {
    let mut client = client(suite);
    let config = server_configs().for_hello(&[]).clone();
    let mut server = UnbufferedServerConnection::new(config).expect("a good configuration");
    let mut sealed = Vec::new();
    for _ in 0..10 {
        sealed.extend(say(&mut client, b""));
        let answer = advance(&mut server, &mut sealed);
        hear(&mut client, &answer).expect("a handshake");
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() {
            let (rx, tx) = tls::take_over(server).expect("the handshake is over");
            return (client, rx, tx, sealed);
        }
    }
    panic!("{suite:?} does not come to an end");
}

/// Lets the server work on `sealed` until it needs more; gives what it has to say.
fn advance(server: &mut UnbufferedServerConnection, sealed: &mut Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let UnbufferedStatus { discard, state } = server.process_tls_records(sealed);
        let more = match state.expect("a good handshake") {
            ConnectionState::EncodeTlsData(mut data) => {
                let Err(EncodeError::InsufficientSize(need)) = data.encode(&mut []) else {
                    panic!("nothing fits nowhere");
                };
                let len = out.len();
                out.resize(len + need.required_size, 0);
                data.encode(&mut out[len..]).expect("the size it asked for");
                true
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                true
            }
            _ => false,
        };
        sealed.drain(..discard);
        if !more {
            return out;
        }
    }
}

/// What the client puts on the wire to say `data`.
pub(crate) fn say(client: &mut ClientConnection, data: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::new();
    for part in data.chunks(16 << 10) {
        client.writer().write_all(part).expect("its buffer is empty");
        drain(client, &mut sealed);
    }
    drain(client, &mut sealed);
    sealed
}

fn drain(client: &mut ClientConnection, sealed: &mut Vec<u8>) {
    while client.wants_write() {
        client.write_tls(sealed).expect("memory takes everything");
    }
}

/// What the client hears when `sealed` arrives.
pub(crate) fn hear(client: &mut ClientConnection, mut sealed: &[u8]) -> Result<Vec<u8>, Error> {
    let mut heard = Vec::new();
    while !sealed.is_empty() {
        client.read_tls(&mut sealed).expect("its buffer has room");
        client.process_new_packets()?;
        match client.reader().read_to_end(&mut heard) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    Ok(heard)
}

/// Whether the server has said that nothing follows.
pub(crate) fn has_heard_the_end(client: &mut ClientConnection) -> bool {
    client.process_new_packets().expect("nothing is left").peer_has_closed()
}
