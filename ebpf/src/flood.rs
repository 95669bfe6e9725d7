//! XDP programs for benches: a load with its sink.
//!
//! Owns the yardsticks that need maps. `generate`, run by the kernel on live frames, is a sender that
//! costs little; `sink` and `sink_stack` count what comes back, and `discard` is the floor under all
//! of it. The dataplane never attaches them.
#![no_std]
#![no_main]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_xdp_adjust_tail;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, DevMap, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use ebpf::Packet;
use wire::packet::Frame;

/// Words at the head of a frame in which the frames of a load differ.
const HEAD_WORDS: usize = 20;
/// Frames that a load takes in turn at most, a power of two.
const HEADS_MAX: u32 = 4096;
/// Bytes by which the frame that a load is run on is longer than what it sends. A frame that came
/// back shorter would stay shorter; one that is cut anew each time has its length set anew, too.
const SPARE_LEN: i32 = 4;
/// Half words up to the first word of the payload of UDP over IPv4, and with it.
const LOOKED_AT: usize = 23;

/// The heads of a load's frames. Written by user space, as `COURSE`, `EXIT` and `WANTED`.
#[map]
static HEADS: Array<[u32; HEAD_WORDS]> = Array::with_max_entries(HEADS_MAX, 0);
/// The number of heads less one, frames skipped for each sent, and the slot of `EXIT`.
#[map]
static COURSE: Array<[u32; 3]> = Array::with_max_entries(1, 0);
/// Interfaces that a load may leave by.
#[map]
static EXIT: DevMap = DevMap::with_max_entries(2, 0);
/// Frames sent, and frames to skip before the next. Written by `generate`.
#[map]
static TURN: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);
/// What a sink takes, as numbers of the host: source port or 0 for any, first and last target port,
/// first word of the payload as it lies there. With a last port of 0 it takes nothing.
#[map]
static WANTED: Array<[u32; 4]> = Array::with_max_entries(1, 0);
/// Packets taken, and packets to the same ports that begin otherwise. Written by the sinks.
#[map]
static SEEN: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Lets every frame through, so that a virtual Ethernet pair delivers what the other end transmits.
#[xdp]
pub fn pass(_context: XdpContext) -> u32 {
    XDP_PASS
}

/// Throws every frame away.
#[xdp]
pub fn discard(_context: XdpContext) -> u32 {
    XDP_DROP
}

/// Writes the next head over the frame and sends it, or skips it.
#[xdp]
pub fn generate(context: XdpContext) -> u32 {
    let (Some(course), Some(turn)) = (COURSE.get(0), TURN.get_ptr_mut(0)) else {
        return XDP_DROP;
    };
    let [mask, skipped, slot] = *course;
    // SAFETY: a value of this CPU, which runs one XDP program at a time.
    let [sent, left] = unsafe { &mut *turn };
    if *left > 0 {
        *left -= 1;
        return XDP_DROP;
    }
    let Some(head) = HEADS.get(*sent as u32 & mask) else {
        return XDP_DROP;
    };
    // SAFETY: the helper takes any number and the program's own context.
    if unsafe { bpf_xdp_adjust_tail(context.ctx, -SPARE_LEN) } != 0 {
        return XDP_DROP;
    }
    let mut packet = Packet::new(context.ctx);
    if !packet.has(4 * HEAD_WORDS) {
        return XDP_DROP;
    }
    let mut i = 0;
    while i < HEAD_WORDS {
        packet.set_word(4 * i, head[i]);
        i += 1;
    }
    *sent += 1;
    *left = u64::from(skipped);
    EXIT.redirect(slot, 0).unwrap_or(XDP_DROP)
}

/// Counts and throws away what `WANTED` describes, lets everything else through.
#[xdp]
pub fn sink(context: XdpContext) -> u32 {
    let packet = Packet::new(context.ctx);
    if !packet.has(2 * LOOKED_AT) {
        return XDP_PASS;
    }
    let found = taken(
        packet.short(12),
        packet.byte(14),
        packet.byte(23),
        [packet.short(34), packet.short(36)],
        packet.word(42),
        1,
    );
    if found { XDP_DROP } else { XDP_PASS }
}

/// The same behind the stack's door, for frames that come as the stack's own buffers. A run that
/// travels as one counts as the packets it will be.
#[classifier]
pub fn sink_stack(context: TcContext) -> i32 {
    let Ok(head) = context.load::<[u16; LOOKED_AT]>(0) else {
        return TC_ACT_OK;
    };
    // SAFETY: a classifier's context is readable for as long as it runs.
    let run = unsafe { (*context.skb.skb).gso_segs };
    let [version, _] = head[7].to_ne_bytes();
    let [_, protocol] = head[11].to_ne_bytes();
    let [a, b] = head[21].to_ne_bytes();
    let [c, d] = head[22].to_ne_bytes();
    let word = u32::from_ne_bytes([a, b, c, d]);
    let packets = if run == 0 { 1 } else { u64::from(run) };
    let found = taken(head[6], version, protocol, [head[17], head[18]], word, packets);
    if found { TC_ACT_SHOT } else { TC_ACT_OK }
}

/// Whether a packet is wanted; it is counted if so.
#[inline(always)]
fn taken(kind: u16, version: u8, protocol: u8, ports: [u16; 2], word: u32, packets: u64) -> bool {
    const IPV4: u16 = 0x0800_u16.to_be();
    let (Some(wanted), Some(seen)) = (WANTED.get(0), SEEN.get_ptr_mut(0)) else {
        return false;
    };
    let [source, first, last, expected] = *wanted;
    let [from, to] = ports.map(|port| u32::from(u16::from_be(port)));
    if kind != IPV4 || version != 0x45 || protocol != 17 || to < first || to > last {
        return false;
    }
    if source != 0 && source != from {
        return false;
    }
    // SAFETY: a value of this CPU; neither sink interrupts the other, one of them is attached.
    let [right, wrong] = unsafe { &mut *seen };
    if word == expected {
        *right += packets;
    } else {
        *wrong += packets;
    }
    true
}
