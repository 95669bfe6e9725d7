//! XDP programs for tests and benches: what does nothing, and the least that sends. Without maps, so that
//! `ip link` loads them.
//!
//! Owns the yardsticks. A virtual Ethernet pair delivers what one end transmits only if the other
//! end has a program, for which `pass` serves; `reflect` is what any answer costs at least. The
//! dataplane never attaches them.
#![no_std]
#![no_main]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

use aya_ebpf::bindings::xdp_action::{XDP_PASS, XDP_TX};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use ebpf::Packet;
use wire::packet::{ETHERNET_LEN, Frame, swap_stations};

/// Lets every frame through.
#[xdp]
pub fn pass(_context: XdpContext) -> u32 {
    XDP_PASS
}

/// Sends every frame back to the station it came from.
#[xdp]
pub fn reflect(context: XdpContext) -> u32 {
    let mut packet = Packet::new(context.ctx);
    if !packet.has(ETHERNET_LEN) {
        return XDP_PASS;
    }
    swap_stations(&mut packet);
    XDP_TX
}
