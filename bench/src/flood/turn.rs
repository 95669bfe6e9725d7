//! The least of a TURN client (RFC 8656): allocate without credentials, bind a channel, send through it.
//!
//! Owns two requests and the one attribute of the answers that matters. Channel data is a load's datagram
//! with four bytes before it. For measuring stock relays only.

use super::Flow;
use anyhow::{Context as _, Result, ensure};
use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Tries of a request.
const TRIES: usize = 3;
/// The cookie (RFC 8489, section 5).
const COOKIE: u32 = 0x2112_a442;
/// The only channel of a client (RFC 8656, section 12).
const CHANNEL: u16 = 0x4000;

/// Message types of requests; answers have 0x0100 besides.
mod request {
    pub(super) const ALLOCATE: u16 = 0x0003;
    pub(super) const CHANNEL_BIND: u16 = 0x0009;
}

/// Attribute types (RFC 8656, section 18).
mod attribute {
    pub(super) const CHANNEL_NUMBER: u16 = 0x000c;
    pub(super) const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub(super) const REQUESTED_TRANSPORT: u16 = 0x0019;
}

/// A client at `source` whose channel at `relay` leads to `peer`: the flow of its channel data, with
/// `payload` in each message.
pub(super) fn channel(
    source: SocketAddrV4,
    relay: SocketAddrV4,
    peer: SocketAddrV4,
    payload: &[u8],
) -> Result<Flow> {
    let socket = UdpSocket::bind(source)?;
    socket.connect(relay)?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    let udp = attribute(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    ask(&socket, request::ALLOCATE, &udp).context("no allocation")?;
    let [high, low] = CHANNEL.to_be_bytes();
    let number = attribute(attribute::CHANNEL_NUMBER, &[high, low, 0, 0]);
    let address = attribute(attribute::XOR_PEER_ADDRESS, &masked(peer));
    ask(&socket, request::CHANNEL_BIND, &[number, address].concat()).context("no channel")?;
    let len = (payload.len() as u16).to_be_bytes();
    let datagram = [&CHANNEL.to_be_bytes()[..], &len, payload].concat();
    Ok(Flow { source, datagram, socket: Some(socket) })
}

/// Sends a request until it is granted.
fn ask(socket: &UdpSocket, kind: u16, attributes: &[u8]) -> Result<()> {
    let mut message = Vec::new();
    message.extend(kind.to_be_bytes());
    message.extend((attributes.len() as u16).to_be_bytes());
    message.extend(COOKIE.to_be_bytes());
    // Transactions follow one another on a socket; the type tells them apart.
    message.extend([kind as u8; 12]);
    message.extend(attributes);
    let mut answer = [0; 1500];
    for _ in 0..TRIES {
        socket.send(&message)?;
        let Ok(len) = socket.recv(&mut answer) else { continue };
        let head = answer[..len].first_chunk::<20>().context("an answer is too short")?;
        let granted = u16::from_be_bytes([head[0], head[1]]) == kind | 0x0100;
        ensure!(granted && head[8..] == message[8..20], "refused: {:02x?}", &answer[..len]);
        return Ok(());
    }
    anyhow::bail!("no answer")
}

/// ```text
///  0           2           4
///  +-----------+-----------+------------------------+
///  | type      | length    | value, a multiple of 4 |
///  +-----------+-----------+------------------------+
/// ```
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
}

/// An address as attributes have it, combined with the cookie (RFC 8489, section 14.2).
fn masked(address: SocketAddrV4) -> [u8; 8] {
    let port = (address.port() ^ (COOKIE >> 16) as u16).to_be_bytes();
    let ip = (address.ip().to_bits() ^ COOKIE).to_be_bytes();
    [0, 1, port[0], port[1], ip[0], ip[1], ip[2], ip[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_masked_as_in_the_vectors_of_rfc_5769() {
        // Section 2.2: 192.0.2.1, port 32853.
        let address = "192.0.2.1:32853".parse().expect("an address");
        assert_eq!(masked(address), [0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
    }

    #[test]
    fn attributes_say_their_length() {
        assert_eq!(attribute(0x0019, &[17, 0, 0, 0]), [0, 0x19, 0, 4, 17, 0, 0, 0]);
    }
}
