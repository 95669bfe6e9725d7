//! The fast path's loader: attaches the programs and keeps their maps.
//!
//! Owns the committed object once it is in the kernel, and all writing of the maps that the programs
//! read (invariant 9): the caller's tables are the truth and the maps follow them. It never reads a
//! packet, and an interface keeps the mode that it got. The start of the dataplane calls it, and the
//! owner of the flows. Names and numbers of interfaces are those of the calling thread's network
//! namespace.

mod fault;
mod flows;
#[cfg(feature = "ebpf-log")]
mod lines;
mod links;
mod look;
mod spread;

pub use fault::XdpFault;
pub use look::{Durations, Watch};
pub use spread::Spread;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aya::maps::{
    Array, DevMap, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, RingBuf,
};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use wire::maps::{
    Address, Config, Event, Flow, FlowKey, Hop, Kept, KeptKey, Outcome, Tally, Watching, feature,
};

use fault::map_fault;
use flows::{Placed, Places, Store};
use links::Links;
use look::Ticks;

/// What `scripts/ebpf-build.sh` makes.
static OBJECT: &[u8] = include_bytes_aligned!("../../ebpf/objects/relay.o");
/// The program in it that tells the time.
const CLOCK: &str = "clock";
/// Its maps that a successor goes on with, in a folder for this layout. Nobody misses what the others
/// hold.
const KEPT: [&str; 7] = ["CONFIG", "LOCAL", "FLOW", "OUT", "EXIT", "COUNT", "STATS"];
/// The map with sessions, in a folder of its own.
const SESSION: &str = "SESSION";
/// Maps that earlier layouts kept as well.
const ONCE_KEPT: [&str; 5] = ["RATE", "WATCH", "EVENTS", "LOST", "TIME"];

/// `FLOW` as aya sees it.
type FlowMap<'a> = Array<&'a mut MapData, [u8; Flow::LEN]>;

impl Store for FlowMap<'_> {
    type Fault = XdpFault;

    fn write(&mut self, place: u32, value: &[u8; Flow::LEN]) -> Result<(), XdpFault> {
        self.set(place, value, 0).map_err(|error| map_fault("FLOW", error))
    }
}

/// `SESSION` as aya sees it.
type SessionMap<'a> = BpfHashMap<&'a mut MapData, [u8; KeptKey::LEN], [u8; Kept::LEN]>;

/// Features that [`FastPath::watch`] sets, and nobody else.
const LOOKS: u32 = feature::TRACE | feature::TIME;

/// How the operator wants it attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The best that the interface has.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// At the ingress of the kernel's stack (tcx), for any Ethernet interface: data is forwarded,
    /// whoever computes its checksum, and STUN is left to the sockets.
    Tcx,
    /// In the kernel's receive path, for any interface and at half the speed.
    Generic,
}

/// How it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// At the ingress of the kernel's stack.
    Tcx,
    /// In the kernel's receive path.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Tcx => "tcx",
            Self::Generic => "generic",
        })
    }
}

/// How many entries a map was short of, or had too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Entries written.
    pub written: usize,
    /// Entries removed.
    pub removed: usize,
    /// Flows that found no place: their data goes through the sockets.
    pub refused: usize,
}

/// The programs in the kernel. Dropping it detaches what is not pinned.
pub struct FastPath {
    object: Ebpf,
    places: Places,
    links: Links,
    ticks: Ticks,
    /// What is switched on, without looks.
    features: u32,
    /// The features of the looks that are taken.
    looks: u32,
    /// What had been measured when the last look began.
    measured: Durations,
    #[cfg(feature = "ebpf-log")]
    lines: Option<lines::Lines>,
}

/// Detaches what an earlier process has pinned in `pins`, and removes the pins. `false` if the folder
/// does not exist.
///
/// # Errors
///
/// [`XdpFault::Pin`] if a pin cannot be removed, [`XdpFault::Taken`] if that process is still there.
pub fn remove_pins(pins: &Path) -> Result<bool, XdpFault> {
    if !pins.exists() {
        return Ok(false);
    }
    Links::left(pins)?.remove_all().map(|()| true)
}

impl fmt::Debug for FastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FastPath").field("pins", &self.links.pins()).finish_non_exhaustive()
    }
}

impl FastPath {
    /// Loads the programs, with their maps switched off and empty. With `pins`, a folder on a bpffs,
    /// maps of this layout that an earlier process pinned there are taken over with all they hold,
    /// and new ones are pinned for the next. `seed`, drawn at random, keys their hashes, unless they
    /// have one.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Load`] without the capabilities, [`XdpFault::Pin`] if the folder is of no use,
    /// [`XdpFault::Taken`] if another process has it.
    pub fn load(pins: Option<&Path>, seed: [u64; 2]) -> Result<Self, XdpFault> {
        let links = Links::new(pins)?;
        let tick_ns = look::tick_ns();
        let mut loader = EbpfLoader::new();
        loader.override_global("TICK_NS", &tick_ns, true);
        if let Some(folder) = links.maps() {
            for name in KEPT {
                loader.map_pin_path(name, folder.join(name));
            }
        }
        if let Some(folder) = links.sessions() {
            loader.map_pin_path(SESSION, folder.join(SESSION));
        }
        #[cfg(feature = "ebpf-log")]
        let named = lines::object()?;
        #[cfg(not(feature = "ebpf-log"))]
        let named: Option<Vec<u8>> = None;
        let mut object = loader.load(named.as_deref().unwrap_or(OBJECT))?;
        let loaded = links::xdp(&mut object).load();
        let what = "loading, which takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON".to_owned();
        loaded.map_err(|error| XdpFault::Program { what, error })?;
        let ticks = ticks(&mut object)?;
        let (places, features) = take_stock(&mut object, seed)?;
        Ok(Self {
            #[cfg(feature = "ebpf-log")]
            lines: lines::Lines::of(&mut object),
            object,
            places,
            links,
            ticks,
            features,
            looks: 0,
            measured: Durations::default(),
        })
    }

    /// Has the kernel take every program that `wanted` may attach, beyond those that are loaded.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Program`] if it does not.
    pub fn try_for(&mut self, wanted: Wanted) -> Result<(), XdpFault> {
        match wanted {
            Wanted::Native | Wanted::Generic => Ok(()),
            Wanted::Auto | Wanted::Tcx => {
                let what = "loading the program for tcx".to_owned();
                let loaded = links::tcx(&mut self.object).map(drop);
                loaded.map_err(|error| XdpFault::Program { what, error })
            }
        }
    }

    /// Attaches to `interface`, and says how. Several interfaces may be attached, each in its own
    /// mode. Of several modes to choose from, the one that an earlier process has left in place
    /// comes first; its pinned link gets this program in one step, so that no packet meets none.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Interface`] if there is none of this name, [`XdpFault::Program`] if it does not
    /// have what is `wanted`.
    pub fn attach(&mut self, interface: &str, wanted: Wanted) -> Result<Mode, XdpFault> {
        self.links.attach(&mut self.object, interface, wanted)
    }

    /// Detaches from every interface that an earlier process left attached and this one has not
    /// attached to. To be called after the last [`Self::attach`]; it changes nothing without pins.
    pub fn settle(&mut self) {
        self.links.settle();
    }

    /// Detaches for good: removes every pin of ours, so that nothing is left once this is dropped.
    /// What others have in the folder stays, and so does the folder then.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Pin`] if a pin cannot be removed.
    pub fn detach(self) -> Result<(), XdpFault> {
        self.links.remove_all()
    }

    /// Puts a configuration into force, for the next packet; seed and lease are those of the maps.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the pinned map is not of this layout.
    pub fn configure(&mut self, config: &Config) -> Result<(), XdpFault> {
        self.features = config.features & !LOOKS;
        let features = self.features | self.looks;
        let seed = self.places.seed();
        self.change_config(|found| {
            *found = Config { seed, features, alive_until_ns: found.alive_until_ns, ..*config };
        })
    }

    /// Says that the process will be there for `lease` from now on. Without one, the programs answer
    /// no request, and forward data only as long as sessions last that were made before.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses a write.
    pub fn renew(&mut self, lease: Duration) -> Result<(), XdpFault> {
        let alive_until_ns = self.ticks.until_ns(lease);
        self.change_config(|config| config.alive_until_ns = alive_until_ns)
    }

    fn change_config(&mut self, change: impl FnOnce(&mut Config)) -> Result<(), XdpFault> {
        let mut place: Array<_, [u8; Config::LEN]> = open(&mut self.object, "CONFIG")?;
        let found = place.get(&0, 0).map_err(|error| map_fault("CONFIG", error))?;
        let mut config = Config::decode(&found);
        change(&mut config);
        place.set(0, config.encode(), 0).map_err(|error| map_fault("CONFIG", error))
    }

    /// Makes `addresses` the own ones.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if there are more than [`wire::maps::LOCALS_MAX`].
    pub fn set_locals(&mut self, addresses: &[IpAddr]) -> Result<Changes, XdpFault> {
        let wanted: HashMap<_, _> =
            addresses.iter().map(|ip| (Address::from(*ip).encode(), 1_u32)).collect();
        let mut map: BpfHashMap<_, _, u32> = open(&mut self.object, "LOCAL")?;
        reconcile(&mut map, &wanted).map_err(|error| map_fault("LOCAL", error))
    }

    /// Makes `flows` the known ones. Those that are right already are not touched.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses a write.
    pub fn set_flows(&mut self, flows: &HashMap<FlowKey, Hop>) -> Result<Changes, XdpFault> {
        let mut changes = Changes::default();
        let known = self.places.flows().map(|flow| flow.key);
        let stale: Vec<_> = known.filter(|key| !flows.contains_key(key)).collect();
        for key in stale {
            self.remove_flow(&key)?;
            changes.removed += 1;
        }
        let mut map: FlowMap<'_> = open(&mut self.object, "FLOW")?;
        for (key, hop) in flows {
            match self.places.insert(key, hop, &mut map)? {
                Placed::Already => {}
                Placed::Written => changes.written += 1,
                Placed::Full => changes.refused += 1,
            }
        }
        Ok(changes)
    }

    /// Adds a flow, or changes its hop. `false` if it finds no place: its data then goes through
    /// the sockets.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses a write.
    pub fn add_flow(&mut self, key: &FlowKey, hop: &Hop) -> Result<bool, XdpFault> {
        let mut map: FlowMap<'_> = open(&mut self.object, "FLOW")?;
        self.places.insert(key, hop, &mut map).map(|placed| placed != Placed::Full)
    }

    /// Removes a flow; `false` if it was not there.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses a write.
    pub fn remove_flow(&mut self, key: &FlowKey) -> Result<bool, XdpFault> {
        let mut map: FlowMap<'_> = open(&mut self.object, "FLOW")?;
        self.places.remove(key, &mut map)
    }

    /// Lets packets leave by the interface with this number, as `slot` of [`wire::maps::exit::OUT`];
    /// by none with 0. To be called after the last [`Self::attach`].
    ///
    /// What came in by the driver of another interface does not leave by one that is attached in
    /// another mode, as its driver could not: it goes through the sockets.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if there is no such interface or slot.
    pub fn set_exit(&mut self, slot: u32, interface: u32) -> Result<(), XdpFault> {
        let driver = if self.links.takes_xdp(interface) { interface } else { 0 };
        let mut map: DevMap<_> = open(&mut self.object, "OUT")?;
        map.set(slot, driver, None, 0).map_err(|error| map_fault("OUT", error))?;
        let mut map: Array<_, u32> = open(&mut self.object, "EXIT")?;
        map.set(slot, interface, 0).map_err(|error| map_fault("EXIT", error))
    }

    /// The numbers of the interfaces that packets may leave by, for each slot; 0 for none.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses.
    pub fn exits(&mut self) -> Result<Vec<u32>, XdpFault> {
        let map: Array<_, u32> = open(&mut self.object, "EXIT")?;
        map.iter().collect::<Result<_, _>>().map_err(|error| map_fault("EXIT", error))
    }

    /// Keeps a session for a successor, which has the map if it is pinned, or changes what is kept of
    /// it. No program reads it.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if there are [`wire::maps::SESSIONS_MAX`] already.
    pub fn keep(&mut self, kept: &Kept) -> Result<(), XdpFault> {
        let mut map: SessionMap<'_> = open(&mut self.object, "SESSION")?;
        let inserted = map.insert(kept.key().encode(), kept.encode(), 0);
        inserted.map_err(|error| map_fault("SESSION", error))
    }

    /// Forgets a session, if it is kept.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses a write.
    pub fn forget(&mut self, key: &KeptKey) -> Result<(), XdpFault> {
        let mut map: SessionMap<'_> = open(&mut self.object, "SESSION")?;
        match map.remove(&key.encode()) {
            Err(MapError::SyscallError(gone)) if gone.io_error.kind() == ErrorKind::NotFound => {
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(error) => Err(map_fault("SESSION", error)),
        }
    }

    /// Every session that is kept, in no order; whatever its deadline.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses.
    pub fn kept(&mut self) -> Result<Vec<Kept>, XdpFault> {
        let map: SessionMap<'_> = open(&mut self.object, "SESSION")?;
        let kept = map
            .iter()
            .map(|entry| entry.map(|(key, value)| Kept::decode(&KeptKey::decode(&key), &value)));
        kept.collect::<Result<_, _>>().map_err(|error| map_fault("SESSION", error))
    }

    /// Takes a closer look at the programs, or ends it. Durations begin anew.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses a write.
    pub fn watch(&mut self, watch: &Watch) -> Result<(), XdpFault> {
        let (watching, looks) = watch.begin();
        self.measured = self.total()?;
        let mut place: Array<_, [u8; Watching::LEN]> = open(&mut self.object, "WATCH")?;
        place.set(0, watching.encode(), 0).map_err(|error| map_fault("WATCH", error))?;
        self.looks = looks;
        let features = self.features | looks;
        self.change_config(|config| config.features = features)
    }

    /// Hands over every traced packet that waits, in the order of their times on each CPU. What found
    /// no room in [`wire::maps::EVENTS_BYTES`] is lost, and counted by [`Self::events_lost`].
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel does not lend the ring.
    pub fn events(&mut self, each: &mut dyn FnMut(&Event)) -> Result<(), XdpFault> {
        let mut ring: RingBuf<_> = open(&mut self.object, "EVENTS")?;
        while let Some(item) = ring.next() {
            if let Some(bytes) = item.first_chunk() {
                each(&Event::decode(bytes));
            }
        }
        Ok(())
    }

    /// How many traced packets found no room, ever.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses.
    pub fn events_lost(&mut self) -> Result<u64, XdpFault> {
        self.count_of("LOST", 0)
    }

    /// One cell of a map that counts, over all CPUs.
    fn count_of(&mut self, name: &'static str, cell: u32) -> Result<u64, XdpFault> {
        let map: PerCpuArray<_, u64> = open(&mut self.object, name)?;
        let values = map.get(&cell, 0).map_err(|error| map_fault(name, error))?;
        Ok(values.iter().sum())
    }

    /// Tells the lines that the programs have written, which only those do that were built to, and
    /// only with the feature `ebpf-log`. To be called now and then.
    pub fn lines(&mut self) {
        #[cfg(feature = "ebpf-log")]
        if let Some(lines) = &mut self.lines {
            lines.flush();
        }
    }

    /// How long the programs took since [`Self::watch`], over all CPUs.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses.
    pub fn durations(&mut self) -> Result<Durations, XdpFault> {
        Ok(self.total()?.since(&self.measured))
    }

    /// All durations that map `TIME` has ever counted.
    fn total(&mut self) -> Result<Durations, XdpFault> {
        let mut durations = Durations::default();
        for (row, count) in (0..).zip(&mut durations.rows) {
            *count = self.count_of("TIME", row)?;
        }
        Ok(durations)
    }

    /// What became of packets to the served ports, over all CPUs, in the order of
    /// [`Outcome::ALL`].
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the kernel refuses.
    pub fn outcomes(&mut self) -> Result<[Tally; Outcome::ALL.len()], XdpFault> {
        let mut tallies = [Tally::default(); Outcome::ALL.len()];
        for (cell, tally) in (0..).zip(&mut tallies) {
            *tally = tally_of(&mut self.object, "COUNT", cell)?;
        }
        Ok(tallies)
    }

    /// What one cell of the statistics counted, over all CPUs.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if there is no such cell.
    pub fn statistics(&mut self, cell: u32) -> Result<Tally, XdpFault> {
        tally_of(&mut self.object, "STATS", cell)
    }
}

/// Has the kernel say how far its count of ticks is.
fn ticks(object: &mut Ebpf) -> Result<Ticks, XdpFault> {
    let what = || "running, to learn of the kernel's ticks".to_owned();
    let fault = |error| XdpFault::Program { what: what(), error };
    let program = object.program_mut(CLOCK).expect("the committed object has this program");
    let program: &mut Xdp = program.try_into().expect("it is an XDP program");
    program.load().map_err(fault)?;
    // The least that is a frame.
    let frame = [0; 14];
    let run = program.test_run(TestRunOptions { data_in: Some(&frame), ..Default::default() });
    run.map_err(fault)?;
    program.unload().map_err(fault)?;
    let now: Array<_, u64> = open(object, "NOW")?;
    now.get(&0, 0).map(Ticks::new).map_err(|error| map_fault("NOW", error))
}

/// What the maps hold already: everything if they were pinned, nothing if they are new, and then
/// they get their seed. Also what is switched on.
fn take_stock(object: &mut Ebpf, seed: [u64; 2]) -> Result<(Places, u32), XdpFault> {
    let mut place: Array<_, [u8; Config::LEN]> = open(object, "CONFIG")?;
    let found = place.get(&0, 0).map_err(|error| map_fault("CONFIG", error))?;
    let found = Config::decode(&found);
    if found.seed == [0; 2] {
        let [start, factor] = seed;
        let seed = [start, factor | 1];
        let first = Config { seed, ..Config::default() };
        place.set(0, first.encode(), 0).map_err(|error| map_fault("CONFIG", error))?;
        return Ok((Places::new(seed), 0));
    }
    let mut places = Places::new(found.seed);
    let mut map: FlowMap<'_> = open(object, "FLOW")?;
    for number in 0..wire::maps::PLACES {
        let value = map.get(&number, 0).map_err(|error| map_fault("FLOW", error))?;
        if Flow::decode(&value).is_some_and(|flow| !places.found(number, flow)) {
            map.write(number, &Flow::FREE)?;
        }
    }
    Ok((places, found.features & !LOOKS))
}

/// The map with this name, as the type it has in the object.
fn open<'a, M>(object: &'a mut Ebpf, name: &'static str) -> Result<M, XdpFault>
where
    M: TryFrom<&'a mut Map, Error = MapError>,
{
    let map = object.map_mut(name).expect("the committed object has this map");
    M::try_from(map).map_err(|error| map_fault(name, error))
}

fn tally_of(object: &mut Ebpf, name: &'static str, cell: u32) -> Result<Tally, XdpFault> {
    let map: PerCpuArray<_, [u8; Tally::LEN]> = open(object, name)?;
    let values = map.get(&cell, 0).map_err(|error| map_fault(name, error))?;
    Ok(values.iter().map(Tally::decode).fold(Tally::default(), |sum, it| Tally {
        packets: sum.packets.wrapping_add(it.packets),
        bytes: sum.bytes.wrapping_add(it.bytes),
    }))
}

/// Makes `map` hold `wanted` and nothing else: what is stale goes first, to make room.
fn reconcile<K, V>(
    map: &mut BpfHashMap<&mut MapData, K, V>,
    wanted: &HashMap<K, V>,
) -> Result<Changes, MapError>
where
    K: aya::Pod + Eq + std::hash::Hash,
    V: aya::Pod + PartialEq,
{
    let mut changes = Changes::default();
    let mut right = HashSet::new();
    let mut stale = Vec::new();
    for entry in map.iter() {
        let (key, value) = entry?;
        match wanted.get(&key) {
            Some(asked) if *asked == value => _ = right.insert(key),
            Some(_) => {}
            None => stale.push(key),
        }
    }
    for key in stale {
        map.remove(&key)?;
        changes.removed += 1;
    }
    for (key, value) in wanted {
        if !right.contains(key) {
            map.insert(key, value, 0)?;
            changes.written += 1;
        }
    }
    Ok(changes)
}
