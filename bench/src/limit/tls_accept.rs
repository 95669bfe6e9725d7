//! The bare handshake loop: accept, handshake, wait for the client to close, close.
//!
//! One thread, one epoll set, rustls as it comes; the certificate kind and the key exchange that every
//! compared server uses, and no session tickets. Started by the runner as `limit tls-accept`.

use crate::tls;
use anyhow::Result;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustls::ServerConnection;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// What the listener's events carry instead of a connection's place.
const LISTENER: u64 = u64::MAX;

type Guest = (TcpStream, ServerConnection);

pub(super) fn run(listener: &TcpListener) -> Result<()> {
    let config = tls::server_config()?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut guests: Vec<Option<Guest>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    loop {
        let mut events = [std::mem::MaybeUninit::uninit(); 256];
        let (events, _) = epoll::wait(&epoll, &mut events, None)?;
        for event in events {
            let place = event.data.u64();
            if place != LISTENER {
                let place = place as usize;
                if guests[place].as_mut().is_some_and(|guest| advance(guest).is_err()) {
                    guests[place] = None;
                    free.push(place);
                }
                continue;
            }
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true)?;
                let place = free.pop().unwrap_or_else(|| {
                    guests.push(None);
                    guests.len() - 1
                });
                epoll::add(&epoll, &stream, EventData::new_u64(place as u64), EventFlags::IN)?;
                guests[place] = Some((stream, ServerConnection::new(Arc::clone(&config))?));
            }
        }
    }
}

/// Takes what has come and answers it; an error when the guest has left or is at fault.
fn advance((stream, connection): &mut Guest) -> Result<()> {
    match connection.read_tls(stream) {
        Ok(0) => anyhow::bail!("guest has left"),
        Ok(_) => connection.process_new_packets().map(drop)?,
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => return Err(error.into()),
    }
    while connection.wants_write() {
        connection.write_tls(stream)?;
    }
    Ok(())
}
