//! The bare UDP relay of single datagrams: many taken in one call, many sent in one call.
//!
//! One thread, one socket, blocking, no look at a byte; where a datagram goes is as in `udp_runs`.
//! Started by the runner as `limit udp-many`.

use super::partner;
use anyhow::Result;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use std::array;
use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

/// Datagrams of one call.
const MANY: usize = 64;
/// Bytes of the longest datagram there is on a path of 1500, and some.
const DATAGRAM_LEN_MAX: usize = 2048;
/// From one buffer to the next: their heads shall not share lines of the cache.
const BUFFER_STRIDE: usize = DATAGRAM_LEN_MAX + 64;

pub(super) fn run(socket: &UdpSocket) -> Result<()> {
    let fd = socket.as_raw_fd();
    let mut buffer = vec![0; MANY * BUFFER_STRIDE];
    let mut incoming = MultiHeaders::<SockaddrIn>::preallocate(MANY, None);
    let mut outgoing = MultiHeaders::<SockaddrIn>::preallocate(MANY, None);
    loop {
        let mut lens = [0; MANY];
        let mut to = [None; MANY];
        let mut count = 0;
        let mut parts = buffer.chunks_exact_mut(BUFFER_STRIDE);
        let mut into: [[IoSliceMut<'_>; 1]; MANY] = array::from_fn(|_| {
            [IoSliceMut::new(&mut parts.next().unwrap_or_default()[..DATAGRAM_LEN_MAX])]
        });
        match recvmmsg(fd, &mut incoming, &mut into, MsgFlags::MSG_WAITFORONE, None) {
            Ok(messages) => {
                for message in messages {
                    lens[count] = message.bytes;
                    to[count] = message.address.map(partner);
                    count += 1;
                }
            }
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let bytes: [[IoSlice<'_>; 1]; MANY] =
            array::from_fn(|at| [IoSlice::new(&buffer[at * BUFFER_STRIDE..][..lens[at]])]);
        let mut sent = 0;
        while sent < count {
            let rest = (&bytes[sent..count], &to[sent..count]);
            match sendmmsg(fd, &mut outgoing, rest.0, rest.1, [], MsgFlags::empty()) {
                Ok(left) => sent += left.count().max(1),
                // The first that found no room is lost, as it would be from a relay.
                Err(_) => sent += 1,
            }
        }
    }
}
