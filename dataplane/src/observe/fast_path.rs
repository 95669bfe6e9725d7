//! What the XDP programs did, as of the last look at their maps.
//!
//! Owns the cells that the keeper of the fast path writes, once a second, and their names on the
//! metrics page. What the programs passed on to the sockets is counted there once more, so only
//! what they did themselves goes into the sums of received, forwarded, answered and dropped.

use std::sync::{PoisonError, RwLock};

use wire::drop::DropReason;
use wire::maps::Outcome;

use super::prometheus::Page;
use super::{Cell, Family, SocketReason, Tally};

/// How the programs see an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the interface.
    pub interface: String,
    /// `native`, `generic` or `tcx`.
    pub mode: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct FastPathCells {
    /// Packets to the served ports and the bytes of their frames, by outcome.
    pub outcomes: [Tally; Outcome::ALL.len()],
    /// Payload bytes of the WireGuard data among them that was sent on.
    pub wireguard_bytes: Cell,
    /// Gauge: flows in the map.
    pub flows: Cell,
    /// Gauge: flows that stay with the sockets, by reason.
    pub by_sockets: [Cell; SocketReason::COUNT],
    /// Failed uses of maps, and of the kernel's tables of routes and neighbours.
    pub faults: Cell,
    attachments: RwLock<Vec<Attachment>>,
}

impl FastPathCells {
    /// These are the interfaces from now on.
    pub fn attach(&self, attachments: Vec<Attachment>) {
        *self.attachments.write().unwrap_or_else(PoisonError::into_inner) = attachments;
    }

    fn packets(&self, outcomes: &[Outcome]) -> u64 {
        let packets = |outcome: &Outcome| self.outcomes[outcome.index() as usize].packets.value();
        outcomes.iter().map(packets).sum()
    }

    /// WireGuard data sent on.
    pub(super) fn forwarded(&self) -> u64 {
        self.packets(&[Outcome::Forwarded, Outcome::Redirected])
    }

    /// Binding requests over `family` answered.
    pub(super) fn answered(&self, family: Family) -> u64 {
        self.packets(match family {
            Family::V4 => &[Outcome::AnsweredV4],
            Family::V6 => &[Outcome::AnsweredV6],
        })
    }

    /// Packets, and the bytes of their frames, dropped for `reason`.
    pub(super) fn dropped(&self, reason: DropReason) -> (u64, u64) {
        let tallies = Outcome::ALL
            .iter()
            .filter(|outcome| outcome.drop_reason() == Some(reason))
            .map(|outcome| self.outcomes[outcome.index() as usize].value());
        tallies.fold((0, 0), |(packets, bytes), (more, longer)| (packets + more, bytes + longer))
    }

    /// Binding requests answered or dropped.
    pub(super) fn stun_received(&self) -> u64 {
        let dropped = Outcome::ALL.iter().filter(|outcome| outcome.drop_reason().is_some());
        Family::ALL.iter().map(|family| self.answered(*family)).sum::<u64>()
            + dropped.map(|outcome| self.packets(&[*outcome])).sum::<u64>()
    }

    pub(super) fn write(&self, page: &mut Page) {
        let name = "relay_xdp_mode";
        page.family(name, "gauge", "Interfaces with a program, and how it is attached.");
        for it in &*self.attachments.read().unwrap_or_else(PoisonError::into_inner) {
            page.sample(name, &[("interface", &it.interface), ("mode", &it.mode)], 1);
        }
        for (name, help, bytes) in [
            ("relay_xdp_packets_total", "Packets to served ports, by what XDP did.", false),
            ("relay_xdp_bytes_total", "Bytes of their frames.", true),
        ] {
            page.family(name, "counter", help);
            for outcome in Outcome::ALL {
                let tally = &self.outcomes[outcome.index() as usize];
                let value = if bytes { &tally.bytes } else { &tally.packets };
                page.sample(name, &[("outcome", outcome.label())], value.value());
            }
        }
        page.gauge("relay_xdp_flows", "Flows in the map.", self.flows.value());
        let name = "relay_xdp_flows_by_sockets";
        page.family(name, "gauge", "Flows that stay with the sockets, by reason.");
        for reason in SocketReason::ALL {
            page.sample(
                name,
                &[("reason", reason.label())],
                self.by_sockets[reason.index()].value(),
            );
        }
        page.counter(
            "relay_xdp_faults_total",
            "Failed uses of maps, routes and neighbours.",
            self.faults.value(),
        );
    }
}
