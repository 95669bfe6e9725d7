//! The XDP program of a relay: STUN answered, WireGuard data forwarded, all else passed.
//!
//! Owns the maps behind the judge of `wire` and the counting of its verdicts. User space writes
//! `CONFIG`, `LOCAL`, `FLOW` and `OUT`, this program writes `COUNT`, `STATS` and `RATE` (invariant
//! 9). The dataplane attaches it; without it the sockets do the same work.
#![no_std]
#![no_main]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, DevMap, HashMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use ebpf::Packet;
use wire::maps::{
    Action, Address, BUCKETS, CELLS_DEFAULT, Config, EXITS_MAX, Flow, FlowKey, Hop, LOCALS_MAX,
    Outcome, PLACES, Tally,
};
use wire::packet::{Frame, World, judge};

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
static LOCAL: HashMap<Address, u32> = HashMap::with_max_entries(LOCALS_MAX, 0);
#[map]
static FLOW: Array<Flow> = Array::with_max_entries(PLACES, 0);
#[map]
static OUT: DevMap = DevMap::with_max_entries(EXITS_MAX, 0);
#[map]
static COUNT: PerCpuArray<Tally> = PerCpuArray::with_max_entries(Outcome::COUNT, 0);
#[map]
static STATS: PerCpuArray<Tally> = PerCpuArray::with_max_entries(CELLS_DEFAULT, 0);
#[map]
static RATE: PerCpuArray<u64> = PerCpuArray::with_max_entries(BUCKETS, 0);

/// The entry.
#[xdp]
#[inline(always)]
pub fn relay(context: XdpContext) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return XDP_PASS;
    };
    let mut packet = Packet::new(context.ctx);
    let bytes = packet.len() as u64;
    let Some(outcome) = judge(&mut packet, &Maps { config }) else {
        return XDP_PASS;
    };
    add(&COUNT, outcome.index(), bytes);
    match outcome.action() {
        Action::Pass => XDP_PASS,
        Action::Transmit => XDP_TX,
        Action::Redirect => XDP_REDIRECT,
        Action::Drop => XDP_DROP,
    }
}

/// The maps as the judge's tables.
struct Maps<'a> {
    config: &'a Config,
}

impl World for Maps<'_> {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }

    #[inline(always)]
    fn is_local(&self, address: &Address) -> bool {
        self.config.is_near(address) || LOCAL.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Hop> {
        let [first, second] = self.config.places(key);
        let found = FLOW.get(first).filter(|flow| flow.key == *key);
        let found = found.or_else(|| FLOW.get(second).filter(|flow| flow.key == *key));
        // User space may give the place to another flow before the hop is read. It empties it
        // first, so that at worst this packet goes nowhere.
        found.map(|flow| &flow.hop)
    }

    #[inline(always)]
    fn admit(&self, prefix: u64) -> bool {
        let Some(bucket) = RATE.get_ptr_mut(self.config.bucket(prefix)) else {
            return false;
        };
        // SAFETY: the clock takes no arguments.
        let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
        // SAFETY: a value of this CPU, which runs one XDP program at a time.
        self.config.pace.admit(unsafe { &mut *bucket }, now_ns)
    }

    #[inline(always)]
    fn redirect(&self, out: u32) -> bool {
        OUT.redirect(out, u64::from(XDP_PASS)).is_ok()
    }

    #[inline(always)]
    fn account(&self, cell: u32, bytes: u64) {
        add(&STATS, cell, bytes);
    }
}

#[inline(always)]
fn add(map: &PerCpuArray<Tally>, cell: u32, bytes: u64) {
    if let Some(tally) = map.get_ptr_mut(cell) {
        // SAFETY: a value of this CPU, which runs one XDP program at a time.
        unsafe { (*tally).add(bytes) }
    }
}
