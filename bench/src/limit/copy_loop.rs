//! The bare copy relay: read 64 KiB into the partner's buffer, write at once. No TLS.
//!
//! One thread, one epoll set, fixed routing: the floor under the bare TLS relay. Started by the runner as
//! `limit copy-loop`.

use crate::host;
use crate::link::{Flushed, flush, read};
use crate::record::Outbox;
use anyhow::Result;
use rustix::event::epoll::{self, EventData, EventFlags};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

/// Bytes taken by one read.
const READ_LEN: usize = 64 << 10;
/// What the listener's events carry instead of a connection's number.
const LISTENER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    out: Outbox,
    blocked: bool,
}

pub(super) fn run(listener: &TcpListener) -> Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut connections: Vec<Connection> = Vec::new();
    let mut hot = Outbox::default();
    loop {
        let mut events = [std::mem::MaybeUninit::uninit(); 256];
        let (events, _) = epoll::wait(&epoll, &mut events, None)?;
        for event in events {
            if event.data.u64() == LISTENER {
                let (stream, _) = listener.accept()?;
                host::tune(&stream)?;
                stream.set_nonblocking(true)?;
                let data = EventData::new_u64(connections.len() as u64);
                epoll::add(&epoll, &stream, data, EventFlags::IN)?;
                connections.push(Connection { stream, out: Outbox::default(), blocked: false });
                continue;
            }
            let (own, partner) = (event.data.u64() as usize, (event.data.u64() ^ 1) as usize);
            let flags = event.flags;
            if flags.contains(EventFlags::OUT) {
                write(&epoll, &mut connections, own);
            }
            if partner < connections.len() && flags.intersects(!EventFlags::OUT) {
                relay(&epoll, &mut connections, own, &mut hot);
            }
        }
    }
}

/// Reads once from `own` straight into its partner's outbox and writes that.
///
/// A partner whose socket has room borrows the one outbox that is still in the cache.
fn relay(epoll: &OwnedFd, connections: &mut [Connection], own: usize, hot: &mut Outbox) {
    let Ok([from, to]) = connections.get_disjoint_mut([own, own ^ 1]) else { return };
    let lent = !to.blocked;
    if lent {
        std::mem::swap(&mut to.out, hot);
    }
    match read(&mut from.stream, &mut to.out.spare(READ_LEN)[..READ_LEN]) {
        Ok(got) => to.out.commit(got.unwrap_or(0)),
        Err(_) => unwatch(epoll, from),
    }
    to.out.close_plain();
    write(epoll, connections, own ^ 1);
    if lent && !connections[own ^ 1].blocked {
        std::mem::swap(&mut connections[own ^ 1].out, hot);
    }
}

/// Writes once; while the socket is full the partner is not read from.
fn write(epoll: &OwnedFd, connections: &mut [Connection], own: usize) {
    let Ok([to, from]) = connections.get_disjoint_mut([own, own ^ 1]) else { return };
    let Ok(flushed) = flush(&mut to.stream, &mut to.out) else {
        return unwatch(epoll, to);
    };
    let blocked = flushed == Flushed::Blocked;
    if blocked != to.blocked {
        to.blocked = blocked;
        watch(epoll, to, from, own);
        watch(epoll, from, to, own ^ 1);
    }
}

/// Asks for what `own` can use now: input unless its partner is full, room if it is full itself.
fn watch(epoll: &OwnedFd, own: &Connection, partner: &Connection, number: usize) {
    let mut wanted = EventFlags::empty();
    wanted.set(EventFlags::IN, !partner.blocked);
    wanted.set(EventFlags::OUT, own.blocked);
    // It may have been unwatched because its peer left; then there is nothing to ask for.
    let _ = epoll::modify(epoll, &own.stream, EventData::new_u64(number as u64), wanted);
}

/// Looks no more at a connection whose peer left; its place stays taken, so that pairing stays.
fn unwatch(epoll: &OwnedFd, gone: &Connection) {
    // It may have been unwatched before.
    let _ = epoll::delete(epoll, &gone.stream);
}
