//! STUN: how long a binding request takes, where it was seen to come from, and how many get lost.
//!
//! Sends Tailscale's form of the request, which derper insists on and other servers take, too.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use wire::stun::{Answer, TxId, parse_answer, request};

use super::{Family, Fault};
use crate::fault::words;
use crate::token::random;

/// Requests sent before giving up; a packet or two may get lost.
pub(crate) const TRIES: u32 = 3;
/// Time for the answer to each.
const TRY: Duration = Duration::from_secs(1);
/// Time for stragglers after the last request of a count.
const STRAGGLERS: Duration = Duration::from_secs(1);
/// Most bytes of an answer that are read; ours and derper's have 44 at most.
const ANSWER_LEN_MAX: usize = 1500;

/// What an answer tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// From the request to the answer.
    pub round_trip: Duration,
    /// Where the server saw us.
    pub address: SocketAddr,
}

/// How many requests of a number went unanswered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Requests sent.
    pub sent: u32,
    /// Those without an answer.
    pub lost: u32,
    /// The time each answer took, in the order in which they came.
    pub round_trips: Vec<Duration>,
}

/// A socket for one server.
#[derive(Debug)]
pub struct Client {
    socket: UdpSocket,
    /// Requests without an answer so far, with the time of each.
    open: Vec<(TxId, Instant)>,
}

impl Client {
    /// A client for `server`; nothing is sent yet.
    ///
    /// # Errors
    /// [`Fault::NoFamily`] when this host has no way there.
    pub async fn connect(server: SocketAddr) -> Result<Self, Fault> {
        let any = match server {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let no_way = |error: std::io::Error| match error.kind() {
            ErrorKind::AddrNotAvailable | ErrorKind::NetworkUnreachable => {
                Fault::NoFamily(Family::of(server))
            }
            // A kernel without the family, for which the standard library has no word.
            _ if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {
                Fault::NoFamily(Family::of(server))
            }
            _ => Fault::io(&error),
        };
        let socket = UdpSocket::bind((any, 0)).await.map_err(no_way)?;
        // Asks the kernel for a route; nothing is sent.
        socket.connect(server).await.map_err(no_way)?;
        Ok(Self { socket, open: Vec::new() })
    }

    /// Asks until an answer comes, a few times.
    ///
    /// # Errors
    /// When none comes.
    pub async fn ask(&mut self) -> Result<Seen, Fault> {
        self.open.clear();
        for _ in 0..TRIES {
            self.send().await?;
            if let Some(seen) = self.receive(Instant::now() + TRY).await? {
                return Ok(seen);
            }
        }
        let server = self.socket.peer_addr().map_err(|error| Fault::io(&error))?;
        let patience = TRY * TRIES;
        Err(Fault::failed(format_args!("no answer from {server} in {patience:?}")))
    }

    /// Asks once; `None` if no answer comes within `patience`.
    ///
    /// # Errors
    /// When the host there says that nobody listens.
    pub async fn ask_once(&mut self, patience: Duration) -> Result<Option<Seen>, Fault> {
        self.open.clear();
        self.send().await?;
        self.receive(Instant::now() + patience).await
    }

    /// Asks `count` times, `every` so often, and counts the answers; says `sent` for each question.
    ///
    /// # Errors
    /// When the host there says that nobody listens.
    pub async fn count(
        &mut self,
        count: u32,
        every: Duration,
        mut sent: impl FnMut(),
    ) -> Result<Loss, Fault> {
        self.open.clear();
        let mut loss = Loss::default();
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while loss.sent < count {
            let next = ticks.tick().await + every;
            self.send().await?;
            loss.sent += 1;
            sent();
            while let Some(seen) = self.receive(next).await? {
                loss.round_trips.push(seen.round_trip);
            }
        }
        let end = Instant::now() + STRAGGLERS;
        while !self.open.is_empty()
            && let Some(seen) = self.receive(end).await?
        {
            loss.round_trips.push(seen.round_trip);
        }
        loss.lost = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        Ok(loss)
    }

    async fn send(&mut self) -> Result<(), Fault> {
        let txid = TxId(random());
        self.open.push((txid, Instant::now()));
        match self.socket.send(&request(txid)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.refused(&error)),
        }
    }

    /// The next answer to one of our requests; `None` when it is `end`.
    async fn receive(&mut self, end: Instant) -> Result<Option<Seen>, Fault> {
        let mut datagram = [0; ANSWER_LEN_MAX];
        loop {
            let Ok(received) = timeout_at(end, self.socket.recv(&mut datagram)).await else {
                return Ok(None);
            };
            let now = Instant::now();
            let len = received.map_err(|error| self.refused(&error))?;
            let answer = parse_answer(datagram.get(..len).unwrap_or_default());
            // Whatever is no answer to us is somebody's who wants to confuse.
            let Ok(Answer { txid, address }) = answer else { continue };
            let asked = self.open.iter().position(|(open, _)| *open == txid);
            if let Some(at) = asked {
                let (_, sent) = self.open.swap_remove(at);
                return Ok(Some(Seen { round_trip: now - sent, address }));
            }
        }
    }

    /// What the kernel heard from the network about our packets.
    fn refused(&self, error: &std::io::Error) -> Fault {
        match self.socket.peer_addr() {
            Ok(server) => Fault::failed(format_args!("{server}: {}", words(error))),
            Err(_) => Fault::io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use wire::stun::{ANSWER_LEN_MAX, parse};

    use super::*;

    /// A server that lets every `one_in`th request go unanswered; 0 for none.
    async fn server(one_in: u32) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback binds");
        let address = socket.local_addr().expect("bound");
        tokio::spawn(async move {
            let asked = AtomicU32::new(0);
            let (mut bytes, mut out) = ([0; 1500], [0; ANSWER_LEN_MAX]);
            while let Ok((len, from)) = socket.recv_from(&mut bytes).await {
                let request = parse(&bytes[..len]).expect("a request");
                let number = asked.fetch_add(1, Ordering::Relaxed) + 1;
                // Somebody else's answer comes first, always.
                let other = wire::stun::Request { txid: TxId([9; 12]) };
                socket.send_to(other.answer(from, &mut out), from).await.expect("sent");
                if one_in == 0 || !number.is_multiple_of(one_in) {
                    socket.send_to(request.answer(from, &mut out), from).await.expect("sent");
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn an_answer_says_where_we_are() {
        let mut client = Client::connect(server(0).await).await.expect("there is a way");
        let seen = client.ask().await.expect("it answers");
        assert_eq!(seen.address, client.socket.local_addr().expect("bound"));
    }

    #[tokio::test]
    async fn a_lost_request_is_repeated() {
        let mut client = Client::connect(server(2).await).await.expect("there is a way");
        client.ask().await.expect("the first is answered");
        let seen = client.ask().await.expect("the second is lost, the third is answered");
        assert!(seen.round_trip < TRY);
    }

    #[tokio::test]
    async fn what_is_lost_is_counted() {
        let mut client = Client::connect(server(5).await).await.expect("there is a way");
        let loss = client.count(20, Duration::from_millis(1), || {}).await.expect("it answers");
        assert_eq!((loss.sent, loss.lost, loss.round_trips.len()), (20, 4, 16));
    }

    #[tokio::test]
    async fn a_closed_port_is_said_at_once() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback binds");
        let address = socket.local_addr().expect("bound");
        drop(socket);
        let mut client = Client::connect(address).await.expect("there is a way");
        let fault = client.ask().await.expect_err("nobody is there");
        assert_eq!(fault.to_string(), format!("{address}: connection refused"));
    }
}
