//! The bare UDP relay of runs: take what the kernel merged (GRO), send it on as it came (GSO).
//!
//! One thread, one socket, no look at a byte: a datagram from port p goes back to its host, to the port
//! whose lowest bit is the other one. Started by the runner as `limit udp-runs`.

use super::partner;
use anyhow::Result;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::sockopt::UdpGroSegment;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
};
use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

/// Bytes of the longest run.
const RUN_LEN_MAX: usize = 64 << 10;

pub(super) fn run(socket: &UdpSocket) -> Result<()> {
    setsockopt(socket, UdpGroSegment, &true)?;
    let fd = socket.as_raw_fd();
    let mut buffer = vec![0; RUN_LEN_MAX];
    let mut control = cmsg_space!(i32);
    loop {
        let mut into = [IoSliceMut::new(&mut buffer)];
        let got = match recvmsg::<SockaddrIn>(fd, &mut into, Some(&mut control), MsgFlags::empty())
        {
            Ok(got) => got,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let (len, from) = (got.bytes, got.address);
        let strides = got.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(stride) => u16::try_from(stride).ok(),
            _ => None,
        });
        let Some(to) = from.map(partner) else { continue };
        let run = strides.filter(|stride| usize::from(*stride) < len);
        let segments = run.as_ref().map(ControlMessage::UdpGsoSegments);
        let bytes = [IoSlice::new(&buffer[..len])];
        // What finds no room is lost, as it would be from a relay.
        let _ = sendmsg(fd, &bytes, segments.as_slice(), MsgFlags::empty(), Some(&to));
    }
}
