//! The STUN responder: which requests are answered, and how often.
//!
//! Owns one token bucket per source prefix, in a table of fixed size (invariant 3). Its purpose is
//! to bound what a forged source address can aim at somebody else's network, not to shed load:
//! limits are far above what real clients behind one prefix send. It reads no clock and draws no
//! entropy (invariant 1), allocates only in [`Responder::new`], and gives every datagram one
//! verdict (invariant 4). The UDP loop of each core has one; the fuzz target drives it too.

use alloc::boxed::Box;
use alloc::vec;
use core::net::{IpAddr, SocketAddr};

use wire::drop::DropReason;
use wire::stun::{ANSWER_LEN_MAX, parse};

use crate::bucket::{Bucket, Rate};
use crate::tick::Tick;

/// Answers per source prefix and core unless configured otherwise. A client asks about once in 25
/// seconds, so this serves 25,000 clients behind one carrier-grade NAT.
pub const RATE_DEFAULT: Rate = Rate { per_second: 1000, burst: 2000 };

/// Buckets in the table, a power of two; they take 64 KiB per core.
pub const BUCKETS: usize = 4096;

const _: () = assert!(BUCKETS.is_power_of_two());

/// What to do with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send that many bytes of `out` back to where the datagram came from.
    Answer(usize),
    /// Send nothing.
    Drop(DropReason),
}

/// Answers STUN requests on one core.
///
/// A prefix is mapped to a bucket by a keyed hash, and prefixes that meet in one share its tokens:
/// no chains to walk, no entry to evict, and without the seed nobody can choose whom to meet. To
/// empty the whole table, forged sources must send four million requests per second by default.
///
/// The kernel spreads the sources of a prefix over the cores, so that the rate of a prefix on the
/// whole host is up to the number of cores times the configured one.
#[derive(Debug)]
pub struct Responder {
    buckets: Box<[Bucket]>,
    rate: Rate,
    /// Secret, so that collisions cannot be computed.
    seed: Seed,
    /// Whether nothing is answered any more.
    shedding: bool,
}

/// The key of the hash that maps prefixes to buckets, drawn by the caller at random.
#[derive(Clone, Copy)]
pub struct Seed(pub [u64; 2]);

/// Without its value: it is a secret (invariant 7).
impl core::fmt::Debug for Seed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl Responder {
    /// A responder whose buckets are all full.
    #[must_use]
    pub fn new(seed: Seed, rate: Rate, now: Tick) -> Self {
        Self { buckets: vec![Bucket::full(rate, now); BUCKETS].into(), rate, seed, shedding: false }
    }

    /// From now on requests that would be answered are dropped, or no longer: while the relay is
    /// draining, clients are to find another one.
    pub const fn shed(&mut self, shedding: bool) {
        self.shedding = shedding;
    }

    /// Judges one datagram and writes the answer, if there is one, to the start of `out`. Only a
    /// request that would be answered takes a token.
    #[inline]
    pub fn step(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Tick,
        out: &mut [u8; ANSWER_LEN_MAX],
    ) -> Verdict {
        let request = match parse(datagram) {
            Ok(request) => request,
            Err(reject) => return Verdict::Drop(reject.drop_reason()),
        };
        if self.shedding {
            return Verdict::Drop(DropReason::Shed);
        }
        let slot = self.seed.slot(prefix(from.ip()));
        let granted = self.buckets.get_mut(slot).is_some_and(|it| it.take(1, now, self.rate));
        if granted {
            Verdict::Answer(request.answer(from, out).len())
        } else {
            Verdict::Drop(DropReason::RateLimited)
        }
    }
}

impl Seed {
    /// The bucket of a prefix: one widening multiplication, folded, as wyhash does.
    #[inline]
    fn slot(self, prefix: u64) -> usize {
        let [a, b] = self.0;
        let product = u128::from(prefix ^ a) * u128::from(b | 1);
        ((product >> 64) as u64 ^ product as u64) as usize & (BUCKETS - 1)
    }
}

/// The network that `ip` is counted under, as a number no other network has.
///
/// IPv4: /24, the smallest announced on the Internet. IPv6: /48, the most that one site is given
/// (RFC 6177); a longer prefix would hand one owner thousands of buckets. IPv4 mapped into IPv6
/// is IPv4.
#[inline]
fn prefix(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits() >> 8),
        IpAddr::V6(ip) => 1 << 48 | (ip.to_bits() >> 80) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wire::stun::{Answer, TxId, parse_answer, request};

    const RATE: Rate = Rate { per_second: 10, burst: 20 };
    const SEED: Seed = Seed([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]);
    const TXID: TxId = TxId([7; 12]);

    /// A responder and its clients, with a clock that tests move.
    struct Pair {
        responder: Responder,
        now: Tick,
    }

    impl Pair {
        fn new() -> Self {
            Self { responder: Responder::new(SEED, RATE, Tick::ZERO), now: Tick::ZERO }
        }

        /// Sends a request from `source` and returns what the client then knows.
        fn ask(&mut self, source: &str) -> Result<Answer, DropReason> {
            let from = source.parse().expect("an address");
            let mut out = [0; ANSWER_LEN_MAX];
            match self.responder.step(&request(TXID), from, self.now, &mut out) {
                Verdict::Answer(len) => Ok(parse_answer(&out[..len]).expect("an answer")),
                Verdict::Drop(reason) => Err(reason),
            }
        }

        /// How many of `count` requests are answered.
        fn count(&mut self, source: &str, count: usize) -> usize {
            (0..count).filter(|_| self.ask(source).is_ok()).count()
        }
    }

    #[test]
    fn tells_clients_their_address() {
        let mut pair = Pair::new();
        for source in ["192.0.2.1:1025", "[2001:db8::1]:1025"] {
            let address = source.parse().expect("an address");
            assert_eq!(pair.ask(source), Ok(Answer { txid: TXID, address }));
        }
    }

    #[test]
    fn limits_a_prefix_and_refills_it() {
        let mut pair = Pair::new();
        assert_eq!(pair.count("192.0.2.1:1", 15), 15);
        assert_eq!(pair.count("192.0.2.255:9", 15), 5);
        assert_eq!(pair.ask("[::ffff:192.0.2.7]:1"), Err(DropReason::RateLimited));
        assert_eq!(pair.count("192.0.3.1:1", 15), 15);
        pair.now = Tick(500_000_000);
        assert_eq!(pair.count("192.0.2.1:1", 15), 5);
    }

    #[test]
    fn limits_ipv6_by_site() {
        let mut pair = Pair::new();
        assert_eq!(pair.count("[2001:db8:1::1]:1", 30), 20);
        assert_eq!(pair.count("[2001:db8:1:ffff::1]:1", 30), 0);
        assert_eq!(pair.count("[2001:db8:2::1]:1", 30), 20);
    }

    #[test]
    fn only_answers_take_tokens() {
        let mut pair = Pair::new();
        let from = "192.0.2.1:1".parse().expect("an address");
        let mut out = [0; ANSWER_LEN_MAX];
        for _ in 0..50 {
            let verdict = pair.responder.step(b"other protocol", from, pair.now, &mut out);
            assert_eq!(verdict, Verdict::Drop(DropReason::NotStun));
            let verdict = pair.responder.step(&request(TXID)[..39], from, pair.now, &mut out);
            assert_eq!(verdict, Verdict::Drop(DropReason::BadStun));
        }
        assert_eq!(pair.count("192.0.2.1:1", 30), 20);
    }

    #[test]
    fn does_not_answer_answers() {
        let mut responder = Responder::new(SEED, RATE, Tick::ZERO);
        let from = "192.0.2.1:3478".parse().expect("an address");
        let (mut out, mut again) = ([0; ANSWER_LEN_MAX], [0; ANSWER_LEN_MAX]);
        let Verdict::Answer(len) = responder.step(&request(TXID), from, Tick::ZERO, &mut out)
        else {
            panic!("a request is answered");
        };
        let verdict = responder.step(&out[..len], from, Tick::ZERO, &mut again);
        assert_eq!(verdict, Verdict::Drop(DropReason::BadStun));
    }

    #[test]
    fn prefixes_spread_over_the_table() {
        let mut used = [false; BUCKETS];
        for net in 0..4 * BUCKETS as u64 {
            used[SEED.slot(net)] = true;
        }
        // Random placement leaves 1/e^4, under 2 %, of the buckets empty.
        assert!(used.iter().filter(|used| !**used).count() < BUCKETS / 20);
    }

    proptest! {
        #[test]
        fn any_datagram_gets_one_verdict(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            ip: IpAddr,
            port: u16,
            now: u64,
        ) {
            let mut responder = Responder::new(SEED, RATE, Tick::ZERO);
            let mut out = [0; ANSWER_LEN_MAX];
            let from = SocketAddr::new(ip, port);
            match responder.step(&bytes, from, Tick(now), &mut out) {
                Verdict::Answer(len) => prop_assert!(parse_answer(&out[..len]).is_ok()),
                Verdict::Drop(reason) => {
                    prop_assert!([DropReason::NotStun, DropReason::BadStun].contains(&reason));
                }
            }
            let verdict = responder.step(&request(TXID), from, Tick(now), &mut out);
            prop_assert!(matches!(verdict, Verdict::Answer(32 | 44)));
        }

        #[test]
        fn slots_are_in_the_table(seed: [u64; 2], prefix: u64) {
            prop_assert!(Seed(seed).slot(prefix) < BUCKETS);
        }
    }
}
