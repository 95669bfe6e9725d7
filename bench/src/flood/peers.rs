//! Stock WireGuard peers (boringtun) in pairs, whose real handshakes make the relay know a load's flows.
//!
//! Owns their keys, which follow from their numbers, so that the runner can write them into the relay's
//! configuration. What the load sends afterwards has the head of a real data message; the relay could not
//! tell its ciphertext from a fresh one's. Sessions live 180 s.

use super::Flow;
use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use std::net::{SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

/// Time for one pair's handshake, more than a peer takes to try again.
const HANDSHAKE_MAX: Duration = Duration::from_secs(12);
/// How long a peer sleeps at most before it looks at its timers.
const TIMERS: Duration = Duration::from_millis(20);
/// Bytes of a data message's head: type, receiver, counter.
const HEAD_LEN: usize = 16;
/// Longest datagram of a peer here.
const DATAGRAM_LEN_MAX: usize = 2048;

/// The public key of peer `number`, as a configuration has it. Peers 2n and 2n + 1 are a pair.
pub(crate) fn public_key(number: usize) -> String {
    BASE64_STANDARD.encode(PublicKey::from(&secret(number)).as_bytes())
}

fn secret(number: usize) -> StaticSecret {
    // Not at the ends, where some bits of every key are the same (RFC 7748, section 5).
    let mut bytes = [7; 32];
    bytes[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    StaticSecret::from(bytes)
}

struct Peer {
    tunnel: Tunn,
    socket: UdpSocket,
    /// Packets that came out of the tunnel.
    heard: usize,
}

/// Joins peers 2n and 2n + 1 through `relay`, from the addresses given, and returns the flow of each, with
/// messages of `len` bytes.
pub(super) fn pair(
    number: usize,
    addresses: [SocketAddrV4; 2],
    relay: SocketAddrV4,
    len: usize,
) -> Result<[Flow; 2]> {
    ensure!(len >= 2 * HEAD_LEN, "a data message has {} bytes at least", 2 * HEAD_LEN);
    let [one, other] = [2 * number, 2 * number + 1];
    let mut peers =
        [Peer::new(one, other, addresses[0], relay)?, Peer::new(other, one, addresses[1], relay)?];
    let until = Instant::now() + HANDSHAKE_MAX;
    for peer in &mut peers {
        peer.send()?;
    }
    // Then once more each, over the session that both have.
    for wanted in [1, 2] {
        while peers.iter().any(|peer| peer.heard < wanted) {
            ensure!(Instant::now() < until, "peers {one} and {other} do not reach each other");
            for peer in &mut peers {
                peer.receive()?;
                peer.look_at_timers()?;
            }
        }
        if wanted == 1 {
            for peer in &mut peers {
                peer.send()?;
            }
        }
    }
    let mut flows = Vec::new();
    for mut peer in peers {
        let source = peer.address()?;
        let mut datagram = peer.message()?.context("the session is gone")?;
        datagram.truncate(HEAD_LEN);
        datagram.resize(len, 0x5a);
        flows.push(Flow { source, datagram, socket: Some(peer.socket) });
    }
    flows.try_into().ok().context("a pair has two flows")
}

impl Peer {
    fn new(own: usize, other: usize, address: SocketAddrV4, relay: SocketAddrV4) -> Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.connect(relay)?;
        socket.set_read_timeout(Some(TIMERS))?;
        let other = PublicKey::from(&secret(other));
        let tunnel = Tunn::new(secret(own), other, None, None, own as u32, None);
        Ok(Self { tunnel, socket, heard: 0 })
    }

    fn address(&self) -> Result<SocketAddrV4> {
        match self.socket.local_addr()? {
            std::net::SocketAddr::V4(address) => Ok(address),
            std::net::SocketAddr::V6(address) => bail!("{address} is of IPv6"),
        }
    }

    /// The message that carries a packet to the other peer, or begins a handshake; the packet then waits.
    fn message(&mut self) -> Result<Option<Vec<u8>>> {
        let mut packet = [0; 20];
        (packet[0], packet[3]) = (0x45, 20);
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        match self.tunnel.encapsulate(&packet, &mut buffer) {
            TunnResult::WriteToNetwork(message) => Ok(Some(message.to_vec())),
            TunnResult::Done => Ok(None),
            other => bail!("boringtun: {other:?}"),
        }
    }

    fn send(&mut self) -> Result<()> {
        if let Some(message) = self.message()? {
            self.socket.send(&message)?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let mut datagram = [0; DATAGRAM_LEN_MAX];
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let Ok(len) = self.socket.recv(&mut datagram) else { return Ok(()) };
        let mut result = self.tunnel.decapsulate(None, &datagram[..len], &mut buffer);
        // Packets that waited for the handshake follow as long as asked for with nothing.
        while let TunnResult::WriteToNetwork(answer) = result {
            self.socket.send(answer)?;
            result = self.tunnel.decapsulate(None, &[], &mut buffer);
        }
        self.heard += usize::from(matches!(result, TunnResult::WriteToTunnelV4(..)));
        Ok(())
    }

    fn look_at_timers(&mut self) -> Result<()> {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        if let TunnResult::WriteToNetwork(message) = self.tunnel.update_timers(&mut buffer) {
            self.socket.send(message)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_have_keys_of_their_own() {
        let keys: std::collections::HashSet<_> = (0..16).map(public_key).collect();
        assert_eq!(keys.len(), 16);
    }
}
