//! A made-up relay: its addresses, ports, clients and flows.
//!
//! Owns the tables that the fast path looks into, as ordinary collections. The compiled programs
//! get the same contents through their maps.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use wire::maps::{Address, BUCKETS, Config, FlowKey, Hop, PORTS_MAX, Pace, Tally, exit, feature};
use wire::packet::World;

/// Port of STUN and WireGuard together.
pub const PORT: u16 = 3478;
/// Another served port.
pub const PORT_2: u16 = 51_820;
/// Addresses of the relay.
pub const LOCALS: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
/// Places that peers speak from.
pub const PEERS: [&str; 6] = [
    "198.51.100.7:51820",
    "198.51.100.8:1",
    "203.0.113.9:65535",
    "[2001:db8:1::7]:51820",
    "[2001:db8:2::8]:4242",
    "[2001:db8:3::9]:51820",
];
/// The slot of the one interface that packets can be redirected to.
pub const OUT: u32 = 3;
/// An empty slot.
pub const GONE: u32 = 5;

/// The relay's tables.
#[derive(Clone, Debug)]
pub struct Table {
    /// What is switched on.
    pub config: Config,
    /// Its addresses.
    pub locals: HashSet<Address>,
    /// Flows that may pass.
    pub flows: HashMap<FlowKey, Hop>,
    /// Slots with an interface.
    pub exits: HashSet<u32>,
    /// The clock.
    pub now_ns: Cell<u64>,
    buckets: RefCell<Vec<u64>>,
    /// What was counted.
    pub cells: RefCell<HashMap<u32, Tally>>,
}

impl Table {
    /// Everything switched on, without a limit that tests would meet.
    ///
    /// # Panics
    /// Never: the addresses above are addresses.
    #[must_use]
    pub fn new() -> Self {
        let locals = LOCALS.map(|ip| Address::from(ip.parse::<IpAddr>().expect("an address")));
        let mut ports = [0; PORTS_MAX];
        ports[0] = PORT.to_be();
        ports[PORTS_MAX - 1] = PORT_2.to_be();
        let config = Config {
            ports,
            features: feature::STUN | feature::RELAY,
            pace: Pace::new(1_000_000, 1_000_000_000),
            seed: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345],
            alive_until_ns: u64::MAX,
            // One near, two only in the table.
            near: [locals[0], Address::NONE],
        };
        Self {
            config,
            locals: locals.into(),
            flows: flows(),
            exits: [OUT].into(),
            now_ns: Cell::new(1_000_000_000),
            buckets: RefCell::new(vec![0; BUCKETS as usize]),
            cells: RefCell::default(),
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// Receiver index of the flow from peer `from` to peer `to`.
#[must_use]
pub fn receiver(from: usize, to: usize) -> u32 {
    // One of them has the number that STUN's cookie has in that place.
    if (from, to) == (0, 1) { 0x42a4_1221 } else { 0x0100 * from as u32 + to as u32 }
}

/// Flows between all peers of one family; in both there is every kind of exit.
fn flows() -> HashMap<FlowKey, Hop> {
    let peers = PEERS.map(|peer| peer.parse::<SocketAddr>().expect("an address"));
    let mut flows = HashMap::new();
    for (i, from) in peers.into_iter().enumerate() {
        for (j, to) in peers.into_iter().enumerate() {
            let (local, leaving) =
                if from.is_ipv4() { (LOCALS[0], LOCALS[1]) } else { (LOCALS[2], LOCALS[2]) };
            let local = SocketAddr::new(local.parse().expect("an address"), PORT);
            let leaving = SocketAddr::new(leaving.parse().expect("an address"), PORT_2);
            let cell = (10 * i + j) as u32;
            let Some(hop) = Hop::back(local, leaving, to, cell).filter(|_| i != j) else {
                continue;
            };
            let exit = [exit::BACK, exit::TURN, exit::OUT + OUT, exit::OUT + GONE][(i + j * j) % 4];
            let hop = if exit == exit::BACK {
                hop
            } else {
                hop.by(exit, [2, 0, 0, 0, 1, j as u8], [2, 0, 0, 0, 0, 0xaa])
            };
            flows.insert(FlowKey::new(from, local, receiver(i, j)), hop);
        }
    }
    flows
}

impl World for Table {
    fn config(&self) -> &Config {
        &self.config
    }

    fn is_local(&self, address: &Address) -> bool {
        self.locals.contains(address)
    }

    fn flow(&self, key: &FlowKey) -> Option<&Hop> {
        self.flows.get(key)
    }

    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn admit(&self, prefix: u64, now_ns: u64) -> bool {
        let bucket = self.config.bucket(prefix) as usize;
        let mut buckets = self.buckets.borrow_mut();
        self.config.pace.admit(&mut buckets[bucket], now_ns)
    }

    fn is_ingress(&self, _: u32) -> bool {
        false
    }

    fn redirect(&self, out: u32) -> bool {
        self.exits.contains(&out)
    }

    fn account(&self, cell: u32, packets: u64, bytes: u64) {
        self.cells.borrow_mut().entry(cell).or_default().add(packets, bytes);
    }
}
