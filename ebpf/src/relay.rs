//! The programs of a relay: STUN answered, WireGuard data forwarded, all else passed. `relay` does
//! it in XDP; `relay_tcx`, for interfaces without, forwards only, behind the driver.
//!
//! Owns the maps behind the judge of `wire` and the counting of its verdicts. User space writes
//! `CONFIG`, `LOCAL`, `FLOW`, `OUT`, `EXIT`, `SESSION` and `WATCH`, the programs `COUNT`, `STATS`,
//! `RATE`, `EVENTS`, `LOST`, `TIME` and `NOW` (invariant 9). The dataplane attaches them; without them
//! the sockets do the same work.
#![no_std]
#![no_main]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

use core::cell::Cell;
use core::ptr;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, TC_ACT_REDIRECT, TC_ACT_SHOT, tcx_action_base};
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_redirect,
};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, DevMap, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_ebpf::{EbpfContext, Global};
use ebpf::{Buffer, Packet};
use wire::maps::{
    Action, Address, BUCKETS, CELLS_DEFAULT, Config, EVENTS_BYTES, EXITS_MAX, Ends, Event, Flow,
    FlowKey, Hop, LOCALS_MAX, Outcome, PLACES, ROWS, SESSIONS_MAX, Session, SessionKey, Tally,
    Watching, feature, row,
};
use wire::packet::{Frame, HEADERS_LEN, LOOKED_AT_LEN, World, concerns, judge};

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
static LOCAL: HashMap<Address, u32> = HashMap::with_max_entries(LOCALS_MAX, 0);
#[map]
static FLOW: Array<Flow> = Array::with_max_entries(PLACES, 0);
#[map]
static OUT: DevMap = DevMap::with_max_entries(EXITS_MAX, 0);
/// The same interfaces as in `OUT`, by their numbers, for a hook that cannot ask that map.
#[map]
static EXIT: Array<u32> = Array::with_max_entries(EXITS_MAX, 0);
#[map]
static COUNT: PerCpuArray<Tally> = PerCpuArray::with_max_entries(Outcome::COUNT, 0);
#[map]
static STATS: PerCpuArray<Tally> = PerCpuArray::with_max_entries(CELLS_DEFAULT, 0);
#[map]
static RATE: PerCpuArray<u64> = PerCpuArray::with_max_entries(BUCKETS, 0);
#[map]
static SESSION: HashMap<SessionKey, Session> =
    HashMap::with_max_entries(SESSIONS_MAX, BPF_F_NO_PREALLOC);
#[map]
static WATCH: Array<Watching> = Array::with_max_entries(1, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);
/// Events that found no room in `EVENTS`.
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static TIME: PerCpuArray<u64> = PerCpuArray::with_max_entries(ROWS, 0);
#[map]
static NOW: Array<u64> = Array::with_max_entries(1, 0);

/// Nanoseconds between two ticks of the kernel, which user space knows and puts here before loading.
///
/// Rates and leases go by ticks: reading them is one instruction, where any clock is a call and a dozen
/// nanoseconds, and the coarse clock does not move in between either.
#[unsafe(no_mangle)]
static TICK_NS: Global<u64> = Global::new(4_000_000);

#[inline(always)]
fn ticks_ns() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_jiffies64() }.wrapping_mul(TICK_NS.load())
}

/// Puts the time in ticks into `NOW`. User space, which is told it by nobody else, has the kernel run
/// it once; it is never attached.
#[xdp]
#[inline(always)]
pub fn clock(_: XdpContext) -> u32 {
    if let Some(now_ns) = NOW.get_ptr_mut(0) {
        // SAFETY: a whole word of a map.
        unsafe { *now_ns = ticks_ns() }
    }
    XDP_PASS
}

/// The entry in XDP.
#[xdp]
#[inline(always)]
pub fn relay(context: XdpContext) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return XDP_PASS;
    };
    // SAFETY: the program's context is readable while it runs. Volatile, as in `Packet`.
    let interface = || unsafe { ptr::read_volatile(&raw const (*context.ctx).ingress_ifindex) };
    let outcome = if config.features & LOOKS == 0 {
        in_driver(&context, Maps::<false, _>::new(config, interface))
    } else {
        in_driver(&context, Watched::new(Maps::<false, _>::new(config, interface)))
    };
    match outcome.map_or(Action::Pass, Outcome::action) {
        Action::Pass => XDP_PASS,
        Action::Transmit => XDP_TX,
        Action::Redirect => XDP_REDIRECT,
        Action::Drop => XDP_DROP,
    }
}

#[inline(always)]
fn in_driver(context: &XdpContext, tables: impl Tables) -> Option<Outcome> {
    let mut packet = Packet::new(context.ctx);
    let frame_len = packet.len();
    let outcome = judge(&mut packet, &tables)?;
    // SAFETY: the program's context is readable while it runs.
    tables.count(outcome, frame_len, 1, || unsafe { (*context.ctx).ingress_ifindex });
    tell(context, outcome, frame_len);
    Some(outcome)
}

/// The entry in tcx, at the ingress of an interface.
#[classifier]
#[inline(always)]
pub fn relay_tcx(context: TcContext) -> i32 {
    // Other programs of the interface have their turn.
    const PASS: i32 = tcx_action_base::TCX_NEXT;
    let Some(config) = CONFIG.get(0) else {
        return PASS;
    };
    let mut buffer = Buffer::new(context.skb.skb);
    buffer.gather(HEADERS_LEN);
    if concerns(&buffer, config) {
        buffer.gather(LOOKED_AT_LEN);
    }
    // SAFETY: as above.
    let interface = || unsafe { ptr::read_volatile(&raw const (*context.skb.skb).ifindex) };
    let outcome = if config.features & LOOKS == 0 {
        behind_driver(&context, &mut buffer, Maps::<true, _>::new(config, interface))
    } else {
        let maps = Maps::<true, _>::new(config, interface);
        behind_driver(&context, &mut buffer, Watched::new(maps))
    };
    match outcome.map_or(Action::Pass, Outcome::action) {
        Action::Pass => PASS,
        Action::Transmit => redirect(buffer.interface()),
        Action::Redirect => TC_ACT_REDIRECT,
        Action::Drop => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn behind_driver(context: &TcContext, buffer: &mut Buffer, tables: impl Tables) -> Option<Outcome> {
    let (frame_len, datagrams) = (buffer.len(), buffer.datagrams());
    let outcome = judge(buffer, &tables)?;
    tables.count(outcome, frame_len, datagrams, || buffer.interface());
    tell(context, outcome, frame_len);
    Some(outcome)
}

/// Writes a line about a packet to a served port, in programs that are made to.
#[inline(always)]
fn tell(context: &impl EbpfContext, outcome: Outcome, frame_len: usize) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(context, "outcome {} of a frame of {} bytes", outcome.index(), frame_len);
    let _ = (context, outcome, frame_len);
}

/// Chooses the interface with this number to leave by, in tcx.
#[inline(always)]
fn redirect(interface: u32) -> i32 {
    // SAFETY: the helper takes any numbers.
    unsafe { bpf_redirect(interface, 0) as i32 }
}

/// Tables for the judge that also keep count of what it says.
trait Tables: World {
    /// Counts what became of a frame of `frame_len` bytes with `datagrams` in it.
    fn count(
        &self,
        outcome: Outcome,
        frame_len: usize,
        datagrams: u32,
        interface: impl FnOnce() -> u32,
    );
}

/// The maps as the judge's tables.
struct Maps<'a, const TCX: bool, I> {
    config: &'a Config,
    /// Number of the interface that the packet came in by.
    interface: I,
}

impl<'a, const TCX: bool, I: Fn() -> u32> Maps<'a, TCX, I> {
    #[inline(always)]
    const fn new(config: &'a Config, interface: I) -> Self {
        Self { config, interface }
    }
}

impl<const TCX: bool, I: Fn() -> u32> Tables for Maps<'_, TCX, I> {
    #[inline(always)]
    fn count(
        &self,
        outcome: Outcome,
        frame_len: usize,
        datagrams: u32,
        _interface: impl FnOnce() -> u32,
    ) {
        add(&COUNT, outcome.index(), datagrams.into(), frame_len as u64);
    }
}

impl<const TCX: bool, I: Fn() -> u32> World for Maps<'_, TCX, I> {
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
    fn now_ns(&self) -> u64 {
        ticks_ns()
    }

    #[inline(always)]
    fn admit(&self, prefix: u64, now_ns: u64) -> bool {
        let Some(bucket) = RATE.get_ptr_mut(self.config.bucket(prefix)) else {
            return false;
        };
        // SAFETY: a value of this CPU, as in `add`.
        self.config.pace.admit(unsafe { &mut *bucket }, now_ns)
    }

    #[inline(always)]
    fn is_ingress(&self, out: u32) -> bool {
        EXIT.get(out).is_some_and(|interface| *interface == (self.interface)())
    }

    #[inline(always)]
    fn redirect(&self, out: u32) -> bool {
        if !TCX {
            return OUT.redirect(out, u64::from(XDP_PASS)).is_ok();
        }
        match EXIT.get(out) {
            None | Some(0) => false,
            Some(interface) => redirect(*interface) == TC_ACT_REDIRECT,
        }
    }

    #[inline(always)]
    fn account(&self, cell: u32, packets: u64, bytes: u64) {
        add(&STATS, cell, packets, bytes);
    }
}

#[inline(always)]
fn add(map: &PerCpuArray<Tally>, cell: u32, packets: u64, bytes: u64) {
    if let Some(tally) = map.get_ptr_mut(cell) {
        // SAFETY: a value of this CPU, where the kernel runs one of these programs at a time: all
        // of them in receiving, with nothing in between.
        unsafe { (*tally).add(packets, bytes) }
    }
}

/// Switches that make the programs look closer. While they are off it costs this comparison: there
/// are two of each program, and the other one is never reached.
const LOOKS: u32 = feature::TRACE | feature::TIME;

/// The maps, and the looks that are taken at one packet.
struct Watched<'a, const TCX: bool, I> {
    maps: Maps<'a, TCX, I>,
    /// Whether this packet is traced.
    traced: bool,
    ends: Cell<Option<Ends>>,
    /// When the program began, if that matters.
    began_ns: u64,
}

impl<'a, const TCX: bool, I> Watched<'a, TCX, I> {
    /// Finds out which looks are taken.
    #[inline(always)]
    fn new(maps: Maps<'a, TCX, I>) -> Self {
        let config = maps.config;
        let mut watched = Self { maps, traced: false, ends: Cell::new(None), began_ns: 0 };
        let Some(watching) = WATCH.get(0) else {
            return watched;
        };
        // SAFETY: these helpers take no arguments.
        let (now_ns, random) = unsafe { (bpf_ktime_get_coarse_ns(), bpf_get_prandom_u32()) };
        watched.traced = config.has(feature::TRACE)
            && random <= watching.chance
            && now_ns < watching.trace_until_ns;
        if config.has(feature::TIME) && now_ns < watching.time_until_ns {
            // SAFETY: as above.
            watched.began_ns = unsafe { bpf_ktime_get_ns() };
        }
        watched
    }
}

impl<const TCX: bool, I: Fn() -> u32> World for Watched<'_, TCX, I> {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.maps.config
    }

    #[inline(always)]
    fn is_local(&self, address: &Address) -> bool {
        self.maps.is_local(address)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Hop> {
        self.maps.flow(key)
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        self.maps.now_ns()
    }

    #[inline(always)]
    fn admit(&self, prefix: u64, now_ns: u64) -> bool {
        self.maps.admit(prefix, now_ns)
    }

    #[inline(always)]
    fn is_ingress(&self, out: u32) -> bool {
        self.maps.is_ingress(out)
    }

    #[inline(always)]
    fn redirect(&self, out: u32) -> bool {
        self.maps.redirect(out)
    }

    #[inline(always)]
    fn account(&self, cell: u32, packets: u64, bytes: u64) {
        self.maps.account(cell, packets, bytes);
    }

    #[inline(always)]
    fn note(&self, ends: impl FnOnce() -> Ends) {
        if self.traced {
            self.ends.set(Some(ends()));
        }
    }
}

impl<const TCX: bool, I: Fn() -> u32> Tables for Watched<'_, TCX, I> {
    #[inline(always)]
    fn count(
        &self,
        outcome: Outcome,
        frame_len: usize,
        datagrams: u32,
        interface: impl FnOnce() -> u32,
    ) {
        add(&COUNT, outcome.index(), datagrams.into(), frame_len as u64);
        if let Some(ends) = self.ends.get() {
            let event = Event {
                // SAFETY: the helper takes no arguments.
                at_ns: unsafe { bpf_ktime_get_ns() },
                ends,
                frame_len: frame_len as u32,
                interface: interface(),
                outcome: outcome.index(),
                datagrams,
            };
            if EVENTS.output::<Event>(event, 0).is_err() {
                count_one(&LOST, 0);
            }
        }
        if self.began_ns != 0 {
            // SAFETY: the helper takes no arguments.
            let duration_ns = unsafe { bpf_ktime_get_ns() } - self.began_ns;
            count_one(&TIME, row(duration_ns));
        }
    }
}

#[inline(always)]
fn count_one(map: &PerCpuArray<u64>, cell: u32) {
    if let Some(count) = map.get_ptr_mut(cell) {
        // SAFETY: a value of this CPU, as in `add`.
        unsafe { *count += 1 }
    }
}
