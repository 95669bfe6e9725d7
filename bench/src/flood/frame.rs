//! Ethernet frames of a load, as a network card would deliver them: UDP over IPv4, every checksum right.
//!
//! Owns the layout on the sending side, independent of the relay's own. Must never leave a checksum to
//! others: nothing behind a generator in the kernel would finish it.

use std::net::SocketAddrV4;

/// Bytes of the headers of Ethernet, IPv4 and UDP.
pub(super) const HEADERS_LEN: usize = 14 + 20 + 8;

/// A frame to the station `to`, from the station `from`.
pub(super) fn frame(
    to: [u8; 6],
    from: [u8; 6],
    source: SocketAddrV4,
    target: SocketAddrV4,
    payload: &[u8],
) -> Vec<u8> {
    let udp_len = 8 + payload.len();
    let mut ip = vec![0x45, 0];
    ip.extend(((20 + udp_len) as u16).to_be_bytes());
    // Identification 0, do not fragment, 64 hops, UDP, checksum to come.
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(source.ip().octets());
    ip.extend(target.ip().octets());
    let header_sum = fold(sum(&ip)).to_be_bytes();
    ip[10..12].copy_from_slice(&header_sum);

    let mut udp = Vec::new();
    udp.extend(source.port().to_be_bytes());
    udp.extend(target.port().to_be_bytes());
    udp.extend((udp_len as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let whole = sum(&ip[12..]) + 17 + udp_len as u64 + sum(&udp);
    let checksum = match fold(whole) {
        0 => 0xffff,
        checksum => checksum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    [&to[..], &from, &[8, 0], &ip, &udp].concat()
}

/// The sum of the words of `bytes`, in network order (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2);
    words.map(|word| u64::from(word[0]) << 8 | word.get(1).copied().map_or(0, u64::from)).sum()
}

/// The checksum that a sum gives.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_right_lengths_and_checksums() {
        let (source, target) = ("198.18.0.1:4096", "192.0.2.1:3478");
        let addresses = (source.parse().expect("an address"), target.parse().expect("an address"));
        for payload in [&b"even"[..], b"odd"] {
            let frame = frame([1; 6], [2; 6], addresses.0, addresses.1, payload);
            assert_eq!(frame.len(), HEADERS_LEN + payload.len());
            assert_eq!(frame[..14], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 8, 0]);
            assert_eq!(fold(sum(&frame[14..34])), 0, "IPv4's");
            let len = (8 + payload.len()) as u64;
            assert_eq!(fold(sum(&frame[26..]) + 17 + len), 0, "UDP's");
            assert_eq!(u64::from(frame[39]), len);
        }
    }
}
