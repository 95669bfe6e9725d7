//! Stands between a dataplane and control and notes when the dataplane has adopted what.
//!
//! Passes every byte on as it comes. Owns one listener; connections follow each other, as control and
//! dataplane come and go.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// See the module. It lives as long as the process.
pub(super) struct Witness {
    socket: PathBuf,
    adopted: Receiver<(i64, Instant)>,
}

impl Witness {
    /// Listens on `socket` and passes on to `control`.
    pub(super) fn between(socket: PathBuf, control: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("listening on {}", socket.display()))?;
        let (tell, adopted) = channel();
        thread::spawn(move || {
            for dataplane in listener.incoming().flatten() {
                // A control that is away is a connection that ends.
                let Ok(control) = UnixStream::connect(&control) else { continue };
                let _ = pass(&dataplane, &control, &tell);
            }
        });
        Ok(Self { socket, adopted })
    }

    /// Where the dataplane is to dial.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// When the dataplane had adopted `revision` or a later one.
    pub(super) fn adopted(&self, revision: i64, patience: Duration) -> Result<Instant> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.adopted.recv_timeout(left) {
                Ok((adopted, at)) if adopted >= revision => return Ok(at),
                Ok(_) => {}
                Err(_) => bail!("the dataplane has not adopted revision {revision}"),
            }
        }
    }
}

/// Passes on both ways until one side ends.
fn pass(dataplane: &UnixStream, control: &UnixStream, tell: &Sender<(i64, Instant)>) -> Result<()> {
    let (mut orders, mut to_dataplane) = (control.try_clone()?, dataplane.try_clone()?);
    let down = thread::spawn(move || {
        let _ = std::io::copy(&mut orders, &mut to_dataplane);
        let _ = to_dataplane.shutdown(std::net::Shutdown::Both);
    });
    let mut to_control = control;
    let mut line = String::new();
    let mut said = BufReader::new(dataplane);
    while said.read_line(&mut line)? > 0 {
        let at = Instant::now();
        let revision = serde_json::from_str::<Value>(&line).ok();
        if let Some(revision) = revision.and_then(|said| said["adopted"]["revision"].as_i64()) {
            // Nobody waits any more when the round is over.
            let _ = tell.send((revision, at));
        }
        to_control.write_all(line.as_bytes())?;
        line.clear();
    }
    let _ = control.shutdown(std::net::Shutdown::Both);
    let _ = down.join();
    Ok(())
}
