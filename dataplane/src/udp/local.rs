//! Our own addresses, numbered for the whole process.
//!
//! Owns the numbers ([`PortId`]) by which the relay, every core's flow table and the XDP map mean one
//! of our addresses: first one for each address listened on, then one for each address of the host
//! that a peer reached through a socket bound to all of them. Numbers are never taken back, so
//! nothing gets one before the relay has use for it. Cores read without a lock; a new number is rare.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

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

    /// The number of `local`, as [`Locals::address`] gives it; `None` if no socket is bound to it or
    /// there are no numbers left.
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
            Some(self.offer(socket, local.ip())?.keep())
        })
    }

    /// The number of what a datagram came to, if it has one: to `socket`, and to the address `ip`
    /// where that is bound to all.
    #[inline]
    pub(super) fn known(&self, socket: usize, ip: Option<IpAddr>) -> Option<PortId> {
        match ip {
            Some(_) => self.search(Local { socket, ip }),
            None => Some(PortId(socket as u8)),
        }
    }

    /// The number that the address `ip` of `socket` has or would get. `None` if there is no further
    /// one.
    pub(super) fn offer(&self, socket: usize, ip: IpAddr) -> Option<Offer<'_>> {
        let filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = Local { socket, ip: Some(ip) };
        let port = self.search(wanted).or_else(|| {
            let free = self.slots.iter().zip(0..).find(|(slot, _)| slot.get().is_none());
            free.map(|(_, at)| PortId(at))
        })?;
        Some(Offer { locals: self, port, wanted, _filling: filling })
    }

    /// Whether `remote` is an address and port of ours, as far as is known: bound to, or reached
    /// before, or where this datagram came to.
    #[inline]
    pub(super) fn is_ours(&self, remote: SocketAddr, reached: Option<IpAddr>) -> bool {
        self.bound.iter().any(|bound| bound.port() == remote.port())
            && self.is_our_address(remote, reached)
    }

    #[cold]
    fn is_our_address(&self, remote: SocketAddr, reached: Option<IpAddr>) -> bool {
        let ip = remote.ip().to_canonical();
        let here = reached.map(|ip| ip.to_canonical()) == Some(ip);
        let known = self.slots.iter().map_while(OnceLock::get).any(|it| it.ip == Some(ip));
        self.bound.iter().any(|bound| {
            let all = bound.ip().is_unspecified();
            bound.port() == remote.port() && (bound.ip() == ip || all && (here || known))
        })
    }

    #[inline]
    fn search(&self, wanted: Local) -> Option<PortId> {
        let known = self.slots.iter().map_while(OnceLock::get);
        known.zip(0..).find(|(local, _)| **local == wanted).map(|(_, at)| PortId(at))
    }
}

/// A number that is not given out yet, or is what its address has already. Nobody else gets one
/// meanwhile.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    locals: &'a Locals,
    port: PortId,
    wanted: Local,
    _filling: MutexGuard<'a, ()>,
}

impl Offer<'_> {
    pub(super) const fn port(&self) -> PortId {
        self.port
    }

    /// From now on it is the number of its address.
    pub(super) fn keep(self) -> PortId {
        if let Some(slot) = self.locals.slots.get(usize::from(self.port.0)) {
            slot.get_or_init(|| self.wanted);
        }
        self.port
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
        let number = |socket| locals.offer(socket, ip).expect("a number is left");
        assert_eq!((locals.known(1, Some(ip)), number(1).port()), (None, PortId(2)));
        assert_eq!(locals.known(1, Some(ip)), None, "it was not kept");
        assert_eq!(number(1).keep(), PortId(2));
        assert_eq!(number(0).keep(), PortId(3));
        assert_eq!((number(1).keep(), locals.known(1, Some(ip))), (PortId(2), Some(PortId(2))));
        assert_eq!(locals.known(1, None), Some(PortId(1)));
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
    fn there_are_so_many_numbers_and_no_more() {
        let locals = Locals::new(&["[::]:1".parse().expect("an address")]);
        for last in 0..=u8::MAX {
            let offer = locals.offer(0, [127, 0, 0, last].into()).map(Offer::keep);
            let expected = (usize::from(last) + 1 < LOCALS_MAX).then(|| PortId(last + 1));
            assert_eq!(offer, expected);
        }
        assert_eq!(locals.port("127.0.0.9:1".parse().expect("an address")), Some(PortId(10)));
        assert_eq!(locals.port("127.0.0.99:1".parse().expect("an address")), None);
    }

    #[test]
    fn what_we_are_bound_to_is_ours_and_nothing_else() {
        let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let locals = Locals::new(&["192.0.2.1:1", "[::]:2"].map(addr));
        let reached: IpAddr = [192, 0, 2, 2].into();
        for (remote, reached, ours) in [
            ("192.0.2.1:1", None, true),
            ("192.0.2.1:2", None, false),
            ("192.0.2.2:1", Some(reached), false),
            ("192.0.2.2:2", Some(reached), true),
            ("[::ffff:192.0.2.2]:2", Some(reached), true),
            ("192.0.2.3:2", Some(reached), false),
            ("192.0.2.2:3", Some(reached), false),
        ] {
            assert_eq!(locals.is_ours(addr(remote), reached), ours, "{remote}");
        }
        let _ = locals.offer(1, [192, 0, 2, 3].into()).map(Offer::keep);
        assert!(locals.is_ours(addr("192.0.2.3:2"), Some(reached)));
    }
}
