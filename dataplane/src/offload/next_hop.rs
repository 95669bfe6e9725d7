//! Where the kernel would send a packet: interface and Ethernet stations.
//!
//! Owns what is known of routes, neighbours, links and own addresses of this network namespace, by
//! rtnetlink. It changes nothing there and asks no neighbour: those appear as the sockets use them.
//! The keeper of the fast path asks it for each flow.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Groups of news that can change a next hop (`RTMGRP_*` of `linux/rtnetlink.h`): links,
/// neighbours, addresses and routes of both families.
const NEWS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;
/// Routes remembered at most; beyond that they are asked for anew.
const ROUTES_MAX: usize = 65_536;

/// An Ethernet address.
pub(super) type Station = [u8; 6];

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NextHop {
    /// Index of the interface.
    pub(super) interface: u32,
    /// Whom the frame is for.
    pub(super) to: Station,
    /// Its source, the interface's own.
    pub(super) from: Station,
}

/// An Ethernet interface that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    station: Station,
    mtu: u32,
    /// One end of a virtual pair.
    is_pair: bool,
}

/// A neighbour whose station is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Neighbour {
    station: Station,
    /// The kernel has not heard of it for a while, and will ask when it next sends to it.
    stale: bool,
}

/// A way by an interface, to a gateway or to a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    interface: u32,
    neighbour: IpAddr,
}

/// See the module.
pub(super) struct Neighbourhood {
    questions: Socket,
    news: Socket,
    sequence: u32,
    links: HashMap<u32, Link>,
    stations: HashMap<(u32, IpAddr), Neighbour>,
    addresses: HashMap<u32, Vec<IpAddr>>,
    /// By source and destination, as asked since the last refresh.
    routes: HashMap<(IpAddr, IpAddr), Option<Route>>,
}

impl Neighbourhood {
    /// What the calling thread's network namespace knows now.
    pub(super) fn open() -> io::Result<Self> {
        let mut questions = Socket::new(NETLINK_ROUTE)?;
        questions.bind_auto()?;
        questions.connect(&SocketAddr::new(0, 0))?;
        let mut news = Socket::new(NETLINK_ROUTE)?;
        news.bind(&SocketAddr::new(0, NEWS))?;
        news.set_non_blocking(true)?;
        let mut hood = Self {
            questions,
            news,
            sequence: 0,
            links: HashMap::new(),
            stations: HashMap::new(),
            addresses: HashMap::new(),
            routes: HashMap::new(),
        };
        hood.refresh()?;
        Ok(hood)
    }

    /// Becomes readable when something has changed.
    pub(super) fn news_fd(&self) -> RawFd {
        self.news.as_raw_fd()
    }

    /// Takes the news off its socket. `true` if there were any, or too many to be kept.
    pub(super) fn take_news(&self) -> bool {
        let mut any = false;
        loop {
            match self.news.recv_from_full() {
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return any,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: news got lost. Anything else will say so again.
                Err(_) => return true,
            }
        }
    }

    /// Asks the kernel for everything anew.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        let (mut links, mut stations) = (HashMap::new(), HashMap::new());
        let mut addresses = HashMap::<_, Vec<_>>::new();
        self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                links.extend(read_link(&link));
            }
        })?;
        let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        self.ask(question, NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewNeighbour(neighbour) = answer {
                stations.extend(read_neighbour(&neighbour));
            }
        })?;
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.ask(question, NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewAddress(address) = answer
                && let Some(ip) = read_address(&address)
            {
                addresses.entry(address.header.index).or_default().push(ip);
            }
        })?;
        self.routes.clear();
        (self.links, self.stations, self.addresses) = (links, stations, addresses);
        Ok(())
    }

    /// Own addresses of the interface with this index.
    pub(super) fn addresses_of(&self, interface: u32) -> &[IpAddr] {
        self.addresses.get(&interface).map_or(&[], Vec::as_slice)
    }

    /// Own addresses of all interfaces.
    pub(super) fn addresses(&self) -> HashSet<IpAddr> {
        self.addresses.values().flatten().copied().collect()
    }

    /// How a packet from `from`, an address of ours, to `to` leaves. `None` if that is not known, or
    /// takes more than a frame to one station: a tunnel, a path narrower than its interface.
    pub(super) fn next_hop(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Option<NextHop>> {
        let Some(Route { interface, neighbour }) = self.route(from, to)? else { return Ok(None) };
        let hop = self.links.get(&interface).zip(self.stations.get(&(interface, neighbour)));
        Ok(hop.map(|(link, it)| NextHop { interface, to: it.station, from: link.station }))
    }

    /// The neighbour that a packet from `from` to `to` goes to first, by interface and address, if
    /// its station is known from long ago. Only of ways that were asked for since the refresh.
    pub(super) fn stale_neighbour(&self, from: IpAddr, to: IpAddr) -> Option<(u32, IpAddr)> {
        let Route { interface, neighbour } = (*self.routes.get(&(from, to))?)?;
        let hop = (interface, neighbour);
        self.stations.get(&hop).filter(|it| it.stale).map(|_| hop)
    }

    /// Whether an interface is one end of a virtual pair, as containers have.
    pub(super) fn is_pair(&self, interface: u32) -> bool {
        self.links.get(&interface).is_some_and(|link| link.is_pair)
    }

    /// Bytes of the longest packet that an interface takes; 0 if it is gone.
    pub(super) fn mtu(&self, interface: u32) -> u32 {
        self.links.get(&interface).map_or(0, |link| link.mtu)
    }

    fn route(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Option<Route>> {
        if let Some(known) = self.routes.get(&(from, to)) {
            return Ok(*known);
        }
        let mut message = RouteMessage::default();
        message.header.address_family = family(to);
        (message.header.source_prefix_length, message.header.destination_prefix_length) =
            (bits(from), bits(to));
        message.attributes =
            vec![RouteAttribute::Source(from.into()), RouteAttribute::Destination(to.into())];
        let mut found = None;
        let asked = self.ask(RouteNetlinkMessage::GetRoute(message), 0, |answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer {
                found = Some(route);
            }
        });
        let route = match asked {
            Ok(()) => found.and_then(|route| self.read_route(&route, to)),
            // No such route: the kernel's word, not a failure of asking.
            Err(error) if error.raw_os_error().is_some_and(is_no_route) => None,
            Err(error) => return Err(error),
        };
        if self.routes.len() >= ROUTES_MAX {
            self.routes.clear();
        }
        self.routes.insert((from, to), route);
        Ok(route)
    }

    fn read_route(&self, route: &RouteMessage, to: IpAddr) -> Option<Route> {
        if route.header.kind != RouteType::Unicast {
            return None;
        }
        let (mut interface, mut neighbour, mut narrowed) = (None, to, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::Gateway(gateway) => neighbour = route_address(gateway)?,
                RouteAttribute::Via(RouteVia::Inet(ip)) => neighbour = (*ip).into(),
                RouteAttribute::Via(RouteVia::Inet6(ip)) => neighbour = (*ip).into(),
                RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => return None,
                RouteAttribute::Metrics(metrics) => {
                    narrowed = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        let interface = interface?;
        let fits = narrowed.is_none_or(|mtu| mtu >= self.mtu(interface));
        fits.then_some(Route { interface, neighbour })
    }

    /// Asks the kernel, and lends each of its answers to `each`.
    fn ask(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.questions.send(&bytes, 0)?;
        loop {
            let (answers, _) = self.questions.recv_from_full()?;
            for answer in messages(&answers) {
                // What this version of the library cannot read is about something else.
                let Ok(answer) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer) else {
                    continue;
                };
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        each(inner);
                        if flags & NLM_F_DUMP == 0 {
                            return Ok(());
                        }
                    }
                    NetlinkPayload::Error(error) => {
                        return if error.code.is_some() { Err(error.to_io()) } else { Ok(()) };
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

/// The messages of a datagram, each of which begins with its length and is padded to four bytes.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, _) = bytes.split_first_chunk()?;
        let len = u32::from_ne_bytes(*len) as usize;
        let message = bytes.get(..len).filter(|message| message.len() >= 16)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn is_no_route(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES | libc::ENODEV
    )
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// An interface with an Ethernet address.
fn read_link(link: &LinkMessage) -> Option<(u32, Link)> {
    let (mut station, mut mtu, mut is_pair) = (None, 0, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(info) => {
                is_pair = info.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::Address(bytes) => station = Station::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    Some((link.header.index, Link { station: station?, mtu, is_pair }))
}

/// A neighbour whose station is known.
fn read_neighbour(neighbour: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let stale = match neighbour.header.state {
        NeighbourState::Stale => true,
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent => false,
        _ => return None,
    };
    let (mut ip, mut station) = (None, None);
    for attribute in &neighbour.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(it)) => ip = Some((*it).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(it)) => ip = Some((*it).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                station = Station::try_from(bytes.as_slice()).ok();
            }
            _ => {}
        }
    }
    Some(((neighbour.header.ifindex, ip?), Neighbour { station: station?, stale }))
}

/// An address of ours: of the two of a point-to-point link the local one.
fn read_address(address: &AddressMessage) -> Option<IpAddr> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        address.attributes.iter().find_map(wanted)
    };
    find(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn cuts_datagrams_into_messages() {
        let message = |len: u32, fill: u8| {
            let mut bytes = vec![fill; len.next_multiple_of(4) as usize];
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            bytes
        };
        let both = [message(18, 1), message(16, 2)].concat();
        let lens: Vec<_> = messages(&both).map(<[u8]>::len).collect();
        assert_eq!(lens, [18, 16]);
        assert_eq!(messages(&both[..17]).count(), 0);
        assert_eq!(messages(&message(3, 0)).count(), 0);
        assert_eq!(messages(&[0; 3]).count(), 0);
    }

    #[test]
    fn knows_loopback_and_no_way_to_it() {
        let mut hood = Neighbourhood::open().expect("rtnetlink asks for no privilege");
        let lo = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert!(hood.addresses().contains(&lo));
        // A local route takes no frame to a station.
        assert_eq!(hood.next_hop(lo, lo).expect("an answer"), None);
        hood.refresh().expect("again");
        let index = hood.addresses.iter().find(|(_, ips)| ips.contains(&lo)).expect("lo").0;
        assert!(hood.addresses_of(*index).contains(&lo));
        assert!(hood.mtu(*index) > 0);
    }
}
