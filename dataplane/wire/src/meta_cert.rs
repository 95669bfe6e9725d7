//! The meta certificate: it tells TLS 1.3 clients the relay's key and saves them a round trip.
//!
//! Owns its 359 bytes and the rule by which clients find it among a server's certificates. It
//! neither signs nor reads a clock (invariant 1): the caller brings a throw-away Ed25519 key and
//! the times. The TLS set-up builds one per process start and puts it last in the chain.
//!
//! The common name has 71 characters where X.520 allows 64, and the certificate must have no key
//! identifiers (probers skip their expiry check when both are missing), so X.509 builders fail.

use crate::key::{KEY_LEN, Key};

/// Bytes of the certificate.
pub const LEN: usize = 359;
/// Bytes of an Ed25519 public key.
pub const PUBLIC_LEN: usize = 32;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_LEN: usize = 64;
/// Bytes of a UTCTime: `YYMMDDhhmmssZ`.
pub const TIME_LEN: usize = 13;
/// What the common name starts with; the key follows in lower-case hex.
const NAME_PREFIX: [u8; 7] = *b"derpkey";
/// The bytes covered by the signature.
const SIGNED: core::ops::Range<usize> = 4..285;
/// Most elements walked on one level of a certificate. Real ones have about ten.
const ELEMENTS_MAX: usize = 64;

/// A certificate that lacks its signature.
///
/// ```text
///    0  30 82 01 63                                     Certificate, 355 bytes
///    4    30 82 01 15                                   TBSCertificate, 277 bytes; 4..285 signed
///    8      a0 03 02 01 02   02 01 02                   v3, serial number = DERP version
///   16      30 05 06 03 2b 65 70                        Ed25519
///   23      30 52 31 50 30 4e 06 03 55 04 03 13 47      issuer: CN, PrintableString of 71
///   36        "derpkey" and 64 hex digits
///  107      30 1e 17 0d not-before 17 0d not-after      validity, two times of 13 characters
///  139      30 52 31 50 30 4e 06 03 55 04 03 13 47      subject
///  152        "derpkey" and 64 hex digits
///  223      30 2a 30 05 06 03 2b 65 70 03 21 00         SubjectPublicKeyInfo
///  235        Ed25519 public key, 32 bytes
///  267      a3 10 30 0e 30 0c 06 03 55 1d 13 01 01 ff 04 02 30 00   BasicConstraints, critical
///  285    30 05 06 03 2b 65 70                          Ed25519
///  292    03 41 00                                      BIT STRING
///  295      signature, 64 bytes
///  359
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaCert {
    /// The last 64 bytes are zero.
    bytes: [u8; LEN],
}

const _: () = assert!(size_of::<MetaCert>() == LEN);

/// The certificate for `server_key` up to its signature. The times come from [`utc_time`].
#[must_use]
pub fn unsigned(
    server_key: &Key,
    ed25519_public: &[u8; PUBLIC_LEN],
    not_before: &[u8; TIME_LEN],
    not_after: &[u8; TIME_LEN],
) -> MetaCert {
    const NAME: [u8; 13] = *b"\x30\x52\x31\x50\x30\x4e\x06\x03\x55\x04\x03\x13\x47";
    const ED25519: [u8; 7] = *b"\x30\x05\x06\x03\x2b\x65\x70";
    let hex = server_key.to_hex();
    let parts: [&[u8]; 20] = [
        b"\x30\x82\x01\x63\x30\x82\x01\x15",
        b"\xa0\x03\x02\x01\x02\x02\x01",
        &[crate::derp::VERSION],
        &ED25519,
        &NAME,
        &NAME_PREFIX,
        &hex,
        b"\x30\x1e\x17\x0d",
        not_before,
        b"\x17\x0d",
        not_after,
        &NAME,
        &NAME_PREFIX,
        &hex,
        b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00",
        ed25519_public,
        b"\xa3\x10\x30\x0e\x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00",
        &ED25519,
        b"\x03\x41\x00",
        &[0; SIGNATURE_LEN],
    ];
    let mut bytes = [0; LEN];
    for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    MetaCert { bytes }
}

impl MetaCert {
    /// The bytes to be signed with the throw-away key.
    #[must_use]
    pub fn to_be_signed(&self) -> &[u8] {
        &self.bytes[SIGNED]
    }

    /// The finished certificate in DER.
    #[must_use]
    pub fn with_signature(mut self, signature: &[u8; SIGNATURE_LEN]) -> [u8; LEN] {
        self.bytes[LEN - SIGNATURE_LEN..].copy_from_slice(signature);
        self.bytes
    }
}

/// UTCTime text (`YYMMDDhhmmssZ`) of a moment in seconds since 1970.
///
/// Two digits of a year end with 2049; a later moment is written as the last second of that year.
#[must_use]
pub fn utc_time(unix_seconds: u64) -> [u8; TIME_LEN] {
    /// 2049-12-31 23:59:59.
    const LAST: u64 = 2_524_607_999;
    const DAY: u64 = 86_400;
    let seconds = unix_seconds.min(LAST);
    let (year, month, day) = civil_from_days((seconds / DAY) as u32);
    let in_day = (seconds % DAY) as u32;
    let fields = [year % 100, month, day, in_day / 3600, in_day / 60 % 60, in_day % 60];
    let mut text = [b'Z'; TIME_LEN];
    for (pair, field) in text.chunks_exact_mut(2).zip(fields) {
        pair.copy_from_slice(&[b'0' + (field / 10) as u8, b'0' + (field % 10) as u8]);
    }
    text
}

/// Year, month and day of the `days`th day after 1970-01-01, with years that start in March, so
/// that the leap day comes last (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
const fn civil_from_days(days: u32) -> (u32, u32, u32) {
    /// From 0000-03-01 to 1970-01-01.
    const EPOCH: u32 = 719_468;
    /// Days of 400 years.
    const ERA: u32 = 146_097;
    let era = (days + EPOCH) / ERA;
    let day_of_era = (days + EPOCH) % ERA;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + (month <= 2) as u32, month, day)
}

/// What a client learns from a meta certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The relay's key, so that the client need not wait for the `ServerKey` frame.
    pub server_key: Key,
    /// The DERP version, from the serial number.
    pub version: u8,
}

/// Reads `certificate` (DER) as clients do: `Some` if its subject's common name is `derpkey` and 64
/// lower-case hex digits and its serial number is in 1..=255. A client asks this of every
/// certificate it is shown and takes the first that answers; it does so only under TLS 1.3, where
/// nobody between could have put one in.
#[must_use]
pub fn announced(certificate: &[u8]) -> Option<Announced> {
    let fields =
        Element::read(Element::read(certificate)?.of(tag::SEQUENCE)?)?.of(tag::SEQUENCE)?;
    let version = Element::read(fields)?;
    let rest = if version.tag == tag::VERSION { version.rest } else { fields };
    let serial = Element::read(rest)?;
    let algorithm = Element::read(serial.rest)?;
    let issuer = Element::read(algorithm.rest)?;
    let validity = Element::read(issuer.rest)?;
    let subject = Element::read(validity.rest)?;
    Some(Announced {
        server_key: key_of(common_name(subject.of(tag::SEQUENCE)?)?)?,
        version: small_integer(serial.of(tag::INTEGER)?)?,
    })
}

/// ASN.1 tags (X.690) that the walk checks.
mod tag {
    pub(super) const INTEGER: u8 = 0x02;
    pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const SET: u8 = 0x31;
    pub(super) const VERSION: u8 = 0xa0;
}

/// One DER element: tag, length in one to three bytes, content.
#[derive(Clone, Copy)]
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Element<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (&[tag, first], after) = bytes.split_first_chunk()?;
        let (len, after) = match first {
            0..=0x7f => (usize::from(first), after),
            0x81 => after.split_first().map(|(len, after)| (usize::from(*len), after))?,
            0x82 => {
                let (len, after) = after.split_first_chunk()?;
                (usize::from(u16::from_be_bytes(*len)), after)
            }
            _ => return None,
        };
        let (content, rest) = after.split_at_checked(len)?;
        Some(Self { tag, content, rest })
    }

    fn of(self, tag: u8) -> Option<&'a [u8]> {
        (self.tag == tag).then_some(self.content)
    }
}

/// The last common name of a distinguished name, as Go's parser has it, which stock clients use.
fn common_name(mut names: &[u8]) -> Option<&[u8]> {
    const COMMON_NAME: &[u8] = b"\x55\x04\x03";
    let mut found = None;
    for _ in 0..ELEMENTS_MAX {
        if names.is_empty() {
            break;
        }
        let set = Element::read(names)?;
        names = set.rest;
        let mut attributes = set.of(tag::SET)?;
        for _ in 0..ELEMENTS_MAX {
            if attributes.is_empty() {
                break;
            }
            let attribute = Element::read(attributes)?;
            attributes = attribute.rest;
            let kind = Element::read(attribute.of(tag::SEQUENCE)?)?;
            if kind.of(tag::OBJECT_IDENTIFIER)? == COMMON_NAME {
                found = Some(Element::read(kind.rest)?.content);
            }
        }
    }
    found
}

fn key_of(name: &[u8]) -> Option<Key> {
    let hex = name.strip_prefix(&NAME_PREFIX)?;
    let lower = hex.len() == KEY_LEN * 2 && !hex.iter().any(u8::is_ascii_uppercase);
    Key::from_hex(core::str::from_utf8(hex).ok().filter(|_| lower)?)
}

/// The value of an INTEGER from 1 to 255. From 128 on a zero byte stands before it for the sign.
fn small_integer(content: &[u8]) -> Option<u8> {
    match *content {
        [value @ 1..=0x7f] | [0, value @ 0x80..=0xff] => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    extern crate std;
    use std::vec::Vec;

    /// Made by Go's crypto/x509, the library behind derper, for the server key a0..bf with the
    /// Ed25519 key of seed 00..1f, valid from 2026-02-28 23:59:59 for 60 days.
    const STOCK: &str = "\
         3082016330820115a003020102020102300506032b657030523150304e0603550403134764657270\
         6b657961306131613261336134613561366137613861396161616261636164616561666230623162\
         326233623462356236623762386239626162626263626462656266301e170d323630323238323335\
         3935395a170d3236303432393233353935395a30523150304e06035504031347646572706b657961\
         30613161326133613461356136613761386139616161626163616461656166623062316232623362\
         3462356236623762386239626162626263626462656266302a300506032b657003210003a107bff3\
         ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8a310300e300c0603551d130101\
         ff04023000300506032b6570034100a0c862990eb960e52d7978f90ac1cd0b35edb5a172810a32d6\
         0cd7423356a5de4726134cee612f1a7c4edb3462f31e110f2f608498ded180382b3d123a71640e";

    const NOT_BEFORE: u64 = 1_772_323_199;
    const NOT_AFTER: u64 = 1_777_507_199;

    fn server_key() -> Key {
        Key(core::array::from_fn(|i| 0xa0 + i as u8))
    }

    fn stock() -> [u8; LEN] {
        let digits: Vec<u8> = STOCK.bytes().filter(u8::is_ascii_hexdigit).collect();
        core::array::from_fn(|i| {
            let pair = core::str::from_utf8(&digits[i * 2..][..2]).expect("hex is ASCII");
            u8::from_str_radix(pair, 16).expect("filtered")
        })
    }

    #[test]
    fn equals_the_certificate_of_a_stock_library() {
        let stock = stock();
        let public = stock[235..267].try_into().expect("32 bytes");
        let signature = stock[295..].try_into().expect("64 bytes");
        let built = unsigned(&server_key(), public, &utc_time(NOT_BEFORE), &utc_time(NOT_AFTER));
        assert_eq!(built.to_be_signed(), &stock[4..285]);
        assert_eq!(built.with_signature(signature), stock);
    }

    #[test]
    fn clients_find_key_and_version() {
        let expected = Announced { server_key: server_key(), version: 2 };
        assert_eq!(announced(&stock()), Some(expected));
    }

    #[test]
    fn clients_refuse_other_names_and_serial_numbers() {
        // Offsets of the serial number, the prefix and the first digit of the subject.
        for (at, byte) in [(15, 0), (15, 0x80), (152, b'D'), (159, b'A'), (159, b'g')] {
            let mut other = stock();
            other[at] = byte;
            assert_eq!(announced(&other), None, "byte {at} = {byte}");
        }
        let mut issuer_only = stock();
        issuer_only[147] = 0x55 ^ 1;
        assert_eq!(announced(&issuer_only), None);
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = stock();
        for cut in 0..LEN {
            assert_eq!(announced(&whole[..cut]), None, "{cut} bytes");
        }
    }

    #[test]
    fn serial_numbers_fit_a_byte() {
        assert_eq!(small_integer(&[2]), Some(2));
        assert_eq!(small_integer(&[0, 0xff]), Some(0xff));
        for content in [&[][..], &[0], &[0x80], &[0, 2], &[1, 0]] {
            assert_eq!(small_integer(content), None, "{content:?}");
        }
    }

    #[test]
    fn writes_times_up_to_the_last_of_2049() {
        for (seconds, text) in [
            (0, b"700101000000Z"),
            (951_827_696, b"000229123456Z"),
            (1_709_251_200, b"240301000000Z"),
            (2_147_483_648, b"380119031408Z"),
            (2_524_607_999, b"491231235959Z"),
            (2_524_608_000, b"491231235959Z"),
            (u64::MAX, b"491231235959Z"),
        ] {
            assert_eq!(utc_time(seconds), *text, "{seconds}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..29_220 {
            assert_eq!(civil_from_days(days), (year, month, day));
            let leap = u32::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
            let lengths = [31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            day += 1;
            if day > lengths[month as usize - 1] {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (2050, 1, 1));
    }

    proptest! {
        #[test]
        fn what_is_built_is_found(key: [u8; 32], public: [u8; 32], at in 0..u64::from(u32::MAX)) {
            let certificate = unsigned(&Key(key), &public, &utc_time(at), &utc_time(at));
            let expected = Announced { server_key: Key(key), version: 2 };
            prop_assert_eq!(announced(&certificate.with_signature(&[7; 64])), Some(expected));
        }

        #[test]
        fn any_bytes_are_safe(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            changes in prop::collection::vec((0..LEN, any::<u8>()), 0..20),
        ) {
            let _ = announced(&bytes);
            let mut certificate = stock();
            for (at, byte) in changes {
                certificate[at] = byte;
            }
            let _ = announced(&certificate);
        }
    }
}
