//! Addresses as maps and packets have them.
//!
//! Owns the one form in which both families are compared and copied. The programs build it from
//! packets, user space from [`IpAddr`].

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bytes::{Reader, Writer};

/// An IP address as it lies in a packet, in four words; IPv4 is mapped into IPv6.
///
/// Aligned to eight, as all keys: the compiler joins neighbouring words into one store, and the
/// verifier takes none across the grain of the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct Address(pub [u32; 4]);

/// The third word of an IPv4 address in IPv6.
pub const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// The unspecified address, which no packet comes from.
    pub const NONE: Self = Self([0; 4]);

    /// An IPv4 address from its word.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.0[0] | self.0[1] == 0 && self.0[2] == MAPPED
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let ip = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut bytes = Writer::<16>::new();
        bytes.put(ip.octets());
        Self(Reader(&bytes.finish()).words())
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut bytes = Writer::<16>::new();
        bytes.words(address.0);
        match Ipv6Addr::from(bytes.finish()).to_canonical() {
            Self::V4(ip) => Self::V4(Ipv4Addr::from(ip.octets())),
            v6 @ Self::V6(_) => v6,
        }
    }
}

impl Address {
    /// Bytes of the key.
    pub const LEN: usize = 16;

    /// As map memory has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        out.words(self.0);
        out.finish()
    }

    /// From map memory.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self(Reader(bytes).words())
    }
}

const _: () = assert!(size_of::<Address>() == Address::LEN && align_of::<Address>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn addresses_round_trip(ip: IpAddr) {
            let address = Address::from(ip);
            prop_assert_eq!(IpAddr::from(address), ip.to_canonical());
            prop_assert_eq!(address.is_v4(), ip.to_canonical().is_ipv4());
            prop_assert_eq!(Address::decode(&address.encode()), address);
        }
    }
}
