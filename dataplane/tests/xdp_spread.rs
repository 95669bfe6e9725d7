//! Sockets of one port, and which of them the committed SK_REUSEPORT program gives a datagram.
#![forbid(unsafe_code)]

use std::net::UdpSocket;

use dataplane::xdp::Spread;
use socket2::{Domain, Socket, Type};

const SOCKETS: usize = 3;

/// Sockets that share a free port.
fn shared() -> Vec<UdpSocket> {
    let mut address = "127.0.0.1:0".parse::<std::net::SocketAddr>().expect("an address");
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
        socket.set_reuse_port(true).expect("an option");
        socket.bind(&address.into()).expect("free, or shared");
        let socket = UdpSocket::from(socket);
        address = socket.local_addr().expect("bound");
        socket.set_nonblocking(true).expect("an option");
        sockets.push(socket);
    }
    sockets
}

/// The socket that gets `datagram` from `client`: loopback delivers before `send_to` returns.
fn receiver(sockets: &[UdpSocket], client: &UdpSocket, datagram: &[u8]) -> usize {
    client.send_to(datagram, sockets[0].local_addr().expect("bound")).expect("sent");
    let mut buffer = [0; 200];
    let got: Vec<usize> =
        (0..sockets.len()).filter(|i| sockets[*i].recv(&mut buffer).is_ok()).collect();
    assert_eq!(got.len(), 1, "{got:?}");
    got[0]
}

#[test]
fn handshakes_go_to_the_first_and_flows_stay_together() {
    let sockets = shared();
    let _spread = match Spread::new(&sockets) {
        Ok(spread) => spread,
        Err(refusal) => {
            let required = std::env::var("PERIGEE_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name.trim() == "bpf"), "required: {refusal}");
            eprintln!("skipped: no bpf: {refusal}");
            return;
        }
    };
    let clients: Vec<UdpSocket> =
        (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").expect("a free port")).collect();
    let mut used = [false; SOCKETS];
    for receiver_index in 0..40_u32 {
        let mut data = [0; 32];
        data[0] = 4;
        data[4..8].copy_from_slice(&receiver_index.to_le_bytes());
        let first = receiver(&sockets, &clients[0], &data);
        used[first] = true;
        for client in &clients {
            assert_eq!(receiver(&sockets, client, &data), first);
            for (kind, len) in [(1, 148), (2, 92), (3, 64)] {
                let mut handshake = vec![0x77; len];
                handshake[..4].copy_from_slice(&[kind, 0, 0, 0]);
                assert_eq!(receiver(&sockets, client, &handshake), 0);
            }
        }
    }
    assert_eq!(used, [true; SOCKETS]);
    // Everything else is spread by the kernel, each source to one socket.
    let other = receiver(&sockets, &clients[0], b"no protocol of ours");
    assert_eq!(receiver(&sockets, &clients[0], b"no protocol of ours"), other);
    assert_eq!(receiver(&sockets, &clients[0], b""), other);
}
