//! One UDP socket of one core, and how the kernel is asked to move many datagrams at once.
//!
//! Owns the options of the socket, reading by recvmmsg with GRO, and the three ways of sending: one
//! datagram, a run of equal ones as one (GSO), or several to several places (sendmmsg, where they
//! need no control message: no mark, and a socket of one address). It never blocks, allocates
//! nothing after [`UdpSocket::bind`], and judges nothing; the ports of a core and their departures
//! call it.

use std::array;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{
    Ipv4PacketInfo, Ipv6DontFrag, Ipv6RecvPacketInfo, ReceiveTimestampns,
};
use proto::tick::Tick;
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Buffers handed to the kernel per system call, at most quinn-udp's batch of 32.
pub(super) const BATCH: usize = 32;
/// Kernel buffer asked for in each direction, in bytes. Bursts beyond the kernel's default of 208
/// KiB are lost while the core is busy with relay work (design decision 6).
const KERNEL_BUFFER_LEN: usize = 7 << 20;
/// Segments of one run that every kernel takes (`UDP_MAX_SEGMENTS` up to Linux 6.8).
pub(super) const RUN_SEGMENTS_MAX: usize = 64;
/// Bytes of one run that fit a datagram of either family: 65,535 less the headers of IPv6 and UDP.
pub(super) const RUN_LEN_MAX: usize = 65_535 - 48;
/// How long runs to a place leave as single datagrams after one was refused: the way there may lack
/// checksum offload, or take only shorter segments, and either can pass.
const REFUSAL_LIFE: Duration = Duration::from_secs(1);
/// Places of which is remembered that they refused a run.
const REFUSALS_MAX: usize = 8;
/// How often at most the state is made anew that quinn-udp spoils when a send is refused.
const RENEWAL_PAUSE: Duration = Duration::from_millis(100);

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
    /// For relayed data. quinn-udp takes a refused send (EINVAL, EIO) for a kernel that does not know
    /// marks of congestion on IPv4 and leaves them out from then on, so it is made anew after one.
    state: UdpSocketState,
    /// Since when `state` may be spoilt, and until when it is not made anew again.
    spoilt: bool,
    renew_from: Tick,
    /// For answers and handshakes, which anybody can have refused and which carry no marks.
    answers: UdpSocketState,
    /// Its kind of addresses: an IPv6 socket writes IPv4 addresses as mapped ones.
    v6: bool,
    /// Bound to every address of the host, so that a datagram can come to any of them.
    any: bool,
    /// Whether the kernel segments at all.
    segments: bool,
    refusals: Refusals,
}

/// Which runs were lately refused.
#[derive(Debug, Default)]
struct Refusals {
    /// Where to, segments of how many bytes at least, and until when that is believed.
    list: [Option<(IpAddr, usize, Tick)>; REFUSALS_MAX],
    next: usize,
    /// When the last of them is over.
    until: Tick,
}

impl Refusals {
    #[inline]
    fn forbid(&self, to: IpAddr, stride: usize, now: Tick) -> bool {
        now < self.until
            && self
                .list
                .iter()
                .flatten()
                .any(|(ip, refused, until)| *ip == to && stride >= *refused && now < *until)
    }

    fn note(&mut self, to: IpAddr, stride: usize, now: Tick) {
        self.until = now.plus(REFUSAL_LIFE);
        let known = self.list.iter().position(|it| it.is_some_and(|(ip, ..)| ip == to));
        let at = known.unwrap_or_else(|| {
            self.next = (self.next + 1) % REFUSALS_MAX;
            self.next
        });
        self.list[at] = Some((to, stride, self.until));
    }
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
        let answers = equip((&socket).into(), addr.is_ipv6(), any)?;
        let state = equip((&socket).into(), addr.is_ipv6(), any)?;
        socket.bind(&addr.into())?;
        Ok(Self {
            socket: socket.into(),
            segments: state.max_gso_segments() > 1,
            state,
            spoilt: false,
            renew_from: Tick::ZERO,
            answers,
            v6: addr.is_ipv6(),
            any,
            refusals: Refusals::default(),
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

    /// Sends one datagram of what is relayed.
    pub(super) fn send(&mut self, course: &Course, bytes: &[u8], now: Tick) -> io::Result<()> {
        self.relay(course, bytes, None, now)
    }

    /// Sends one datagram, without marks, that anybody may have asked for.
    pub(super) fn answer(&self, course: &Course, bytes: &[u8]) -> io::Result<()> {
        self.transmit(&self.answers, course, bytes, None)
    }

    /// Sends the datagrams of `stride` bytes, the last perhaps shorter, that `bytes` consists of.
    /// Tells of each stretch of them whether it left: its bytes, and in how many datagrams. Returns
    /// how many had to be sent singly.
    pub(super) fn send_run(
        &mut self,
        course: &Course,
        bytes: &[u8],
        stride: usize,
        now: Tick,
        tell: &mut impl FnMut(usize, usize, bool),
    ) -> usize {
        let count = bytes.len().div_ceil(stride.max(1));
        let whole = self.segments
            && !self.refusals.forbid(course.to.ip(), stride, now)
            && count <= RUN_SEGMENTS_MAX
            && bytes.len() <= RUN_LEN_MAX;
        if whole {
            match self.relay(course, bytes, Some(stride), now) {
                Ok(()) => {
                    tell(bytes.len(), count, true);
                    return 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tell(bytes.len(), count, false);
                    return 0;
                }
                Err(_) => self.refusals.note(course.to.ip(), stride, now),
            }
        }
        for datagram in bytes.chunks(stride.max(1)) {
            tell(datagram.len(), 1, self.send(course, datagram, now).is_ok());
        }
        count
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
                Err(Errno::INTR) => {}
                Err(_) => {
                    tell(at, false);
                    at += 1;
                }
            }
        }
    }

    fn relay(
        &mut self,
        course: &Course,
        bytes: &[u8],
        stride: Option<usize>,
        now: Tick,
    ) -> io::Result<()> {
        if self.spoilt && now >= self.renew_from {
            self.renew(now);
        }
        let sent = self.transmit(&self.state, course, bytes, stride);
        let refused = |error: &io::Error| {
            let known = Errno::from_io_error(error);
            known.is_some_and(|errno| matches!(errno, Errno::INVAL | Errno::IO))
        };
        self.spoilt |= sent.as_ref().is_err_and(refused);
        sent
    }

    #[cold]
    fn renew(&mut self, now: Tick) {
        self.renew_from = now.plus(RENEWAL_PAUSE);
        if let Ok(state) = equip((&self.socket).into(), self.v6, self.any) {
            self.state = state;
            self.spoilt = false;
        }
    }

    fn transmit(
        &self,
        state: &UdpSocketState,
        course: &Course,
        bytes: &[u8],
        stride: Option<usize>,
    ) -> io::Result<()> {
        // Anybody can forge a datagram that seems to come from port 0.
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
        state.try_send((&self.socket).into(), &transmit)
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

/// Makes the descriptor non-blocking, and has it report marks and runs of datagrams, and if it is bound to
/// `any` address, which one they came to.
fn equip(socket: SockRef<'_>, v6: bool, any: bool) -> io::Result<UdpSocketState> {
    let state = UdpSocketState::new((&*socket).into())?;
    // Peers behind a narrow path get fragments, as they do from each other: a relay that forbids
    // them learns of the path's width and can tell nobody.
    sockopt::set_ip_mtu_discover(&*socket, sockopt::Ipv4PathMtuDiscovery::DONT)?;
    if v6 {
        sockopt::set_ipv6_mtu_discover(&*socket, sockopt::Ipv6PathMtuDiscovery::DONT)?;
        setsockopt(&*socket, Ipv6DontFrag, &false)?;
    }
    // quinn-udp asks for them, and nobody reads them.
    setsockopt(&*socket, ReceiveTimestampns, &false)?;
    if !any {
        // A control message costs the kernel a copy with all its checks, and a socket that has only one
        // address needs no word of which it was. Refused at worst where it was not switched on either.
        let _ = setsockopt(&*socket, Ipv4PacketInfo, &false);
        let _ = setsockopt(&*socket, Ipv6RecvPacketInfo, &false);
    }
    Ok(state)
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
