//! Where the kernel would send a packet: interface and Ethernet stations.
//!
//! Owns what is known of routes, neighbours, links and own addresses of this network namespace, by
//! rtnetlink. It changes nothing there and asks no neighbour: those appear as the sockets use them.
//! The keeper of the fast path asks it for each flow.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
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
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use socket2::SockRef;

use crate::observe::SocketReason;

/// Groups of news that can change a next hop (`RTMGRP_*` of `linux/rtnetlink.h`): links,
/// neighbours, addresses and routes of both families.
const NEWS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;
/// Routes remembered at most; beyond that they are asked for anew.
const ROUTES_MAX: usize = 65_536;

/// An Ethernet address.
pub(super) type Station = [u8; 6];

/// Answers that are read off the socket of news at a time.
const NEWS_MAX: usize = 1024;
/// How long the kernel is waited for. It answers within the call, or never.
const ANSWER_TIME: Duration = Duration::from_secs(1);

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
    /// The interface that it is a VLAN of.
    vlan_of: Option<u32>,
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
    routes: HashMap<(SocketAddr, SocketAddr), Option<Route>>,
}

impl Neighbourhood {
    /// What the calling thread's network namespace knows now.
    pub(super) fn open() -> io::Result<Self> {
        let mut questions = Socket::new(NETLINK_ROUTE)?;
        SockRef::from(&questions).set_read_timeout(Some(ANSWER_TIME))?;
        questions.bind_auto()?;
        questions.connect(&NetlinkAddr::new(0, 0))?;
        let mut news = Socket::new(NETLINK_ROUTE)?;
        news.bind(&NetlinkAddr::new(0, NEWS))?;
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
        for taken in 0..NEWS_MAX {
            match self.news.recv_from_full() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return taken > 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: news got lost. Anything else will say so again.
                Err(_) => return true,
            }
        }
        true
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

    /// Own addresses of all interfaces but the VLANs of those in `attached`: a card may have taken
    /// the tag off before a program sees the frame, which then seems to be for the interface itself.
    pub(super) fn addresses_without_vlans(&self, attached: &[u32]) -> HashSet<IpAddr> {
        let of_attached = |interface: &u32| {
            let parent = self.links.get(interface).and_then(|link| link.vlan_of);
            parent.is_some_and(|parent| attached.contains(&parent))
        };
        let untagged = self.addresses.iter().filter(|(interface, _)| !of_attached(interface));
        untagged.flat_map(|(_, ips)| ips).copied().collect()
    }

    /// Whether an interface is there.
    pub(super) fn exists(&self, interface: u32) -> bool {
        self.links.contains_key(&interface)
    }

    /// How a packet from `from`, an address of ours, to `to` leaves, or why that is not known or
    /// takes more than a frame to one station: a tunnel, a path narrower than its interface.
    pub(super) fn next_hop(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<Result<NextHop, SocketReason>> {
        let route = self.route(from, to)?;
        Ok(route.ok_or(SocketReason::Route).and_then(|Route { interface, neighbour }| {
            let hop = self.links.get(&interface).zip(self.stations.get(&(interface, neighbour)));
            let hop =
                hop.map(|(link, it)| NextHop { interface, to: it.station, from: link.station });
            hop.ok_or(SocketReason::Neighbour)
        }))
    }

    /// The neighbour that a packet from `from` to `to` goes to first, by interface and address, if
    /// its station is known from long ago. Only of ways that were asked for since the refresh.
    pub(super) fn stale_neighbour(
        &self,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<(u32, IpAddr)> {
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

    fn route(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<Option<Route>> {
        if let Some(known) = self.routes.get(&(from, to)) {
            return Ok(*known);
        }
        let mut message = RouteMessage::default();
        message.header.address_family = family(to.ip());
        (message.header.source_prefix_length, message.header.destination_prefix_length) =
            (bits(from.ip()), bits(to.ip()));
        // All that rules go by, so that they lead here as they lead the sockets.
        message.attributes = vec![
            RouteAttribute::Source(from.ip().into()),
            RouteAttribute::Destination(to.ip().into()),
            RouteAttribute::IpProto(libc::IPPROTO_UDP as u8),
            RouteAttribute::Sport(from.port()),
            RouteAttribute::Dport(to.port()),
        ];
        let mut found = None;
        let asked = self.ask(RouteNetlinkMessage::GetRoute(message), 0, |answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer {
                found = Some(route);
            }
        });
        let route = match asked {
            Ok(()) => found.and_then(|route| self.read_route(&route, to.ip())),
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
        let mut torn = false;
        loop {
            let (answers, _) = self.questions.recv_from_full()?;
            for answer in messages(&answers) {
                let answer = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer) {
                    Ok(answer) => answer,
                    // In a list, what the library cannot read is about something else.
                    Err(_) if flags & NLM_F_DUMP != 0 => continue,
                    Err(error) => return Err(io::Error::other(error)),
                };
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
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
                    NetlinkPayload::Done(_) if torn => {
                        return Err(io::Error::other(
                            "the kernel's table changed while it was read",
                        ));
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
    let (mut station, mut mtu, mut parent) = (None, 0, None);
    let (mut is_pair, mut is_vlan) = (false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(info) => {
                is_pair = info.contains(&LinkInfo::Kind(InfoKind::Veth));
                is_vlan = info.contains(&LinkInfo::Kind(InfoKind::Vlan));
            }
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::Address(bytes) => station = Station::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    let vlan_of = parent.filter(|_| is_vlan);
    Some((link.header.index, Link { station: station?, mtu, is_pair, vlan_of }))
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
    use std::slice;

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
    fn knows_its_own_loopback() {
        let mut hood = Neighbourhood::open().expect("rtnetlink asks for no privilege");
        let lo = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert!(hood.addresses_without_vlans(&[]).contains(&lo));
        let there = SocketAddr::new(lo, 9);
        assert_eq!(hood.next_hop(there, there).expect("an answer"), Err(SocketReason::Route));
        hood.refresh().expect("again");
        let index = *hood.addresses.iter().find(|(_, ips)| ips.contains(&lo)).expect("lo").0;
        assert!(hood.addresses_of(index).contains(&lo) && hood.exists(index));
        assert!(hood.mtu(index) > 0 && !hood.is_pair(index));
    }

    /// A host with one interface, number 7, and a VLAN of it, number 8.
    fn host() -> Neighbourhood {
        let mut hood = Neighbourhood::open().expect("rtnetlink asks for no privilege");
        let link = Link { station: [1; 6], mtu: 1500, is_pair: false, vlan_of: None };
        hood.links = HashMap::from([(7, link), (8, Link { vlan_of: Some(7), ..link })]);
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        hood.addresses = HashMap::from([(7, vec![ip(1)]), (8, vec![ip(2)])]);
        hood
    }

    #[test]
    fn addresses_of_vlans_are_not_the_interfaces_own() {
        let hood = host();
        assert_eq!(hood.addresses_without_vlans(&[7]), HashSet::from([[192, 0, 2, 1].into()]));
        assert_eq!(hood.addresses_without_vlans(&[8]).len(), 2);
    }

    #[test]
    fn only_a_way_to_one_station_as_wide_as_its_interface_is_a_route() {
        let hood = host();
        let to = IpAddr::from([198, 51, 100, 1]);
        let gateway = IpAddr::from([192, 0, 2, 254]);
        let read = |kind, attributes: &[RouteAttribute]| {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = attributes.to_vec();
            hood.read_route(&message, to)
        };
        let oif = RouteAttribute::Oif(7);
        let via = |neighbour| Some(Route { interface: 7, neighbour });
        let mtu = |mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]);
        let unicast = RouteType::Unicast;
        assert_eq!(read(unicast, slice::from_ref(&oif)), via(to));
        let by_gateway = [RouteAttribute::Gateway(gateway.into()), oif.clone()];
        assert_eq!(read(unicast, &by_gateway), via(gateway));
        let v6 = "2001:db8::1".parse().expect("an address");
        let by_v6 = [oif.clone(), RouteAttribute::Via(RouteVia::Inet6(v6))];
        assert_eq!(read(unicast, &by_v6), via(v6.into()));
        assert_eq!(read(unicast, &[mtu(1500), oif.clone()]), via(to));
        assert_eq!(read(unicast, &[mtu(1400), oif.clone()]), None);
        assert_eq!(read(unicast, &[oif.clone(), RouteAttribute::Encap(Vec::new())]), None);
        assert_eq!(read(unicast, &[]), None);
        for kind in [RouteType::Local, RouteType::BlackHole, RouteType::Broadcast] {
            assert_eq!(read(kind, slice::from_ref(&oif)), None, "{kind:?}");
        }
    }
}
