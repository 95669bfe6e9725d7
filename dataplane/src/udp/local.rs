//! Our own addresses, numbered for the whole process.
//!
//! Owns the numbers ([`PortId`]) by which the relay, every core's flow table and the XDP map mean one
//! of our addresses: first one for each address listened on, then one for each address of the host
//! that a peer reached through a socket bound to all of them. Numbers are never taken back. Cores
//! read without a lock; a new number is rare.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, OnceLock, PoisonError};

use proto::wireguard::PortId;

/// Numbers there are. What comes to further addresses leaves from the one the kernel chooses.
pub const LOCALS_MAX: usize = 64;

/// One of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Local {
    /// The socket, by its place among a core's ports.
    pub(super) socket: usize,
    /// The address, where the socket is bound to all of them.
    pub(super) ip: Option<IpAddr>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Locals {
    /// Filled from the front, without gaps.
    slots: [OnceLock<Local>; LOCALS_MAX],
    /// Held while one is filled.
    filling: Mutex<()>,
    /// What each socket is bound to.
    bound: Box<[SocketAddr]>,
}

impl Locals {
    /// The numbers of sockets that are bound to these addresses, at most [`LOCALS_MAX`].
    pub(super) fn new(bound: &[SocketAddr]) -> Self {
        let locals = Self {
            slots: [const { OnceLock::new() }; LOCALS_MAX],
            filling: Mutex::new(()),
            bound: bound.into(),
        };
        for (socket, slot) in locals.slots.iter().enumerate().take(bound.len()) {
            slot.get_or_init(|| Local { socket, ip: None });
        }
        locals
    }

    /// The address that `port` stands for; `None` for a number that was never given out.
    #[inline]
    pub(super) fn find(&self, port: PortId) -> Option<Local> {
        self.slots.get(usize::from(port.0))?.get().copied()
    }

    /// The address and port that `port` stands for. The address is unspecified for a socket that is
    /// bound to all of them; those that peers reached it by have numbers of their own.
    pub(super) fn address(&self, port: PortId) -> Option<SocketAddr> {
        let Local { socket, ip } = self.find(port)?;
        let bound = self.bound.get(socket)?;
        Some(SocketAddr::new(ip.unwrap_or(bound.ip()), bound.port()))
    }

    /// The number of `local`, as [`Locals::address`] gives it; `None` if no socket is bound to it.
    pub(super) fn port(&self, local: SocketAddr) -> Option<PortId> {
        let sockets = self.bound.iter().enumerate();
        let exact = sockets.clone().find(|(_, bound)| **bound == local);
        exact.map(|(socket, _)| PortId(socket as u8)).or_else(|| {
            let reaches = |bound: &SocketAddr| {
                bound.ip().is_unspecified()
                    && bound.port() == local.port()
                    && (bound.is_ipv6() || local.is_ipv4())
            };
            let (socket, _) = sockets.clone().find(|(_, bound)| reaches(bound))?;
            Some(self.number(socket, local.ip()))
        })
    }

    /// The number of the address `ip` of `socket`, which is bound to all of them.
    pub(super) fn number(&self, socket: usize, ip: IpAddr) -> PortId {
        let wanted = Local { socket, ip: Some(ip) };
        self.search(wanted).unwrap_or_else(|| self.fill(wanted))
    }

    fn search(&self, wanted: Local) -> Option<PortId> {
        let known = self.slots.iter().map_while(OnceLock::get);
        known.zip(0..).find(|(local, _)| **local == wanted).map(|(_, at)| PortId(at))
    }

    #[cold]
    fn fill(&self, wanted: Local) -> PortId {
        let _filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = self.search(wanted) {
            return port;
        }
        for (slot, at) in self.slots.iter().zip(0..) {
            if slot.set(wanted).is_ok() {
                return PortId(at);
            }
        }
        // Every socket has the number of its own place.
        PortId(wanted.socket as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_name_their_address() {
        let locals =
            Locals::new(&["[2001:db8::1]:1", "[::]:2"].map(|it| it.parse().expect("an address")));
        let ip: IpAddr = [192, 0, 2, 1].into();
        assert_eq!(locals.find(PortId(1)), Some(Local { socket: 1, ip: None }));
        assert_eq!(locals.find(PortId(2)), None);
        assert_eq!(locals.number(1, ip), PortId(2));
        assert_eq!(locals.number(0, ip), PortId(3));
        assert_eq!(locals.number(1, ip), PortId(2));
        assert_eq!(locals.find(PortId(2)), Some(Local { socket: 1, ip: Some(ip) }));
        let local = |text: &str| locals.port(text.parse().expect("an address"));
        assert_eq!(local("[2001:db8::1]:1"), Some(PortId(0)));
        assert_eq!(local("192.0.2.1:2"), Some(PortId(2)));
        assert_eq!(local("192.0.2.1:1"), None);
        let addresses = [0, 1, 2, 4].map(|port| locals.address(PortId(port)));
        let expected = ["[2001:db8::1]:1", "[::]:2", "192.0.2.1:2"].map(|it| it.parse().ok());
        assert_eq!(addresses, [expected[0], expected[1], expected[2], None]);
    }

    #[test]
    fn addresses_beyond_the_last_number_share_that_of_their_socket() {
        let locals = Locals::new(&["[::]:1".parse().expect("an address")]);
        for last in 0..=u8::MAX {
            let port = locals.number(0, [127, 0, 0, last].into());
            let expected = if usize::from(last) + 1 < LOCALS_MAX { last + 1 } else { 0 };
            assert_eq!(port, PortId(expected));
        }
    }
}
