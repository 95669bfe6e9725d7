//! The front's TLS handshake over loopback, its client's bytes cut in two at every place.
#![forbid(unsafe_code)]

#[expect(dead_code, reason = "shared with the record tests, which need more of it")]
#[path = "common/oracle.rs"]
mod oracle;

use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::front::handshake::{self, HandshakeFault};
use dataplane::front::stream::Connection;
use dataplane::observe::TlsVersion;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::{ClientConnection, ProtocolVersion, SupportedCipherSuite};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use self::oracle::{client, hear, say, server_configs};

/// What the client says right behind its part of the handshake.
const REQUEST: &[u8] = b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection over loopback: the client's end and the server's.
async fn connect() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = listener.local_addr().expect("bound");
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let client = client.expect("the listener lives");
    client.set_nodelay(true).expect("a live socket");
    (client, server.expect("it has just connected").0)
}

/// A client's stream, with a pause at one place.
struct Cut {
    tcp: TcpStream,
    sent: usize,
    at: usize,
}

impl Cut {
    async fn write(&mut self, bytes: &[u8]) {
        let first = self.at.saturating_sub(self.sent).min(bytes.len());
        self.tcp.write_all(&bytes[..first]).await.expect("the server reads");
        if (1..bytes.len()).contains(&first) {
            // The server, on the same thread, reads what is there before the rest comes.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        }
        self.tcp.write_all(&bytes[first..]).await.expect("the server reads");
        self.sent += bytes.len();
    }
}

/// The client's side: handshake, request, answer, end. Gives the bytes it sent.
async fn ask(mut client: ClientConnection, mut cut: Cut) -> usize {
    let mut heard = Vec::new();
    let mut asked = false;
    while heard.len() < ANSWER.len() {
        let request = if client.is_handshaking() || asked { &b""[..] } else { REQUEST };
        asked |= !request.is_empty();
        let sealed = say(&mut client, request);
        cut.write(&sealed).await;
        let mut bytes = [0; 4096];
        let len = cut.tcp.read(&mut bytes).await.expect("the server answers");
        assert!(len > 0, "the server has left");
        heard.extend(hear(&mut client, &bytes[..len]).expect("authentic"));
    }
    assert_eq!(heard, ANSWER);
    cut.sent
}

/// The server's side; gives the version spoken.
async fn answer(tcp: TcpStream) -> TlsVersion {
    let (mut connection, version) =
        handshake::accept(tcp, server_configs()).await.expect("a good client");
    while connection.peek().len() < REQUEST.len() {
        assert!(connection.fill().await.expect("authentic"), "the client has left");
    }
    assert_eq!(connection.peek(), REQUEST);
    connection.consume(REQUEST.len());
    // As on its way to a relay core: nothing is lost between the parts.
    let (tcp, tls, early) = connection.into_parts();
    let (rx, tx) = tls.expect("it speaks TLS");
    assert!(early.plain.is_empty());
    let mut connection = Connection::secure(tcp, rx, tx, early);
    connection.write_all(ANSWER).await.expect("the client reads");
    connection.flush().await.expect("the client reads");
    version
}

fn shake_hands_cut_at(suite: SupportedCipherSuite, at: usize) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (tcp, server) = connect().await;
        let both =
            async { tokio::join!(ask(client(suite), Cut { tcp, sent: 0, at }), answer(server)) };
        let (sent, version) = timeout(PATIENCE, both).await.expect("nobody waits for ever");
        let tls13 = suite.version().version == ProtocolVersion::TLSv1_3;
        assert_eq!(version, if tls13 { TlsVersion::Tls13 } else { TlsVersion::Tls12 });
        sent
    })
}

#[test]
fn a_tls13_client_may_be_cut_anywhere() {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256;
    let sent = shake_hands_cut_at(suite, 0);
    assert!(sent > 200, "{sent}");
    for at in 1..sent {
        assert_eq!(shake_hands_cut_at(suite, at), sent, "cut at {at}");
    }
}

#[test]
fn a_tls12_client_may_be_cut_anywhere() {
    let suite = cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    let sent = shake_hands_cut_at(suite, 0);
    assert!(sent > 200, "{sent}");
    for at in 1..sent {
        assert_eq!(shake_hands_cut_at(suite, at), sent, "cut at {at}");
    }
}

#[test]
fn what_is_no_tls_is_refused_at_its_first_byte() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (mut tcp, server) = connect().await;
        tcp.write_all(b"G").await.expect("the server lives");
        let refused = timeout(PATIENCE, handshake::accept(server, server_configs())).await;
        let refused = refused.expect("it does not wait for more");
        assert!(matches!(refused, Err(HandshakeFault::NotTls)), "{refused:?}");
    });
}

#[test]
fn a_hello_without_end_is_refused_at_its_limit() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (mut tcp, server) = connect().await;
        let flood = async {
            // A record of the greatest length, and no end of it but the relay's patience.
            let mut bytes = vec![0; 128 << 10];
            bytes[..5].copy_from_slice(&[22, 3, 1, 0xff, 0xff]);
            let _ = tcp.write_all(&bytes).await;
        };
        let both = async { tokio::join!(flood, handshake::accept(server, server_configs())) };
        let ((), refused) = timeout(PATIENCE, both).await.expect("it does not wait for more");
        assert!(refused.is_err());
    });
}
