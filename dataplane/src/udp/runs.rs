//! What one read of a socket brought, cut into pieces that have one fate each.
//!
//! The kernel hands over equal datagrams of one sender as one buffer (GRO). WireGuard data of one
//! flow stays together, to be sent on as it came; everything else is looked at by the datagram.

use wire::wireguard::{DATA_LEN_MIN, data_receiver, looks_like};

/// Bytes that WireGuard data of one flow has in common: type, zeros and receiver index.
const FLOW_HEAD_LEN: usize = 8;

/// What a datagram is, from its first bytes: WireGuard's types differ from all of STUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// WireGuard data.
    Data,
    /// Another WireGuard message, or one that claims to be.
    Handshake,
    /// Anything else, to be judged as STUN.
    Other,
}

impl Kind {
    #[inline]
    pub(super) fn of(datagram: &[u8]) -> Self {
        if data_receiver(datagram).is_some() {
            Self::Data
        } else if looks_like(datagram) {
            Self::Handshake
        } else {
            Self::Other
        }
    }
}

/// Consecutive datagrams of one sender that have one fate: several are data of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run<'a> {
    pub(super) kind: Kind,
    pub(super) bytes: &'a [u8],
    /// Bytes of each datagram but the last, which may be shorter.
    pub(super) stride: usize,
}

impl<'a> Run<'a> {
    pub(super) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> {
        let (first, rest) = self.bytes.split_at(self.stride.min(self.bytes.len()));
        std::iter::once(first).chain(rest.chunks(self.stride.max(1)))
    }

    /// Datagrams it consists of. No bytes are an empty one.
    #[inline]
    pub(super) fn count(&self) -> usize {
        if self.bytes.len() <= self.stride { 1 } else { self.bytes.len().div_ceil(self.stride) }
    }

    /// The first datagram.
    #[inline]
    pub(super) fn first(&self) -> &'a [u8] {
        &self.bytes[..self.stride.min(self.bytes.len())]
    }
}

/// The runs in one buffer, all of whose datagrams but the last have `stride` bytes.
pub(super) fn runs(bytes: &[u8], stride: usize) -> impl Iterator<Item = Run<'_>> {
    let stride = if stride == 0 { bytes.len() } else { stride };
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let (run, behind) = cut(bytes, stride);
        rest = (!behind.is_empty()).then_some(behind);
        Some(run)
    })
}

#[inline]
fn cut(bytes: &[u8], stride: usize) -> (Run<'_>, &[u8]) {
    let first = &bytes[..stride.min(bytes.len())];
    let kind = Kind::of(first);
    let mut end = first.len();
    if kind == Kind::Data {
        for next in bytes[end..].chunks(stride.max(1)) {
            if next.len() < DATA_LEN_MIN || next[..FLOW_HEAD_LEN] != first[..FLOW_HEAD_LEN] {
                break;
            }
            end += next.len();
        }
    }
    let (bytes, behind) = bytes.split_at(end);
    (Run { kind, bytes, stride }, behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(receiver: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![receiver; len];
        bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
        bytes
    }

    fn lens(bytes: &[u8], stride: usize) -> Vec<(Kind, usize, usize)> {
        runs(bytes, stride).map(|run| (run.kind, run.bytes.len(), run.count())).collect()
    }

    #[test]
    fn data_of_one_flow_stays_together() {
        let bytes = [data(7, 100), data(7, 100), data(7, 60)].concat();
        assert_eq!(lens(&bytes, 100), [(Kind::Data, 260, 3)]);
        let run = runs(&bytes, 100).next().expect("a run");
        assert_eq!(run.datagrams().map(<[u8]>::len).collect::<Vec<_>>(), [100, 100, 60]);
        assert_eq!(run.first().len(), 100);
    }

    #[test]
    fn flows_and_kinds_are_kept_apart() {
        let bytes = [data(7, 40), data(7, 40), data(8, 40), vec![9; 40], data(8, 20)].concat();
        assert_eq!(
            lens(&bytes, 40),
            [
                (Kind::Data, 80, 2),
                (Kind::Data, 40, 1),
                (Kind::Other, 40, 1),
                (Kind::Handshake, 20, 1)
            ]
        );
    }

    #[test]
    fn everything_else_is_cut_by_the_datagram() {
        assert_eq!(lens(b"", 0), [(Kind::Other, 0, 1)]);
        assert_eq!(
            lens(b"abcde", 2),
            [(Kind::Other, 2, 1), (Kind::Other, 2, 1), (Kind::Other, 1, 1)]
        );
        assert_eq!(lens(b"ab", 9), [(Kind::Other, 2, 1)]);
        assert_eq!(lens(b"ab", 0), [(Kind::Other, 2, 1)]);
    }

    #[test]
    fn stun_is_no_wireguard_type() {
        assert_eq!(Kind::of(&[0, 1, 0, 0]), Kind::Other);
        assert_eq!(Kind::of(&[1, 1, 0, 0]), Kind::Other);
        assert_eq!(Kind::of(&[1, 0, 0, 0]), Kind::Handshake);
        assert_eq!(Kind::of(&[5, 0, 0, 0]), Kind::Other);
        assert_eq!(Kind::of(&[4, 0, 0, 0, 1]), Kind::Handshake);
    }
}
