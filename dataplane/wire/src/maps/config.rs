//! Map `CONFIG`: what the programs do at all, and how fast they may be asked.
//!
//! Owns the switches, the arithmetic of rates, and where the seed puts flows and source prefixes.
//! It holds no state. The judge of [`crate::packet`] and the programs ask it, user space writes it.

use super::bytes::{Reader, Writer};
use super::{Address, BUCKETS, FlowKey, NEAR_MAX, PLACES, PORTS_MAX};

/// Switches in [`Config::features`].
pub mod feature {
    /// Binding requests are answered.
    pub const STUN: u32 = 1;
    /// WireGuard data of known flows is forwarded.
    pub const RELAY: u32 = 2;
    /// Binding requests that would be answered are dropped, so that clients look for another home.
    pub const SHED: u32 = 4;
    /// Some packets are traced, as map `WATCH` says. Only the loader sets it.
    pub const TRACE: u32 = 8;
    /// The time in the program is measured, as map `WATCH` says. Only the loader sets it.
    pub const TIME: u32 = 16;
}

/// Map `CONFIG`, an array of one: what the programs do at all. Written by user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// UDP ports served, as in a packet; 0 is no port.
    pub ports: [u16; PORTS_MAX],
    /// Bits of [`feature`].
    pub features: u32,
    /// How fast a source prefix may ask on one CPU.
    pub pace: Pace,
    /// Key of the hash that maps prefixes to buckets, drawn at random; the second is odd.
    pub seed: [u64; 2],
    /// Until when the process says that it is there. See [`Config::lives`].
    pub alive_until_ns: u64,
    /// Those of map `LOCAL` that most requests come to, which saves looking it up: a quarter of
    /// what an answer costs. [`Address::NONE`] where there are fewer.
    pub near: [Address; NEAR_MAX],
}

/// How long a session lasts without its peers' shaking hands again, which takes a relay: they take
/// no packet after 180 s (REJECT_AFTER_TIME of the WireGuard paper, section 6.1). With some to spare.
const SESSION_NS: u64 = 190_000_000_000;

/// A rate, as a bucket applies it without dividing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pace {
    /// Nanoseconds that one packet uses up.
    pub cost_ns: u64,
    /// Nanoseconds by which a prefix may be ahead of its rate: the burst times the cost.
    pub ahead_ns_max: u64,
}

impl Pace {
    /// `per_second` packets a second after a burst of `burst`. A rate of 0 admits nothing.
    #[must_use]
    pub const fn new(per_second: u32, burst: u32) -> Self {
        const SECOND_NS: u64 = 1_000_000_000;
        if per_second == 0 || burst == 0 {
            return Self { cost_ns: u64::MAX, ahead_ns_max: 0 };
        }
        let cost_ns = SECOND_NS.div_ceil(per_second as u64);
        Self { cost_ns, ahead_ns_max: cost_ns.saturating_mul(burst as u64) }
    }

    /// Whether `bucket` lets one more packet through at `now_ns`, which it then counts.
    ///
    /// A bucket holds the moment at which it will be full again. So it is one word, and taking a
    /// packet is one addition.
    #[inline(always)]
    pub const fn admit(&self, bucket: &mut u64, now_ns: u64) -> bool {
        let full_at = if *bucket < now_ns { now_ns } else { *bucket };
        let then = full_at.wrapping_add(self.cost_ns);
        // The first part also refuses a cost that wrapped.
        let admitted = then > now_ns && then - now_ns <= self.ahead_ns_max;
        if admitted {
            *bucket = then;
        }
        admitted
    }
}

impl Config {
    /// Whether `port`, as in a packet, is served.
    #[inline(always)]
    #[must_use]
    pub fn serves(&self, port: u16) -> bool {
        let [a, b, c, d, e, f] = self.ports;
        let any = a == port || b == port || c == port || d == port || e == port || f == port;
        any && port != 0
    }

    /// Whether `address` is one of the nearest.
    #[inline(always)]
    #[must_use]
    pub fn is_near(&self, address: &Address) -> bool {
        let [a, b] = &self.near;
        a == address || b == address
    }

    /// Whether the process was there a moment ago: if not, nobody is at home in this relay, and a
    /// request that is answered brings clients to it in vain.
    #[inline(always)]
    #[must_use]
    pub const fn lives(&self, now_ns: u64) -> bool {
        now_ns < self.alive_until_ns
    }

    /// Whether sessions may still be on that were made while [`Config::lives`] held.
    #[inline(always)]
    #[must_use]
    pub const fn lingers(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(SESSION_NS) < self.alive_until_ns
    }

    /// Whether all of `features` are switched on.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, features: u32) -> bool {
        self.features & features == features
    }

    /// The two places in map `FLOW` where a flow may stand, under the secret seed.
    #[inline(always)]
    #[must_use]
    pub const fn places(&self, key: &FlowKey) -> [u32; 2] {
        let [a, b, c, d] = key.source.0;
        const BITS: u32 = PLACES.trailing_zeros();
        let ports = (key.source_port as u32) << 16 | key.local_port as u32;
        let [start, factor] = self.seed;
        let hash = mix(start ^ pair(a, b), factor);
        let hash = mix(hash ^ pair(c, d), factor);
        let hash = mix(hash ^ pair(ports, key.receiver), factor);
        // Only the top of a product has seen all bits, and two numbers are wanted from there.
        let hash = hash.wrapping_mul(factor);
        [(hash >> (64 - BITS)) as u32, (hash >> (64 - 2 * BITS)) as u32 & (PLACES - 1)]
    }

    /// The bucket of a source prefix: two rounds of multiplying and folding under the secret seed.
    #[inline(always)]
    #[must_use]
    pub const fn bucket(&self, prefix: u64) -> u32 {
        let [a, b] = self.seed;
        let once = (prefix ^ a).wrapping_mul(b);
        let twice = (once ^ once >> 32).wrapping_mul(b);
        (twice >> 32) as u32 & (BUCKETS - 1)
    }
}

impl Config {
    /// Bytes of the value.
    pub const LEN: usize = 88;

    /// As map memory has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        for port in self.ports {
            out.put(port.to_ne_bytes());
        }
        out.put(self.features.to_ne_bytes());
        let [a, b] = self.seed;
        let pace = self.pace;
        for long in [pace.cost_ns, pace.ahead_ns_max, a, b, self.alive_until_ns] {
            out.put(long.to_ne_bytes());
        }
        for address in self.near {
            out.words(address.0);
        }
        out.finish()
    }

    /// From map memory.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut bytes = Reader(bytes);
        Self {
            ports: core::array::from_fn(|_| bytes.short()),
            features: bytes.word(),
            pace: Pace { cost_ns: bytes.long(), ahead_ns_max: bytes.long() },
            seed: [bytes.long(), bytes.long()],
            alive_until_ns: bytes.long(),
            near: core::array::from_fn(|_| Address(bytes.words())),
        }
    }
}

#[inline(always)]
const fn pair(a: u32, b: u32) -> u64 {
    (a as u64) << 32 | b as u64
}

/// A round of hashing: the product's high half, which all bits go into, over its low one.
#[inline(always)]
const fn mix(value: u64, factor: u64) -> u64 {
    let product = value.wrapping_mul(factor);
    product ^ product >> 32
}

const _: () = assert!(size_of::<Config>() == Config::LEN && align_of::<Config>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;
    extern crate std;
    use proptest::prelude::*;

    #[test]
    fn encoded_fields_stand_where_the_struct_has_them() {
        let config = Config {
            ports: [1, 2, 3, 4, 5, 6],
            features: 7,
            pace: Pace { cost_ns: 8, ahead_ns_max: 9 },
            seed: [10, 11],
            alive_until_ns: 14,
            near: [Address([12; 4]), Address([13; 4])],
        };
        let bytes = config.encode();
        assert_eq!(bytes[offset_of!(Config, ports) + 10], 6);
        assert_eq!(bytes[offset_of!(Config, features)], 7);
        assert_eq!(bytes[offset_of!(Config, pace) + offset_of!(Pace, ahead_ns_max)], 9);
        assert_eq!(bytes[offset_of!(Config, seed) + 8], 11);
        assert_eq!(bytes[offset_of!(Config, alive_until_ns)], 14);
        assert_eq!(bytes[offset_of!(Config, near) + 16], 13);
    }

    #[test]
    fn flows_spread_over_the_places() {
        let config =
            Config { seed: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345], ..Config::default() };
        let local = "198.51.100.1:3478".parse().expect("an address");
        // Indices in sequence from one peer, the least random that there is.
        let mut used = std::vec![[false; 3]; PLACES as usize];
        for receiver in 0..PLACES {
            let key = FlowKey::new("192.0.2.7:258".parse().expect("an address"), local, receiver);
            let [a, b] = config.places(&key);
            // Were one choice to follow from the other, their difference would hardly vary.
            for (i, place) in [a, b, a ^ b].into_iter().enumerate() {
                used[place as usize][i] = true;
            }
        }
        // Random placement leaves 1/e, 37 %, of the places empty.
        for choice in 0..3 {
            let empty = used.iter().filter(|used| !used[choice]).count();
            assert!((33..41).contains(&(empty * 100 / used.len())), "{choice}: {empty}");
        }
    }

    #[test]
    fn a_lease_ends_for_data_later() {
        let config = Config { alive_until_ns: 500_000_000_000, ..Config::default() };
        assert!(config.lives(0) && config.lives(499_999_999_999));
        assert!(!config.lives(500_000_000_000));
        assert!(config.lingers(0) && config.lingers(500_000_000_000));
        assert!(config.lingers(689_999_999_999));
        assert!(!config.lingers(690_000_000_000));
        assert!(!Config::default().lives(0) && !Config::default().lingers(0));
    }

    #[test]
    fn only_ports_given_are_served() {
        let config = Config { ports: [0, 80, 0, 0, 0, 443], ..Config::default() };
        assert!(config.serves(80) && config.serves(443));
        assert!(!config.serves(0) && !config.serves(81));
    }

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let pace = Pace::new(1000, 20);
        let mut bucket = 0;
        let now = 5_000_000_000;
        assert_eq!((0..50).filter(|_| pace.admit(&mut bucket, now)).count(), 20);
        assert!(!pace.admit(&mut bucket, now + 999_999));
        assert!(pace.admit(&mut bucket, now + 1_000_000));
        assert!(!pace.admit(&mut bucket, now + 1_000_000));
        let much_later = now + 60_000_000_000;
        assert_eq!((0..50).filter(|_| pace.admit(&mut bucket, much_later)).count(), 20);
        for none in [Pace::new(0, 5), Pace::new(5, 0)] {
            assert!(!none.admit(&mut 0, now));
        }
    }

    proptest! {
        #[test]
        fn values_round_trip(config: [u8; Config::LEN]) {
            prop_assert_eq!(Config::decode(&config).encode(), config);
        }

        #[test]
        fn a_bucket_never_gives_more_than_burst_and_rate(
            per_second in 1..=u32::MAX,
            burst in 1..=10_000_u32,
            pauses in prop::collection::vec(0..=3_000_000_000_u64, 0..200),
        ) {
            let pace = Pace::new(per_second, burst);
            let (mut bucket, mut now, mut given) = (0, 1, 0_u128);
            for pause in &pauses {
                now += pause;
                given += u128::from(pace.admit(&mut bucket, now));
                let allowed = u128::from(now) * u128::from(per_second) / 1_000_000_000;
                prop_assert!(given <= u128::from(burst) + allowed);
            }
        }

        #[test]
        fn any_bucket_and_moment_are_safe(pace: [u64; 2], mut bucket: u64, now: u64) {
            let [cost_ns, ahead_ns_max] = pace;
            Pace { cost_ns, ahead_ns_max }.admit(&mut bucket, now);
        }

        #[test]
        fn places_are_in_the_table(seed: [u64; 2], key: [u8; FlowKey::LEN]) {
            let config = Config { seed, ..Config::default() };
            let [a, b] = config.places(&FlowKey::decode(&key));
            prop_assert!(a < PLACES && b < PLACES);
        }

        #[test]
        fn buckets_are_in_the_table(seed: [u64; 2], prefix: u64) {
            let config = Config { seed, ..Config::default() };
            prop_assert!(config.bucket(prefix) < BUCKETS);
        }
    }
}
