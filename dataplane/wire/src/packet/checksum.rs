//! The Internet checksum (RFC 1071) and its incremental repair (RFC 1624).
//!
//! Owns the arithmetic over words as they lie in memory; the sum does not depend on their byte
//! order as long as all of them have the same. It reads no packet. The other modules of
//! [`crate::packet`] call it.

/// `sum` of 16- and 32-bit words as one's complement sum of 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field of an IPv4 header whose other words have `sum`.
#[inline(always)]
#[must_use]
pub const fn ipv4(sum: u64) -> u16 {
    !fold(sum)
}

/// The checksum field of a UDP datagram whose other words, pseudo header included, have `sum`. It
/// is never 0, which stands for no checksum (RFC 768).
#[inline(always)]
#[must_use]
pub const fn udp(sum: u64) -> u16 {
    match !fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Whether words with `sum`, checksum included, agree with their checksum.
#[inline(always)]
#[must_use]
pub const fn holds(sum: u64) -> bool {
    fold(sum) == 0xffff
}

/// The checksum `old` of an IPv4 header after words with sum `minus` gave way to words with sum
/// `plus` (RFC 1624 equation 3). What was wrong before stays wrong.
#[inline(always)]
#[must_use]
pub const fn repair_ipv4(old: u16, minus: u64, plus: u64) -> u16 {
    ipv4(!old as u64 + !fold(minus) as u64 + plus)
}

/// As [`repair_ipv4`], for UDP; `old` is not 0.
#[inline(always)]
#[must_use]
pub const fn repair_udp(old: u16, minus: u64, plus: u64) -> u16 {
    udp(!old as u64 + !fold(minus) as u64 + plus)
}

/// By how much words with sum `plus` are more than words with sum `minus`, for [`super::Change`].
#[inline(always)]
#[must_use]
pub const fn difference(minus: u64, plus: u64) -> u32 {
    !fold(minus) as u32 + fold(plus) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    extern crate std;
    use std::vec::Vec;

    /// RFC 1071 as it is written: big-endian words one by one, carries at once.
    fn slow(words: &[u16]) -> u16 {
        words.iter().fold(0_u16, |sum, word| {
            let (sum, carry) = sum.overflowing_add(u16::from_be_bytes(word.to_ne_bytes()));
            sum + u16::from(carry)
        })
    }

    fn sum(words: &[u16]) -> u64 {
        words.iter().map(|word| u64::from(*word)).sum()
    }

    #[test]
    fn sums_as_rfc_1071_does() {
        let words: [u16; 4] = [0x0001, 0xf203, 0xf4f5, 0xf6f7].map(u16::to_be);
        assert_eq!(u16::from_be(fold(sum(&words))), 0xddf2);
    }

    #[test]
    fn repairs_the_example_of_rfc_1624() {
        let [old, minus, plus] = [0xdd2f_u16, 0x5555, 0x3285].map(u16::to_be);
        assert_eq!(u16::from_be(repair_ipv4(old, minus.into(), plus.into())), 0x0000);
        assert_eq!(repair_udp(old, minus.into(), plus.into()), 0xffff);
    }

    #[test]
    fn folds_the_largest_sums() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0), 0);
        assert_eq!(fold(0xffff_ffff_0000_0001), 1);
    }

    proptest! {
        #[test]
        fn agrees_with_the_slow_sum(words in prop::collection::vec(any::<u16>(), 0..800)) {
            prop_assert_eq!(u16::from_be(fold(sum(&words))), slow(&words));
            let pairs: u64 = words
                .chunks_exact(2)
                .map(|pair| u64::from(u32::from(pair[0]) << 16 | u32::from(pair[1])))
                .sum();
            let even = &words[..words.len() / 2 * 2];
            prop_assert_eq!(fold(pairs), fold(sum(even)));
        }

        #[test]
        fn a_checksum_holds_and_survives_repair(
            words in prop::collection::vec(any::<u16>(), 8..40),
            changes in prop::collection::vec((0..8_usize, any::<u16>()), 1..8),
        ) {
            let rest = sum(&words);
            prop_assume!(rest > 0);
            let (header, datagram) = (ipv4(rest), udp(rest));
            prop_assert!(holds(rest + u64::from(header)));
            prop_assert!(holds(rest + u64::from(datagram)) && datagram != 0);
            let mut changed: Vec<u16> = words.clone();
            for (place, value) in changes {
                changed[place] = value;
            }
            let (minus, plus) = (sum(&words[..8]), sum(&changed[..8]));
            prop_assume!(sum(&changed) > 0 && plus > 0);
            prop_assert_eq!(repair_udp(datagram, minus, plus), udp(sum(&changed)));
            prop_assert_eq!(repair_ipv4(header, minus, plus), ipv4(sum(&changed)));
            let wrong = if datagram >= 0xfffe { 1 } else { datagram + 1 };
            let repaired = repair_udp(wrong, minus, plus);
            prop_assert!(!holds(sum(&changed) + u64::from(repaired)));
        }
    }
}
