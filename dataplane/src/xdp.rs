//! The fast path's loader: attaches the XDP program and keeps its maps.
//!
//! Owns the committed object once it is in the kernel, the choice of how it is attached, and all
//! writing of `CONFIG`, `LOCAL`, `FLOW` and `OUT` (invariant 9): the caller's tables are the truth
//! and the maps follow them. It never reads a packet and never changes the mode after attaching.
//! The start of the dataplane calls it, and the owner of the flows. Names and numbers of interfaces
//! are those of the calling thread's network namespace.

mod flows;
mod spread;

pub use spread::Spread;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::maps::xdp::XdpMapError;
use aya::maps::{Array, DevMap, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use wire::maps::{Address, Config, Flow, FlowKey, Hop, Outcome, Tally};

use flows::{Placed, Places, Store};

/// What `scripts/ebpf-build.sh` makes.
static OBJECT: &[u8] = include_bytes_aligned!("../../ebpf/objects/relay.o");
/// The program in it.
const PROGRAM: &str = "relay";
/// Its maps.
const MAPS: [&str; 7] = ["CONFIG", "LOCAL", "FLOW", "OUT", "COUNT", "STATS", "RATE"];

/// `FLOW` as aya sees it.
type FlowMap<'a> = Array<&'a mut MapData, [u8; Flow::LEN]>;

impl Store for FlowMap<'_> {
    type Fault = XdpFault;

    fn write(&mut self, place: u32, value: &[u8; Flow::LEN]) -> Result<(), XdpFault> {
        self.set(place, value, 0).map_err(|error| map_fault("FLOW", error))
    }
}

/// How the operator wants it attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The best that the interface has.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's receive path, for any interface and at half the speed.
    Generic,
}

/// How it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the kernel's receive path.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// Why the fast path is not there, or not as asked.
#[derive(Debug, thiserror::Error)]
pub enum XdpFault {
    /// The kernel does not take the object: most often a missing capability.
    #[error(
        "the kernel takes no XDP programs from this process: {0}; \
         give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or say --xdp off"
    )]
    Load(#[from] EbpfError),
    /// The verifier does not take the program, or the interface does not.
    #[error("{what}: {error}")]
    Program {
        /// What was tried.
        what: String,
        /// What the kernel said.
        error: ProgramError,
    },
    /// A map is full or not the committed object's.
    #[error("map {name}: {error}")]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        error: XdpMapError,
    },
    /// A pin could not be read, written or removed.
    #[error("{}: {why}; is it on a bpffs?", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        why: String,
    },
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

/// The XDP program in the kernel. Dropping it detaches what is not pinned.
pub struct FastPath {
    object: Ebpf,
    places: Places,
    pins: Option<PathBuf>,
    /// Links that outlive this process, and so must outlive aya's own list.
    pinned: Vec<PinnedLink>,
}

impl fmt::Debug for FastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FastPath").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl FastPath {
    /// Loads the program, with its maps switched off and empty. With `pins`, a folder on a bpffs,
    /// maps that an earlier process pinned there are taken over with all they hold, and new ones
    /// are pinned for the next. `seed`, drawn at random, keys their hashes, unless they have one.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Load`] without the capabilities, [`XdpFault::Pin`] if the folder is of no use.
    pub fn load(pins: Option<&Path>, seed: [u64; 2]) -> Result<Self, XdpFault> {
        let mut loader = EbpfLoader::new();
        if let Some(folder) = pins {
            fs::create_dir_all(folder).map_err(|error| pin_fault(folder, &error))?;
            for name in MAPS {
                loader.map_pin_path(name, folder.join(name));
            }
        }
        let mut object = loader.load(OBJECT)?;
        let loaded = program(&mut object).load();
        let what = "loading, which takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON".to_owned();
        loaded.map_err(|error| XdpFault::Program { what, error })?;
        let places = take_stock(&mut object, seed)?;
        Ok(Self { object, places, pins: pins.map(Path::to_owned), pinned: Vec::new() })
    }

    /// Attaches to `interface`, and says how. A pinned link of an earlier process gets this program
    /// in one step, so that no packet meets none.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Program`] if the interface does not exist or does not have what is `wanted`.
    pub fn attach(&mut self, interface: &str, wanted: Wanted) -> Result<Mode, XdpFault> {
        let modes: &[Mode] = match wanted {
            Wanted::Auto => &[Mode::Native, Mode::Generic],
            Wanted::Native => &[Mode::Native],
            Wanted::Generic => &[Mode::Generic],
        };
        let mut refused = None;
        for mode in modes {
            match self.attach_as(interface, *mode) {
                Ok(()) => {
                    tracing::info!(interface, %mode, "XDP attached");
                    return Ok(*mode);
                }
                Err(fault) => {
                    tracing::warn!(interface, %mode, %fault, "XDP refused");
                    refused = Some(fault);
                }
            }
        }
        Err(refused.expect("every choice has at least one mode"))
    }

    fn attach_as(&mut self, interface: &str, mode: Mode) -> Result<(), XdpFault> {
        let flags = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let fault =
            |error| XdpFault::Program { what: format!("attaching to {interface} ({mode})"), error };
        let pin = self.pins.as_ref().map(|folder| folder.join(format!("link-{interface}-{mode}")));
        let program = program(&mut self.object);
        if let Some(path) = pin.as_ref().filter(|path| path.exists()) {
            match take_over(program, path) {
                Ok(()) => return Ok(()),
                // The interface it was for is gone, perhaps for another of the same name.
                Err(why) => tracing::warn!(interface, %mode, why, "pinned XDP link of no use"),
            }
            fs::remove_file(path).map_err(|error| pin_fault(path, &error))?;
        }
        let id = program.attach(interface, flags).map_err(fault)?;
        let Some(path) = pin else {
            return Ok(());
        };
        let link = program.take_link(id).map_err(fault)?;
        let link = FdLink::try_from(link).map_err(|error| pin_fault(&path, &error))?;
        self.pinned.push(link.pin(&path).map_err(|error| pin_fault(&path, &error))?);
        Ok(())
    }

    /// Detaches for good: removes every pin, so that nothing is left once this is dropped.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Pin`] if a pin cannot be removed.
    pub fn detach(self) -> Result<(), XdpFault> {
        let Some(folder) = &self.pins else {
            return Ok(());
        };
        let pins = fs::read_dir(folder).map_err(|error| pin_fault(folder, &error))?;
        for pin in pins {
            let path = pin.map_err(|error| pin_fault(folder, &error))?.path();
            fs::remove_file(&path).map_err(|error| pin_fault(&path, &error))?;
        }
        fs::remove_dir(folder).map_err(|error| pin_fault(folder, &error))
    }

    /// Puts a configuration into force, for the next packet; its seed is that of the maps.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if the pinned map is not of this layout.
    pub fn configure(&mut self, config: &Config) -> Result<(), XdpFault> {
        let mut place: Array<_, [u8; Config::LEN]> = open(&mut self.object, "CONFIG")?;
        let config = Config { seed: self.places.seed(), ..*config };
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

    /// Lets packets leave by the interface with this number, as `slot` of [`wire::maps::exit::OUT`].
    ///
    /// # Errors
    ///
    /// [`XdpFault::Map`] if there is no such interface or slot.
    pub fn set_exit(&mut self, slot: u32, interface: u32) -> Result<(), XdpFault> {
        let mut map: DevMap<_> = open(&mut self.object, "OUT")?;
        map.set(slot, interface, None, 0).map_err(|error| map_fault("OUT", error))
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

fn program(object: &mut Ebpf) -> &mut Xdp {
    let program = object.program_mut(PROGRAM).expect("the committed object has this program");
    program.try_into().expect("it is an XDP program")
}

/// Gives the link pinned at `path` this program.
fn take_over(program: &mut Xdp, path: &Path) -> Result<(), String> {
    let link = PinnedLink::from_pin(path).map_err(|error| error.to_string())?;
    let link = XdpLink::try_from(FdLink::from(link)).map_err(|error| error.to_string())?;
    // aya keeps the link until the program is dropped; the pin keeps it after that.
    program.attach_to_link(link).map(|_| ()).map_err(|error| format!("{error:?}"))
}

/// What the maps hold already: everything if they were pinned, nothing if they are new, and then
/// they get their seed.
fn take_stock(object: &mut Ebpf, seed: [u64; 2]) -> Result<Places, XdpFault> {
    let mut place: Array<_, [u8; Config::LEN]> = open(object, "CONFIG")?;
    let found = place.get(&0, 0).map_err(|error| map_fault("CONFIG", error))?;
    let found = Config::decode(&found);
    if found.seed == [0; 2] {
        let [start, factor] = seed;
        let seed = [start, factor | 1];
        let first = Config { seed, ..Config::default() };
        place.set(0, first.encode(), 0).map_err(|error| map_fault("CONFIG", error))?;
        return Ok(Places::new(seed));
    }
    let mut places = Places::new(found.seed);
    let mut map: FlowMap<'_> = open(object, "FLOW")?;
    for number in 0..wire::maps::PLACES {
        let value = map.get(&number, 0).map_err(|error| map_fault("FLOW", error))?;
        if Flow::decode(&value).is_some_and(|flow| !places.found(number, flow)) {
            map.write(number, &Flow::FREE)?;
        }
    }
    Ok(places)
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

fn map_fault(name: &'static str, error: impl Into<XdpMapError>) -> XdpFault {
    XdpFault::Map { name, error: error.into() }
}

fn pin_fault(path: &Path, why: &dyn fmt::Display) -> XdpFault {
    XdpFault::Pin { path: path.to_owned(), why: why.to_string() }
}
