//! One STUN question over a real socket.
//!
//! Owns nothing. Tests of every port that answers STUN call it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use wire::stun::{TxId, parse_answer, request};

use crate::process::PATIENCE;

/// Asks `relay` from `socket`, and checks that it answered from the address that was asked, and that
/// the answer says where the question came from.
///
/// # Panics
/// When no answer comes, or another.
pub fn ask(socket: &UdpSocket, relay: SocketAddr) {
    let txid = TxId([5; 12]);
    socket.set_nonblocking(false).expect("a socket can be");
    socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
    socket.send_to(&request(txid), relay).expect("there is a way to the relay");
    let mut bytes = [0; 100];
    let (len, from) = socket.recv_from(&mut bytes).expect("an answer");
    let answer = parse_answer(&bytes[..len]).expect("a STUN answer");
    assert_eq!((from, answer.txid), (relay, txid));
    assert_eq!(answer.address, socket.local_addr().expect("bound"));
}

/// Asks `relay` from `socket`, and says whether anything comes back within `patience`.
///
/// # Panics
/// When `patience` is zero.
#[must_use]
pub fn is_answered(socket: &UdpSocket, relay: SocketAddr, patience: Duration) -> bool {
    socket.set_nonblocking(false).expect("a socket can be");
    socket.set_read_timeout(Some(patience)).expect("not zero");
    // An error is what a host without such a socket has said to the last one.
    let _ = socket.send_to(&request(TxId([6; 12])), relay);
    socket.recv_from(&mut [0; 100]).is_ok()
}
