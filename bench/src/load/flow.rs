//! Flows: who sends what to whom, and how a receiver knows that it is right.
//!
//! ```text
//!  0        4       5+32                                            5+32+size
//!  +--------+-------+----------+------+------+-----------+------+---+----------+
//!  | header | key   | sequence | flow | size | scheduled | fill ... | !sequence|
//!  +--------+-------+----------+------+------+-----------+------+---+----------+
//!             32      8          4      4      8                      8
//! ```
//! Owns the packet's layout, the pairing and the order check. Knows no socket and no clock.

use wire::derp::{FrameType, HEADER_LEN, Header, RECV_HEAD_LEN};
use wire::key::Key;

/// Shortest packet that holds the words above, in bytes.
pub(crate) const PACKET_LEN_MIN: usize = 32;

/// One sender's packets to one receiver.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Link that sends.
    pub(crate) sender: usize,
    /// Sequence number of the next packet to send.
    pub(crate) next: u64,
    /// Sequence number of the next packet to come. Never above `next`.
    pub(crate) expect: u64,
    /// `next` at the last look for a stall, and whether anything has come since.
    pub(crate) stall_mark: Option<u64>,
    /// Whether the loop already has this flow on its list.
    pub(crate) listed: bool,
    /// Whether latency is recorded.
    pub(crate) timed: bool,
    /// Whole frame with all but the words that change.
    template: Vec<u8>,
    /// Header and key that every frame of this flow arrives with.
    arrival_head: [u8; RECV_HEAD_LEN],
}

/// What one arrival proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// In order after `lost` packets that never came; sent at `scheduled_ns`.
    Good {
        /// Packets skipped.
        lost: u64,
        /// When the packet was due, in nanoseconds since the run's start.
        scheduled_ns: u64,
    },
    /// Overtaken, duplicated, damaged or misdirected.
    Wrong,
}

/// Who is at the two ends of a flow, and how their frames look on arrival.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// Link and key of the sender.
    pub(crate) sender: (usize, Key),
    /// Key of the receiver.
    pub(crate) receiver: Key,
    /// Whether the server rewrites destination into source, as DERP does.
    pub(crate) rewritten: bool,
}

impl Flow {
    /// Flow number `number` between `ends`, of packets of `size` bytes.
    pub(crate) fn new(number: u32, ends: Ends, size: usize, timed: bool) -> Self {
        let send_head = wire::derp::send_head(&ends.receiver, size);
        let recv_head = wire::derp::recv_head(&ends.sender.1, size);
        let mut template = vec![number as u8; RECV_HEAD_LEN + size];
        template[..RECV_HEAD_LEN].copy_from_slice(&send_head);
        let packet = &mut template[RECV_HEAD_LEN..];
        packet[8..12].copy_from_slice(&number.to_be_bytes());
        packet[12..16].copy_from_slice(&(size as u32).to_be_bytes());
        Self {
            sender: ends.sender.0,
            next: 0,
            expect: 0,
            stall_mark: None,
            listed: false,
            timed,
            template,
            arrival_head: if ends.rewritten { recv_head } else { send_head },
        }
    }

    /// The next frame, due at `scheduled_ns`.
    #[inline]
    pub(crate) fn next_frame(&mut self, scheduled_ns: u64) -> &[u8] {
        let packet = &mut self.template[RECV_HEAD_LEN..];
        let tail = packet.len() - 8;
        packet[..8].copy_from_slice(&self.next.to_be_bytes());
        packet[16..24].copy_from_slice(&scheduled_ns.to_be_bytes());
        packet[tail..].copy_from_slice(&(!self.next).to_be_bytes());
        self.next += 1;
        &self.template
    }

    /// Verifies one arrived `frame`: source, length, flow, order and both ends of the content.
    #[inline]
    pub(crate) fn arrive(&mut self, frame: &[u8]) -> Arrival {
        let Some(packet) = frame.strip_prefix(&self.arrival_head) else { return Arrival::Wrong };
        let own = &self.template[RECV_HEAD_LEN..];
        let sequence = word(packet, 0);
        let whole = packet.len() == own.len()
            && packet[8..16] == own[8..16]
            && word(packet, packet.len() - 8) == !sequence;
        if !whole || sequence < self.expect || sequence >= self.next {
            return Arrival::Wrong;
        }
        let lost = sequence - self.expect;
        self.expect = sequence + 1;
        self.stall_mark = None;
        Arrival::Good { lost, scheduled_ns: word(packet, 16) }
    }

    /// Gives up on everything in flight if nothing has come since the last call; returns how many.
    pub(crate) fn give_up_if_stalled(&mut self) -> u64 {
        let in_flight = self.next - self.expect;
        if in_flight == 0 || self.stall_mark.replace(self.next) != Some(self.next) {
            return 0;
        }
        self.expect = self.next;
        in_flight
    }
}

/// Whether `frame` carries a packet, rather than the server's own news.
#[inline]
pub(crate) fn is_packet(frame: &[u8]) -> bool {
    frame.len() >= RECV_HEAD_LEN + PACKET_LEN_MIN
        && Header::read(&frame[..HEADER_LEN]).is_some_and(|header| {
            header.kind == FrameType::RecvPacket as u8 || header.kind == FrameType::SendPacket as u8
        })
}

#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

/// The numbers below `count` in an order that `seed` decides (Fisher-Yates over splitmix64).
pub(crate) fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = seed;
    for left in (1..count).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        order.swap(left, ((mixed ^ (mixed >> 31)) % (left as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        let ends = Ends { sender: (0, Key([1; 32])), receiver: Key([2; 32]), rewritten: false };
        Flow::new(3, ends, 64, true)
    }

    #[test]
    fn counts_gaps_and_refuses_disorder() {
        let mut flow = flow();
        let frames: Vec<Vec<u8>> = (0..4).map(|at| flow.next_frame(at * 10).to_vec()).collect();
        assert!(frames.iter().all(|frame| is_packet(frame)));
        assert_eq!(flow.arrive(&frames[0]), Arrival::Good { lost: 0, scheduled_ns: 0 });
        assert_eq!(flow.arrive(&frames[3]), Arrival::Good { lost: 2, scheduled_ns: 30 });
        assert_eq!(flow.arrive(&frames[1]), Arrival::Wrong);
        assert_eq!(flow.arrive(&frames[3]), Arrival::Wrong);
    }

    #[test]
    fn refuses_a_damaged_frame_at_every_checked_byte() {
        let mut flow = flow();
        let frame = flow.next_frame(5).to_vec();
        let checked = (0..RECV_HEAD_LEN + 16).chain(frame.len() - 8..frame.len());
        for at in checked {
            let mut damaged = frame.clone();
            damaged[at] ^= 0x10;
            assert_eq!(flow.arrive(&damaged), Arrival::Wrong, "byte {at}");
        }
        assert_eq!(flow.arrive(&frame[..frame.len() - 1]), Arrival::Wrong);
        assert_eq!(flow.arrive(&frame), Arrival::Good { lost: 0, scheduled_ns: 5 });
    }

    #[test]
    fn gives_up_only_after_a_whole_silent_interval() {
        let mut flow = flow();
        flow.next_frame(0);
        assert_eq!(flow.give_up_if_stalled(), 0);
        assert_eq!(flow.give_up_if_stalled(), 1);
        assert_eq!(flow.give_up_if_stalled(), 0);
    }

    #[test]
    fn shuffling_keeps_every_number_once() {
        let mut order = shuffled(100, 7);
        assert_ne!(order, shuffled(100, 8));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..100));
    }
}
