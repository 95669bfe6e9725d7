//! The database of a round, where that is PostgreSQL: a server of its own, near or behind a delay.
//!
//! Owns the server, which is durable as an operator's is, and a line that holds every byte back for a
//! while each way, as a network does: a time for the way, not a limit of how much is under way.

use anyhow::{Context as _, Result};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::server::Server;

/// As a server is out of the package, but for what tests turn off.
const DURABLE: [&str; 3] = ["fsync=on", "full_page_writes=on", "shared_buffers=128MB"];

/// See the module. The line lives as long as the process.
pub(super) struct Database {
    server: Server,
    /// Where the line listens, if there is one.
    line: Option<PathBuf>,
}

impl Database {
    /// Starts a server, `way` away each way; `folder` is for the line's socket.
    pub(super) fn start(folder: &Path, way: Duration) -> Result<Self> {
        let mut server =
            Server::prepare().context("--postgres takes the distribution's package")?;
        server.run(&DURABLE);
        let line = (!way.is_zero()).then(|| folder.to_owned());
        if line.is_some() {
            let name = server.socket().file_name().context("a socket has a name")?.to_owned();
            hold_back(folder.join(name), server.socket(), way)?;
        }
        Ok(Self { server, line })
    }

    /// The URL of a new, empty database.
    pub(super) fn url(&self) -> String {
        let near = self.server.database();
        match (&self.line, near.split_once("?host=")) {
            (Some(folder), Some((start, _))) => format!("{start}?host={}", folder.display()),
            _ => near,
        }
    }
}

/// Listens at `socket` and passes on to `server`, `way` later each way.
fn hold_back(socket: PathBuf, server: PathBuf, way: Duration) -> Result<()> {
    let listener = UnixListener::bind(&socket)
        .with_context(|| format!("listening on {}", socket.display()))?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A server that is away is a connection that ends.
            let _ = UnixStream::connect(&server).and_then(|server| join(client, server, way));
        }
    });
    Ok(())
}

fn join(client: UnixStream, server: UnixStream, way: Duration) -> std::io::Result<()> {
    let (from_client, from_server) = (client.try_clone()?, server.try_clone()?);
    for (from, to) in [(from_client, server), (from_server, client)] {
        let (send, due) = channel();
        thread::spawn(move || pass_on(to, &due));
        thread::spawn(move || {
            let mut from = from;
            let mut bytes = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                if send.send((Instant::now() + way, bytes[..count].to_vec())).is_err() {
                    break;
                }
            }
        });
    }
    Ok(())
}

fn pass_on(mut to: UnixStream, due: &Receiver<(Instant, Vec<u8>)>) {
    for (at, bytes) in due {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // It has ended already if this fails.
    let _ = to.shutdown(Shutdown::Both);
}
