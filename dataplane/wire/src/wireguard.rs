//! WireGuard's four messages as a relay sees them: kinds, lengths, indices and where mac1 stands.
//!
//! Owns the outer layout only. Nothing here decrypts, and what is sealed has no name (invariant 7).
//! All numbers are little-endian. Lengths are exact for the handshake messages, so a view can be
//! read without a further check. `proto`'s relay calls it, and so may the XDP program: no loop, no
//! slice that is not checked.
//!
//! Source: the WireGuard paper, section 5.4.

/// Bytes of a handshake initiation.
pub const INITIATION_LEN: usize = 148;
/// Bytes of a handshake response.
pub const RESPONSE_LEN: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE_LEN: usize = 64;
/// Bytes of the shortest transport message, a keepalive: header 16, authentication tag 16.
pub const DATA_LEN_MIN: usize = 32;
/// Bytes before the ciphertext of a transport message: kind, receiver, counter.
pub const DATA_HEADER_LEN: usize = 16;
/// Bytes of mac1, and of mac2 after it.
pub const MAC_LEN: usize = 16;
/// Bytes of an initiation that mac1 covers, which is also where mac1 stands.
pub const INITIATION_COVERED_LEN: usize = 116;
/// Bytes of a response that mac1 covers, which is also where mac1 stands.
pub const RESPONSE_COVERED_LEN: usize = 60;

const EPHEMERAL_LEN: usize = 32;
const TAG_LEN: usize = 16;

const _: () = {
    assert!(INITIATION_COVERED_LEN == 4 + 4 + EPHEMERAL_LEN + (32 + TAG_LEN) + (12 + TAG_LEN));
    assert!(INITIATION_LEN == INITIATION_COVERED_LEN + 2 * MAC_LEN);
    assert!(RESPONSE_COVERED_LEN == 4 + 4 + 4 + EPHEMERAL_LEN + TAG_LEN);
    assert!(RESPONSE_LEN == RESPONSE_COVERED_LEN + 2 * MAC_LEN);
    assert!(COOKIE_LEN == 4 + 4 + 24 + (16 + TAG_LEN));
    assert!(DATA_LEN_MIN == DATA_HEADER_LEN + TAG_LEN);
    assert!(size_of::<Initiation<'_>>() == size_of::<&u8>());
    assert!(size_of::<Index>() == 4);
};

/// What a session is called by the side that receives with it; drawn at random by that side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Index(pub u32);

/// The kind of a message, its first four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// Handshake initiation.
    Initiation = 1,
    /// Handshake response.
    Response = 2,
    /// Cookie reply, the answer of a peer under load.
    Cookie = 3,
    /// Transport data.
    Data = 4,
}

/// Why a datagram is no WireGuard message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Some other protocol.
    NotWireguard,
    /// It begins as one and has another length than that kind.
    Length(Kind),
}

impl Kind {
    /// What `datagram` claims to be, or `None` if it is some other protocol.
    #[inline]
    #[must_use]
    pub fn of(datagram: &[u8]) -> Option<Self> {
        match u32::from_le_bytes(*datagram.first_chunk()?) {
            1 => Some(Self::Initiation),
            2 => Some(Self::Response),
            3 => Some(Self::Cookie),
            4 => Some(Self::Data),
            _ => None,
        }
    }
}

/// Whether `datagram` begins as a WireGuard message does, for ports that several protocols share.
/// Ask for STUN first.
#[inline]
#[must_use]
pub fn looks_like(datagram: &[u8]) -> bool {
    Kind::of(datagram).is_some()
}

/// The receiver index of a transport message, the one thing the fast path wants to know; `None`
/// for anything else.
#[inline]
#[must_use]
pub fn data_receiver(datagram: &[u8]) -> Option<Index> {
    match Kind::of(datagram)? {
        Kind::Data if datagram.len() >= DATA_LEN_MIN => Some(index_at(datagram, 4)),
        Kind::Data | Kind::Initiation | Kind::Response | Kind::Cookie => None,
    }
}

/// A message of the right length for its kind.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// Handshake initiation.
    Initiation(Initiation<'a>),
    /// Handshake response.
    Response(Response<'a>),
    /// Cookie reply.
    Cookie(Cookie<'a>),
    /// Transport data.
    Data(Data<'a>),
}

impl<'a> Message<'a> {
    /// Views `datagram` as a message.
    ///
    /// # Errors
    ///
    /// [`Reject`] says whether it was another protocol or a message of a wrong length.
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Reject> {
        let kind = Kind::of(datagram).ok_or(Reject::NotWireguard)?;
        let message = match kind {
            Kind::Initiation => datagram.try_into().ok().map(|it| Self::Initiation(Initiation(it))),
            Kind::Response => datagram.try_into().ok().map(|it| Self::Response(Response(it))),
            Kind::Cookie => datagram.try_into().ok().map(|it| Self::Cookie(Cookie(it))),
            Kind::Data if datagram.len() >= DATA_LEN_MIN => Some(Self::Data(Data(datagram))),
            Kind::Data => None,
        };
        message.ok_or(Reject::Length(kind))
    }
}

/// A handshake initiation.
///
/// ```text
///  0       4        8            40             88          116     132     148
///  +-------+--------+------------+--------------+-----------+-------+-------+
///  | 1     | sender | ephemeral  | sealed key   | sealed    | mac1  | mac2  |
///  |       |        | key 32     | 32 + 16      | time 12+16| 16    | 16    |
///  +-------+--------+------------+--------------+-----------+-------+-------+
/// ```
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Initiation<'a>(&'a [u8; INITIATION_LEN]);

impl<'a> Initiation<'a> {
    /// What the initiator will receive with.
    #[inline]
    #[must_use]
    pub fn sender(self) -> Index {
        index_at(self.0, 4)
    }

    /// The bytes that mac1 covers, and mac1, which is keyed by the responder's public key.
    #[inline]
    #[must_use]
    pub fn mac1(self) -> (&'a [u8], &'a [u8; MAC_LEN]) {
        split_mac1(self.0, INITIATION_COVERED_LEN)
    }
}

/// A handshake response.
///
/// ```text
///  0       4        8          12           44          60      76      92
///  +-------+--------+----------+------------+-----------+-------+-------+
///  | 2     | sender | receiver | ephemeral  | sealed    | mac1  | mac2  |
///  |       |        |          | key 32     | nothing 16| 16    | 16    |
///  +-------+--------+----------+------------+-----------+-------+-------+
/// ```
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Response<'a>(&'a [u8; RESPONSE_LEN]);

impl<'a> Response<'a> {
    /// What the responder will receive with.
    #[inline]
    #[must_use]
    pub fn sender(self) -> Index {
        index_at(self.0, 4)
    }

    /// The sender index of the initiation that this answers.
    #[inline]
    #[must_use]
    pub fn receiver(self) -> Index {
        index_at(self.0, 8)
    }

    /// The bytes that mac1 covers, and mac1, which is keyed by the initiator's public key.
    #[inline]
    #[must_use]
    pub fn mac1(self) -> (&'a [u8], &'a [u8; MAC_LEN]) {
        split_mac1(self.0, RESPONSE_COVERED_LEN)
    }
}

/// A cookie reply.
///
/// ```text
///  0       4          8          32                64
///  +-------+----------+----------+-----------------+
///  | 3     | receiver | nonce 24 | sealed cookie 32|
///  +-------+----------+----------+-----------------+
/// ```
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Cookie<'a>(&'a [u8; COOKIE_LEN]);

impl Cookie<'_> {
    /// The sender index of the initiation or response that this answers.
    #[inline]
    #[must_use]
    pub fn receiver(self) -> Index {
        index_at(self.0, 4)
    }
}

/// Transport data.
///
/// ```text
///  0       4          8         16
///  +-------+----------+---------+---------------------------------
///  | 4     | receiver | counter | sealed packet, then tag 16
///  +-------+----------+---------+---------------------------------
/// ```
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Data<'a>(&'a [u8]);

impl Data<'_> {
    /// What the destination receives with.
    #[inline]
    #[must_use]
    pub fn receiver(self) -> Index {
        index_at(self.0, 4)
    }
}

/// The little-endian number at `at`, zero past the end; every caller has checked the length.
#[inline]
fn index_at(message: &[u8], at: usize) -> Index {
    let bytes = message.get(at..).and_then(<[u8]>::first_chunk);
    debug_assert!(bytes.is_some(), "the length was checked");
    Index(bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes)))
}

/// What stands before `at`, and the mac at `at`.
#[inline]
fn split_mac1(message: &[u8], at: usize) -> (&[u8], &[u8; MAC_LEN]) {
    let halves = message.split_at_checked(at);
    let split = halves.and_then(|(covered, rest)| Some((covered, rest.first_chunk()?)));
    debug_assert!(split.is_some(), "both lengths are constants");
    split.unwrap_or((&[], &[0; MAC_LEN]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message of `N` bytes whose byte at `i` is `i`, after the kind.
    fn numbered<const N: usize>(kind: u8) -> [u8; N] {
        let mut bytes = core::array::from_fn(|i| i as u8);
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        bytes
    }

    #[test]
    fn initiation_fields_stand_where_the_paper_puts_them() {
        let bytes = numbered::<INITIATION_LEN>(1);
        let Ok(Message::Initiation(message)) = Message::parse(&bytes) else { panic!("its length") };
        assert_eq!(message.sender(), Index(0x0706_0504));
        let (covered, mac1) = message.mac1();
        assert_eq!((covered.len(), mac1[0], mac1[15]), (116, 116, 131));
    }

    #[test]
    fn response_fields_stand_where_the_paper_puts_them() {
        let bytes = numbered::<RESPONSE_LEN>(2);
        let Ok(Message::Response(message)) = Message::parse(&bytes) else { panic!("its length") };
        assert_eq!(message.sender(), Index(0x0706_0504));
        assert_eq!(message.receiver(), Index(0x0b0a_0908));
        let (covered, mac1) = message.mac1();
        assert_eq!((covered.len(), mac1[0], mac1[15]), (60, 60, 75));
    }

    #[test]
    fn receivers_of_cookies_and_data_stand_after_the_kind() {
        let bytes = numbered::<COOKIE_LEN>(3);
        let Ok(Message::Cookie(message)) = Message::parse(&bytes) else { panic!("its length") };
        assert_eq!(message.receiver(), Index(0x0706_0504));
        let bytes = numbered::<100>(4);
        let Ok(Message::Data(message)) = Message::parse(&bytes) else { panic!("long enough") };
        assert_eq!(message.receiver(), Index(0x0706_0504));
        assert_eq!(data_receiver(&bytes), Some(Index(0x0706_0504)));
    }

    #[test]
    fn every_other_length_is_refused() {
        for (kind, whole) in
            [(1, INITIATION_LEN), (2, RESPONSE_LEN), (3, COOKIE_LEN), (4, DATA_LEN_MIN)]
        {
            let mut bytes = [0; 200];
            bytes[0] = kind;
            let named = Kind::of(&bytes).expect("a kind");
            for len in 0..bytes.len() {
                let good = len == whole || (kind == 4 && len > whole);
                match Message::parse(&bytes[..len]) {
                    Ok(_) => assert!(good, "kind {kind} of {len} bytes"),
                    Err(Reject::Length(kind)) => assert!(!good && kind == named && len >= 4),
                    Err(Reject::NotWireguard) => assert!(len < 4),
                }
                assert_eq!(data_receiver(&bytes[..len]).is_some(), good && kind == 4);
            }
        }
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        for at in 1..4 {
            let mut bytes = numbered::<COOKIE_LEN>(3);
            bytes[at] = 1;
            assert!(!looks_like(&bytes));
            assert_eq!(Message::parse(&bytes).err(), Some(Reject::NotWireguard));
        }
        assert!(!looks_like(&[0; 148]) && !looks_like(&numbered::<148>(5)));
    }

    #[test]
    fn stun_is_not_mistaken_for_it() {
        let request = crate::stun::request(crate::stun::TxId([7; 12]));
        assert!(!looks_like(&request));
    }

    proptest! {
        #[test]
        fn any_bytes_are_viewed_or_refused(
            kind in 0..6_u8,
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = std::vec![kind, 0, 0, 0];
            bytes.extend(rest);
            match Message::parse(&bytes) {
                Ok(Message::Initiation(it)) => {
                    let _ = (it.sender(), it.mac1());
                }
                Ok(Message::Response(it)) => {
                    let _ = (it.sender(), it.receiver(), it.mac1());
                }
                Ok(Message::Cookie(it)) => {
                    let _ = it.receiver();
                }
                Ok(Message::Data(it)) => {
                    prop_assert_eq!(Some(it.receiver()), data_receiver(&bytes));
                }
                Err(_) => {}
            }
        }
    }

    extern crate std;
}
