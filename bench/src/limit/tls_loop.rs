//! The bare TLS relay: read 64 KiB, open each record into the partner's open record, seal, write at once.
//!
//! One thread, one epoll set, fixed routing, handshakes inline. What a DERP relay adds to this (parsing,
//! lookup, queues, policy) is what its ratio to this loop shows. Started by the runner as `limit tls-loop`.

use crate::link::{Flushed, flush, read};
use crate::record::{self, Opener, Outbox, Sealer};
use crate::{host, tls};
use anyhow::Result;
use rustix::event::epoll::{self, EventData, EventFlags};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Bytes taken by one read.
const READ_LEN: usize = 64 << 10;
/// What the listener's events carry instead of a connection's number.
const LISTENER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    opener: Opener,
    sealer: Sealer,
    partial_record: Vec<u8>,
    out: Outbox,
    blocked: bool,
}

pub(super) fn run(listener: &TcpListener) -> Result<()> {
    let config = tls::server_config()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut connections: Vec<Connection> = Vec::new();
    let mut hot = Outbox::default();
    let mut cipher = vec![0; READ_LEN + (32 << 10)];
    loop {
        let mut events = [std::mem::MaybeUninit::uninit(); 256];
        let (events, _) = epoll::wait(&epoll, &mut events, None)?;
        for event in events {
            if event.data.u64() == LISTENER {
                let (mut stream, _) = listener.accept()?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                let Ok(secured) = tls::accept(&config, &mut stream) else { continue };
                host::tune(&stream)?;
                stream.set_nonblocking(true)?;
                let data = EventData::new_u64(connections.len() as u64);
                epoll::add(&epoll, &stream, data, EventFlags::IN)?;
                connections.push(Connection {
                    stream,
                    opener: secured.opener,
                    sealer: secured.sealer,
                    partial_record: Vec::new(),
                    out: Outbox::default(),
                    blocked: false,
                });
                continue;
            }
            let (own, partner) = (event.data.u64() as usize, (event.data.u64() ^ 1) as usize);
            let flags = event.flags;
            if flags.contains(EventFlags::OUT) {
                write(&epoll, &mut connections, own);
            }
            if partner < connections.len() && flags.intersects(!EventFlags::OUT) {
                relay(&epoll, &mut connections, own, &mut cipher, &mut hot);
            }
        }
    }
}

/// Reads once from `own`, opens every whole record into its partner's open record and writes that.
///
/// A partner whose socket has room borrows the one outbox that is still in the cache.
fn relay(
    epoll: &OwnedFd,
    connections: &mut [Connection],
    own: usize,
    cipher: &mut [u8],
    hot: &mut Outbox,
) {
    let Ok([from, to]) = connections.get_disjoint_mut([own, own ^ 1]) else { return };
    let lent = !to.blocked;
    if lent {
        std::mem::swap(&mut to.out, hot);
    }
    let held = from.partial_record.len();
    cipher[..held].copy_from_slice(&from.partial_record);
    let got = match read(&mut from.stream, &mut cipher[held..][..READ_LEN]) {
        Ok(got) => got.unwrap_or(0),
        Err(_) => return unwatch(epoll, from),
    };
    let mut rest = &cipher[..held + got];
    while let Some(len) = record::record_len(rest)
        && len <= rest.len()
    {
        if to.out.record_len() + len > record::PLAINTEXT_LEN_MAX {
            to.out.seal_record(&mut to.sealer);
        }
        to.out.open_record();
        match from.opener.open(&rest[..len], to.out.spare(len)) {
            Ok(opened) => to.out.commit(opened),
            Err(_) => return unwatch(epoll, from),
        }
        rest = &rest[len..];
    }
    from.partial_record.clear();
    from.partial_record.extend_from_slice(rest);
    write(epoll, connections, own ^ 1);
    if lent && !connections[own ^ 1].blocked {
        std::mem::swap(&mut connections[own ^ 1].out, hot);
    }
}

/// Seals what is open and writes once; while the socket is full the partner is not read from.
fn write(epoll: &OwnedFd, connections: &mut [Connection], own: usize) {
    let Ok([to, from]) = connections.get_disjoint_mut([own, own ^ 1]) else { return };
    to.out.seal_record(&mut to.sealer);
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
