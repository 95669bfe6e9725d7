//! WireGuard data on its way out, gathered while one window's worth of datagrams is looked at.
//!
//! Owns the order and the manner of sending: runs leave as they came; single datagrams of one flow
//! are copied together and leave as a run (measured on loopback, 1.2 KB each and a backlog: 1.6 times
//! the packets per CPU-second); what is alone leaves with others of its socket in one system call.
//! Within a flow nothing overtakes.

use std::net::{IpAddr, SocketAddr};

use proto::wireguard::{FlowTarget, LinkId};
use quinn_udp::EcnCodepoint;
use wire::drop::DropReason;

use super::local::{Local, Locals};
use super::socket::{BATCH, Course, RUN_LEN_MAX, RUN_SEGMENTS_MAX};
use super::{Round, UdpPort};
use crate::observe::{LinkCells, PacketKind};

/// Departures gathered before they are sent.
pub(super) const DEPARTURES_MAX: usize = 128;
/// Places for the latest departure of a flow: twice the flows that can be among them.
const LATEST_LEN: usize = 2 * DEPARTURES_MAX;
/// No departure's index.
const NONE: u8 = u8::MAX;
const _: () = assert!(DEPARTURES_MAX <= NONE as usize, "every index fits its byte");

/// A datagram, or a run of them, for one place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure<'a> {
    pub(super) bytes: &'a [u8],
    /// Bytes of each datagram but the last.
    pub(super) stride: usize,
    pub(super) target: FlowTarget,
    pub(super) ecn: Option<EcnCodepoint>,
}

impl Departure<'_> {
    fn is_run(&self) -> bool {
        self.bytes.len() > self.stride
    }

    fn goes_with(&self, other: &Self) -> bool {
        self.target.to == other.target.to && self.target.link == other.target.link
    }

    /// Where to look for the latest of its flow. Links of a relay are numbered one after another, and
    /// the two flows of one differ in their ports or addresses.
    fn hash(&self) -> usize {
        let remote = self.target.to.remote();
        let host = match remote.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        let link = self.target.link.0 as usize;
        (2 * link).wrapping_add(remote.port().into()).wrapping_add(host.into()) % LATEST_LEN
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Departures<'a> {
    list: [Option<Departure<'a>>; DEPARTURES_MAX],
    /// For each, the next of its flow.
    next: [u8; DEPARTURES_MAX],
    /// The latest of each flow, by its hash. Of two flows in one place the newer has it: the other's
    /// departures are then in several chains, one after another.
    latest: [u8; LATEST_LEN],
    len: usize,
    runs: bool,
}

/// What sending needs.
pub(super) struct Gate<'a> {
    pub(super) ports: &'a mut [UdpPort],
    pub(super) locals: &'a Locals,
    /// Where single datagrams are copied together; [`RUN_LEN_MAX`] bytes.
    pub(super) scratch: &'a mut [u8],
    pub(super) links: &'a LinkCells,
}

impl<'a> Departures<'a> {
    pub(super) const fn new() -> Self {
        let (next, latest) = ([NONE; DEPARTURES_MAX], [NONE; LATEST_LEN]);
        Self { list: [None; DEPARTURES_MAX], next, latest, len: 0, runs: false }
    }

    /// Whether there are runs among them, which nothing more can be merged with.
    pub(super) fn has_runs(&self) -> bool {
        self.runs
    }

    pub(super) fn is_full(&self) -> bool {
        self.len == DEPARTURES_MAX
    }

    /// Adds one; there must be room.
    pub(super) fn push(&mut self, departure: Departure<'a>) {
        debug_assert!(!self.is_full(), "the caller flushes a full list");
        let Some(slot) = self.list.get_mut(self.len) else { return };
        *slot = Some(departure);
        let hash = departure.hash();
        let latest = usize::from(std::mem::replace(&mut self.latest[hash], self.len as u8));
        if let Some(Some(latest_departure)) = self.list.get(latest)
            && latest_departure.goes_with(&departure)
        {
            self.next[latest] = self.len as u8;
        }
        self.len += 1;
        self.runs |= departure.is_run();
    }

    /// Sends everything and counts what became of it. Returns the datagrams of runs that had to
    /// leave singly.
    pub(super) fn flush(&mut self, gate: &mut Gate<'_>, round: &Round<'_>) -> usize {
        let mut apart = 0;
        let mut singles = Singles { list: [None; BATCH], len: 0 };
        for at in 0..self.len {
            // Those that left with an earlier one are gone from the list.
            let Some(departure) = self.list[at].take() else { continue };
            if departure.is_run() {
                singles.flush(gate, round);
                apart += gate.send_run(&departure, departure.bytes.len(), false, round);
                continue;
            }
            let (len, count) = self.gather(&departure, at, gate.scratch);
            if count > 1 {
                singles.flush(gate, round);
                apart += gate.send_run(&departure, len, true, round);
            } else {
                singles.push(&departure, gate, round);
            }
        }
        singles.flush(gate, round);
        if self.len > 0 {
            *self = Self::new();
        }
        apart
    }

    /// Copies `leader`, which was in the place `at`, and those that may follow it in a run to
    /// `scratch`, if there are any, and takes them off the list. Gives bytes and datagrams copied.
    fn gather(&mut self, leader: &Departure<'a>, at: usize, scratch: &mut [u8]) -> (usize, usize) {
        let (mut len, mut count) = (leader.bytes.len(), 1);
        let mut at = usize::from(self.next[at]);
        while let Some(Some(next)) = self.list.get(at) {
            let end = len + next.bytes.len();
            let fits = next.bytes.len() <= leader.bytes.len()
                && next.ecn == leader.ecn
                && !next.is_run()
                && end <= scratch.len().min(RUN_LEN_MAX)
                && count < RUN_SEGMENTS_MAX;
            if !fits {
                break;
            }
            if count == 1 {
                scratch[..len].copy_from_slice(leader.bytes);
            }
            scratch[len..end].copy_from_slice(next.bytes);
            let is_last = next.bytes.len() < leader.bytes.len();
            self.list[at] = None;
            at = usize::from(self.next[at]);
            (len, count) = (end, count + 1);
            if is_last {
                break;
            }
        }
        (len, count)
    }
}

impl Gate<'_> {
    /// Sends the run `departure`, or `len` bytes of the scratch in its place. Returns the datagrams
    /// that had to leave singly.
    fn send_run(
        &mut self,
        departure: &Departure<'_>,
        len: usize,
        gathered: bool,
        round: &Round<'_>,
    ) -> usize {
        let Departure { bytes, stride, target, ecn } = *departure;
        let (bytes, stride) =
            if gathered { (&self.scratch[..len], bytes.len()) } else { (bytes, stride) };
        let account = Account { round, links: self.links, link: target.link };
        let Some(local) = self.locals.find(target.to.port()) else {
            account.book(bytes.len(), bytes.len().div_ceil(stride), false);
            return 0;
        };
        let course = Course { to: target.to.remote(), from: local.ip, ecn };
        round.counters.wireguard_runs.increment();
        self.ports[local.socket].socket.send_run(
            &course,
            bytes,
            stride,
            round.now,
            &mut |bytes, packets, left| account.book(bytes, packets, left),
        )
    }
}

/// Departures that are alone, for sending many in one call.
struct Singles<'a> {
    list: [Option<(Departure<'a>, Local)>; BATCH],
    len: usize,
}

impl<'a> Singles<'a> {
    fn push(&mut self, departure: &Departure<'a>, gate: &mut Gate<'_>, round: &Round<'_>) {
        let Some(local) = gate.locals.find(departure.target.to.port()) else {
            let account = Account { round, links: gate.links, link: departure.target.link };
            return account.book(departure.bytes.len(), 1, false);
        };
        if self.len == BATCH {
            self.flush(gate, round);
        }
        self.list[self.len] = Some((*departure, local));
        self.len += 1;
    }

    fn flush(&mut self, gate: &mut Gate<'_>, round: &Round<'_>) {
        let mut rest = &self.list[..std::mem::take(&mut self.len)];
        while let Some(Some((departure, local))) = rest.first() {
            let links = gate.links;
            let book = |departure: &Departure<'_>, left| {
                let account = Account { round, links, link: departure.target.link };
                account.book(departure.bytes.len(), 1, left);
            };
            let socket = &mut gate.ports[local.socket].socket;
            if local.ip.is_some() || departure.ecn.is_some() {
                let to = departure.target.to.remote();
                let course = Course { to, from: local.ip, ecn: departure.ecn };
                book(departure, socket.send(&course, departure.bytes, round.now).is_ok());
                rest = &rest[1..];
                continue;
            }
            let alike = rest
                .iter()
                .flatten()
                .take_while(|(departure, of)| of == local && departure.ecn.is_none());
            let mut batch = [(SocketAddr::from(([0; 4], 0)), &[][..]); BATCH];
            let mut len = 0;
            for (slot, (departure, _)) in batch.iter_mut().zip(alike) {
                *slot = (departure.target.to.remote(), departure.bytes);
                len += 1;
            }
            socket.send_many(&batch[..len], &mut |at, left| {
                if let Some(Some((departure, _))) = rest.get(at) {
                    book(departure, left);
                }
            });
            rest = &rest[len..];
        }
    }
}

/// Where it is written down what became of a datagram.
struct Account<'a> {
    round: &'a Round<'a>,
    links: &'a LinkCells,
    link: LinkId,
}

impl Account<'_> {
    fn book(&self, bytes: usize, packets: usize, left: bool) {
        let (bytes, packets) = (bytes as u64, packets as u64);
        let counters = self.round.counters;
        if left {
            counters.wireguard_forwarded.add(packets, bytes);
            self.links.count(self.link, packets, bytes);
        } else {
            counters.count_drops(DropReason::SendFailed, PacketKind::Other, packets, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::wireguard::{Place, PortId};

    fn to(port: u16, bytes: &[u8]) -> Option<Departure<'_>> {
        let to = Place::new(PortId(0), ([192, 0, 2, 1], port).into());
        let target = FlowTarget { to, link: LinkId(0) };
        Some(Departure { bytes, stride: bytes.len(), target, ecn: None })
    }

    /// What each departure that leads takes with it, if anything, in the order in which they leave.
    fn gathered(list: &[Option<Departure<'_>>]) -> Vec<(String, usize)> {
        let mut departures = Departures::new();
        list.iter().flatten().for_each(|departure| departures.push(*departure));
        let mut left = Vec::new();
        for at in 0..departures.len {
            let Some(leader) = departures.list[at].take() else { continue };
            let mut scratch = [0; 64];
            let (len, count) = match leader.bytes.len().div_ceil(leader.stride) {
                1 => departures.gather(&leader, at, &mut scratch),
                run => (0, run),
            };
            let bytes = if len > leader.bytes.len() { &scratch[..len] } else { leader.bytes };
            left.push((String::from_utf8_lossy(bytes).into(), count));
        }
        left
    }

    fn expected(runs: &[(&str, usize)]) -> Vec<(String, usize)> {
        runs.iter().map(|(bytes, count)| ((*bytes).to_owned(), *count)).collect()
    }

    #[test]
    fn datagrams_of_one_flow_leave_together_and_in_order() {
        let list =
            [to(1, b"aaa"), to(2, b"xx"), to(1, b"bbb"), to(1, b"c"), to(1, b"ddd"), to(2, b"yy")];
        assert_eq!(gathered(&list), expected(&[("aaabbbc", 3), ("xxyy", 2), ("ddd", 1)]));
    }

    #[test]
    fn nothing_overtakes_what_does_not_fit() {
        let run = Departure { stride: 2, ..to(1, b"rrrr").expect("a departure") };
        let list = [to(1, b"aaa"), to(1, b"long"), to(1, b"bbb")];
        assert_eq!(gathered(&list), expected(&[("aaa", 1), ("longbbb", 2)]));
        let list = [to(1, b"aaa"), Some(run), to(1, b"bbb")];
        assert_eq!(gathered(&list), expected(&[("aaa", 1), ("rrrr", 2), ("bbb", 1)]));
    }

    #[test]
    fn marks_of_congestion_are_not_mixed_and_nothing_overtakes_one() {
        let marked =
            Departure { ecn: Some(EcnCodepoint::Ce), ..to(1, b"bbb").expect("a departure") };
        let list = [to(1, b"aaa"), Some(marked), Some(marked), to(1, b"ccc")];
        assert_eq!(gathered(&list), expected(&[("aaa", 1), ("bbbbbb", 2), ("ccc", 1)]));
    }

    #[test]
    fn flows_that_share_a_place_keep_their_order() {
        let far = 1 + LATEST_LEN as u16;
        let list = [to(1, b"aa"), to(far, b"xx"), to(1, b"bb"), to(1, b"cc"), to(far, b"yy")];
        let left = gathered(&list);
        assert_eq!(left, expected(&[("aa", 1), ("xx", 1), ("bbcc", 2), ("yy", 1)]));
    }
}
