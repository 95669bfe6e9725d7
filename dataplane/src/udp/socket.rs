//! One UDP socket of one core, and how the kernel is asked to move many datagrams at once.
//!
//! Owns the options of the socket, reading by recvmmsg with GRO, and the three ways of sending: one
//! datagram, a run of equal ones as one (GSO), or several to several places (sendmmsg). It never
//! blocks, allocates nothing after [`UdpSocket::bind`], and judges nothing; the ports of a core and
//! their departures call it.

use std::array;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo, ReceiveTimestampns};
use proto::tick::Tick;
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Buffers handed to the kernel per system call, at most quinn-udp's batch of 32.
pub(super) const BATCH: usize = 32;
/// Kernel buffer asked for in each direction, in bytes. Bursts beyond the kernel's default of 208
/// KiB are lost while the core is busy with relay work (design decision 6).
const KERNEL_BUFFER_LEN: usize = 7 << 20;
/// Segments of one run that every kernel takes (`UDP_MAX_SEGMENTS` up to Linux 6.8).
pub(super) const RUN_SEGMENTS_MAX: usize = 64;
/// Bytes of one run that fit a datagram of either family: 65,535 less the headers of IPv6 and UDP.
pub(super) const RUN_LEN_MAX: usize = 65_535 - 48;
/// How long a socket sends segments one by one after a run was refused: the way out may lack
/// checksum offload, or take only shorter segments, and either can pass.
const GSO_PAUSE: Duration = Duration::from_secs(1);

/// Where a datagram goes and how it is marked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    pub(super) to: SocketAddr,
    /// Our own address that it is to come from, where the socket has several.
    pub(super) from: Option<IpAddr>,
    /// Congestion marks, which belong to the two ends.
    pub(super) ecn: Option<EcnCodepoint>,
}

/// A bound, non-blocking UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    socket: std::net::UdpSocket,
    state: UdpSocketState,
    /// Its kind of addresses: an IPv6 socket writes IPv4 addresses as mapped ones.
    v6: bool,
    /// Bound to every address of the host, so that a datagram can come to any of them.
    any: bool,
    /// Whether the kernel segments at all, and from when on it is asked to again.
    segments: bool,
    segments_from: Tick,
}

impl UdpSocket {
    /// Binds to `addr`; port 0 takes a free one. `[::]` also takes IPv4, every other IPv6 address
    /// takes IPv6 only. With `reuse_port` the sockets of several cores share the port.
    ///
    /// The kernel buffers are as large as the process may make them: 7 MiB with CAP_NET_ADMIN, else
    /// what `net.core.rmem_max` and `wmem_max` allow.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says, most often that the address is in use or not of this host.
    pub fn bind(addr: SocketAddr, reuse_port: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        let any = addr.ip().is_unspecified();
        if addr.is_ipv6() {
            socket.set_only_v6(!any)?;
        }
        socket.set_reuse_port(reuse_port)?;
        enlarge_kernel_buffers(&socket);
        // The descriptor becomes non-blocking here, and reports addresses and runs of datagrams.
        let state = UdpSocketState::new((&socket).into())?;
        tell_less(&socket, any);
        // Peers behind a narrow path get fragments, as they do from each other: a relay that sets
        // DF learns of the path's width and can tell nobody.
        if addr.is_ipv4() || any {
            sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DONT)?;
        }
        socket.bind(&addr.into())?;
        Ok(Self {
            socket: socket.into(),
            segments: state.max_gso_segments() > 1,
            state,
            v6: addr.is_ipv6(),
            any,
            segments_from: Tick::ZERO,
        })
    }

    /// The address it is bound to.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Bytes that the kernel really buffers for reading, its own bookkeeping included.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn kernel_buffer_len(&self) -> io::Result<usize> {
        self.state.recv_buffer_size((&self.socket).into())
    }

    /// The number by which the kernel's tables know it.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.socket)?.st_ino)
    }

    /// Whether datagrams come to several addresses of ours.
    pub(super) fn is_any(&self) -> bool {
        self.any
    }

    /// Reads up to one datagram or run into each buffer. Returns how many there were.
    pub(super) fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.state.recv((&self.socket).into(), buffers, metas)
    }

    /// Sends one datagram.
    pub(super) fn send(&self, course: &Course, bytes: &[u8]) -> io::Result<()> {
        self.transmit(course, bytes, None)
    }

    /// Sends the datagrams of `stride` bytes, the last perhaps shorter, that `bytes` consists of.
    /// Tells of each stretch of them whether it left: its bytes, and in how many datagrams.
    pub(super) fn send_run(
        &mut self,
        course: &Course,
        bytes: &[u8],
        stride: usize,
        now: Tick,
        tell: &mut impl FnMut(usize, usize, bool),
    ) {
        let count = bytes.len().div_ceil(stride.max(1));
        let whole = self.segments
            && now >= self.segments_from
            && count <= RUN_SEGMENTS_MAX
            && bytes.len() <= RUN_LEN_MAX;
        if whole {
            match self.transmit(course, bytes, Some(stride)) {
                Ok(()) => return tell(bytes.len(), count, true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return tell(bytes.len(), count, false);
                }
                Err(_) => self.segments_from = now.plus(GSO_PAUSE),
            }
        }
        for datagram in bytes.chunks(stride.max(1)) {
            tell(datagram.len(), 1, self.send(course, datagram).is_ok());
        }
    }

    /// Sends up to [`BATCH`] datagrams that need no control messages, each to its own place. Tells
    /// of each by its index whether it left.
    pub(super) fn send_many(
        &self,
        datagrams: &[(SocketAddr, &[u8])],
        tell: &mut impl FnMut(usize, bool),
    ) {
        let count = datagrams.len().min(BATCH);
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let parts: [(SocketAddrAny, [IoSlice<'_>; 1]); BATCH] = array::from_fn(|at| {
            let (to, bytes) = datagrams.get(at).copied().unwrap_or((nowhere, &[]));
            (self.in_family(to).into(), [IoSlice::new(bytes)])
        });
        let mut controls: [SendAncillaryBuffer<'_, '_, '_>; BATCH] =
            array::from_fn(|_| SendAncillaryBuffer::default());
        let mut next = parts.iter();
        let mut headers = controls.each_mut().map(|control| {
            let (to, slices) = next.next().expect("there are as many parts as controls");
            MMsgHdr::new_with_addr(to, slices, control)
        });
        let mut at = 0;
        while at < count {
            match sendmmsg(&self.socket, &mut headers[at..count], SendFlags::empty()) {
                Ok(sent) => {
                    for _ in 0..sent.max(1) {
                        tell(at, sent > 0);
                        at += 1;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    tell(at, false);
                    at += 1;
                }
            }
        }
    }

    fn transmit(&self, course: &Course, bytes: &[u8], stride: Option<usize>) -> io::Result<()> {
        // The kernel would say EINVAL, from which quinn-udp draws conclusions about the kernel; and
        // anybody can forge a datagram that seems to come from port 0.
        if course.to.port() == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let transmit = Transmit {
            destination: self.in_family(course.to),
            ecn: course.ecn,
            contents: bytes,
            segment_size: stride,
            src_ip: course.from.map(|ip| self.in_family(SocketAddr::new(ip, 0)).ip()),
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }

    /// `address` as this socket writes it.
    fn in_family(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.v6 => (ip.to_ipv6_mapped(), address.port()).into(),
            IpAddr::V4(_) | IpAddr::V6(_) => address,
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has the kernel say nothing of a datagram that is not asked for: each control message costs it a
/// twentieth of what receiving does. That is when it came, and, unless the socket is bound to `any`
/// address, which one it came to.
fn tell_less(socket: &Socket, any: bool) {
    // Refused at worst where it was not switched on either.
    let _ = setsockopt(socket, ReceiveTimestampns, &false);
    if !any {
        let _ = setsockopt(socket, Ipv4PacketInfo, &false);
        let _ = setsockopt(socket, Ipv6RecvPacketInfo, &false);
    }
}

/// Asks for [`KERNEL_BUFFER_LEN`], beyond the system's limit where the process may. Less will do.
fn enlarge_kernel_buffers(socket: &Socket) {
    if sockopt::set_socket_recv_buffer_size_force(socket, KERNEL_BUFFER_LEN).is_err() {
        let _ = socket.set_recv_buffer_size(KERNEL_BUFFER_LEN);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, KERNEL_BUFFER_LEN).is_err() {
        let _ = socket.set_send_buffer_size(KERNEL_BUFFER_LEN);
    }
}
