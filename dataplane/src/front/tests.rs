//! The front over loopback, in clear: HTTP beside upgrades, and the bounds of both.

use std::net::Ipv4Addr;

use tokio::io::AsyncReadExt;

use super::*;
use crate::front::handshake::HandshakeFault;
use crate::observe::{LoginFailure, Upgrade};
use crate::testing::front;

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
/// The end of the answer to [`HEALTH`].
const ANSWERED: &str = "\r\n\r\nOK";
const UPGRADE: &[u8] =
    b"GET /derp HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n";

/// Serves on a port of the kernel's choice.
async fn open(front: &Arc<Front>, scheme: Scheme) -> SocketAddr {
    let listener = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(Arc::clone(front).accept(listener, scheme));
    address
}

async fn connect(address: SocketAddr, say: &[u8]) -> net::TcpStream {
    let mut stream = net::TcpStream::connect(address).await.expect("the front listens");
    stream.write_all(say).await.expect("the front reads");
    stream
}

/// Everything until `end` has come, or the stream has ended.
async fn hear(stream: &mut net::TcpStream, end: &str) -> String {
    let mut heard = Vec::new();
    let whole = async {
        while !String::from_utf8_lossy(&heard).contains(end) {
            match stream.read_buf(&mut heard).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    timeout(HEAD, whole).await.expect("the front answers or closes");
    String::from_utf8_lossy(&heard).into_owned()
}

const WEB_SOCKET: &[u8] =
    b"GET /derp HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
    Sec-WebSocket-Protocol: derp\r\n\r\n";

#[tokio::test]
async fn a_login_that_breaks_web_socket_is_told_so_and_is_no_upgrade() {
    let front = Arc::new(front(10));
    let address = open(&front, Scheme::Main).await;
    // A text message, a frame without a mask, and a farewell, each with the close that it gets.
    for (frame, close) in [
        (&[0x81, 0x81, 0, 0, 0, 0, b'a'][..], &[0x88, 66, 0x03, 0xeb][..]),
        (&[0x82, 1, 0][..], &[0x88, 21, 0x03, 0xea][..]),
        (&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8][..], &[0x88, 2, 0x03, 0xe8][..]),
    ] {
        let mut stream = connect(address, &[WEB_SOCKET, frame].concat()).await;
        let mut heard = Vec::new();
        let whole = timeout(HEAD, stream.read_to_end(&mut heard)).await;
        whole.expect("the front closes").expect("without a reset");
        assert!(heard.starts_with(b"HTTP/1.1 101 "), "{heard:?}");
        assert!(heard.windows(close.len()).any(|part| part == close), "{heard:x?}");
    }
    let counters = &front.registry.front;
    let failures = |kind: LoginFailure| counters.login_failures[kind.index()].value();
    assert_eq!((failures(LoginFailure::WebSocket), failures(LoginFailure::Gone)), (2, 1));
    assert_eq!(counters.upgrades[Upgrade::WebSocket.index()].value(), 0);
}

#[test]
fn a_client_that_leaves_a_handshake_is_no_fault_of_the_socket() {
    let result = |kind: io::ErrorKind| HandshakeFault::Io(kind.into()).result();
    assert_eq!(result(io::ErrorKind::UnexpectedEof), HandshakeResult::PeerFault);
    assert_eq!(result(io::ErrorKind::ConnectionReset), HandshakeResult::PeerFault);
    assert_eq!(result(io::ErrorKind::OutOfMemory), HandshakeResult::IoError);
}

fn rejected(front: &Front, limit: Limit) -> u64 {
    front.registry.front.accept_rejected[limit.index()].value()
}

#[tokio::test]
async fn a_request_and_an_upgrade_in_one_segment_are_both_answered() {
    let front = Arc::new(front(10));
    let address = open(&front, Scheme::Main).await;
    let mut stream = connect(address, &[HEALTH, UPGRADE].concat()).await;
    let heard = hear(&mut stream, "Derp-Public-Key: ").await;
    assert!(heard.starts_with("HTTP/1.1 200 OK\r\n"), "{heard}");
    assert!(heard.contains("OKHTTP/1.1 101 Switching Protocols\r\n"), "{heard}");
}

#[tokio::test]
async fn a_client_that_ends_its_side_still_gets_its_answer() {
    let front = Arc::new(front(10));
    for scheme in [Scheme::Main, Scheme::Plain] {
        let address = open(&front, scheme).await;
        let mut stream = connect(address, HEALTH).await;
        stream.shutdown().await.expect("a live socket");
        let heard = hear(&mut stream, "never").await;
        assert!(heard.starts_with("HTTP/1.1 200 OK\r\n"), "{scheme:?}: {heard:?}");
    }
}

#[tokio::test]
async fn http_connections_have_places_of_their_own() {
    let mut front = front(10);
    front.admission.http[Scheme::Main.index()].max = 1;
    let front = Arc::new(front);
    let address = open(&front, Scheme::Main).await;
    let mut kept = connect(address, HEALTH).await;
    assert!(hear(&mut kept, ANSWERED).await.starts_with("HTTP/1.1 200 "));
    let mut beyond = connect(address, HEALTH).await;
    assert_eq!(hear(&mut beyond, ANSWERED).await, "");
    assert_eq!(rejected(&front, Limit::Http), 1);
    // The other port has its own, and a place comes back with its connection's end.
    let mut plain = connect(open(&front, Scheme::Plain).await, HEALTH).await;
    assert!(hear(&mut plain, ANSWERED).await.starts_with("HTTP/1.1 200 "));
    kept.shutdown().await.expect("a live socket");
    assert_eq!(hear(&mut kept, "never").await, "");
    let mut next = connect(address, HEALTH).await;
    assert!(hear(&mut next, ANSWERED).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_login_after_http_takes_a_place_among_the_handshakes() {
    let front = Arc::new(front(1));
    let address = open(&front, Scheme::Main).await;
    let mut first = connect(address, HEALTH).await;
    assert!(hear(&mut first, ANSWERED).await.starts_with("HTTP/1.1 200 "));
    // Upgraded and silent: it holds the one place.
    let mut second = connect(address, UPGRADE).await;
    assert!(hear(&mut second, "Derp-Public-Key").await.starts_with("HTTP/1.1 101 "));
    first.write_all(UPGRADE).await.expect("the front reads");
    assert_eq!(hear(&mut first, "Derp-Public-Key").await, "");
    assert_eq!(rejected(&front, Limit::Handshakes), 1);
}

#[tokio::test]
async fn the_accept_rate_spares_the_plain_port() {
    let mut front = front(10);
    front.admission.rate = Some(Rate { per_second: 1, burst: 1 });
    let front = Arc::new(front);
    let (main, plain) = (open(&front, Scheme::Main).await, open(&front, Scheme::Plain).await);
    for _ in 0..3 {
        let mut probe = connect(plain, HEALTH).await;
        assert!(hear(&mut probe, ANSWERED).await.starts_with("HTTP/1.1 200 "));
    }
    let mut one = connect(main, HEALTH).await;
    assert!(hear(&mut one, ANSWERED).await.starts_with("HTTP/1.1 200 "));
    let accepts = Scheme::ALL.iter().map(|s| front.registry.front.accepts[s.index()].value());
    assert_eq!(accepts.collect::<Vec<_>>(), [1, 3]);
    assert_eq!(rejected(&front, Limit::AcceptRate), 0);
}
