//! A scripted control: listens where a relay dials, writes what a test wants, reads what it is told.
//!
//! Owns the listener and each connection, over a unix socket or mutual TLS; every wait ends in time.
//! It shares the contract's codec with the relay; lines can also be written byte by byte. The tests of
//! steering call it.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use steer::{Lines, Order, Revision, SAID_BYTES_MAX, Said};

use crate::process::{PATIENCE, eventually};

/// Where a relay dials.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

/// The same behind mutual TLS.
#[derive(Debug)]
pub struct TlsControl {
    listener: TcpListener,
    config: Arc<ServerConfig>,
}

/// One relay's connection.
#[derive(Debug)]
pub struct Dataplane<S = UnixStream> {
    stream: S,
    lines: Lines,
    said: VecDeque<Said>,
}

impl Control {
    /// Listens at `path`, in the place of whoever did before.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn listen(path: &Path) -> Self {
        // A control that was killed leaves its socket behind.
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("a scratch directory takes sockets");
        listener.set_nonblocking(true).expect("a listener can be");
        Self { listener, path: path.to_owned() }
    }

    /// What the setting `steer` is to say.
    #[must_use]
    pub fn setting(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    /// The next connection.
    ///
    /// # Panics
    /// When none comes.
    #[must_use]
    pub fn accept(&self) -> Dataplane {
        let (stream, _) = eventually("a relay that dials", || {
            self.listener.accept().map_err(|error| error.to_string())
        });
        stream.set_nonblocking(false).expect("a stream can be");
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
        Dataplane::over(stream)
    }
}

impl TlsControl {
    /// Listens on loopback as `config` says.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn listen(config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback binds");
        listener.set_nonblocking(true).expect("a listener can be");
        Self { listener, config: Arc::new(config) }
    }

    /// Where.
    ///
    /// # Panics
    /// Never: it is bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }

    /// The next connection, once its handshake is done.
    ///
    /// # Errors
    /// When the handshake fails.
    ///
    /// # Panics
    /// When none comes.
    pub fn accept(&self) -> io::Result<Dataplane<StreamOwned<ServerConnection, TcpStream>>> {
        let (stream, _) = eventually("a relay that dials", || {
            self.listener.accept().map_err(|error| error.to_string())
        });
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let connection =
            ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Dataplane::over(stream))
    }
}

impl<S: Read + Write> Dataplane<S> {
    fn over(stream: S) -> Self {
        Self { stream, lines: Lines::new(SAID_BYTES_MAX), said: VecDeque::new() }
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// When the relay has hung up or takes nothing.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Writes an order.
    ///
    /// # Panics
    /// When the relay has hung up or takes nothing.
    pub fn order(&mut self, order: &Order) {
        self.write(order.to_line().as_bytes()).expect("the relay takes orders");
    }

    /// What the relay says next.
    ///
    /// # Errors
    /// When it hangs up, or says nothing.
    ///
    /// # Panics
    /// When it says what nobody understands.
    pub fn hear(&mut self) -> io::Result<Said> {
        let mut piece = [0; 4096];
        loop {
            if let Some(said) = self.said.pop_front() {
                return Ok(said);
            }
            let count = self.stream.read(&mut piece)?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.lines.push(&piece[..count]).expect("a relay's lines are short");
            while let Some(line) = self.lines.pop() {
                self.said.push_back(Said::read(&line).expect("readable").expect("known"));
            }
        }
    }

    /// What it says next but for reports.
    ///
    /// # Panics
    /// When it hangs up, or says nothing.
    pub fn answer(&mut self) -> Said {
        loop {
            match self.hear().expect("the relay answers") {
                Said::Report { .. } => {}
                said => return said,
            }
        }
    }

    /// What it says first: the store and revision that it has.
    ///
    /// # Panics
    /// When it says something else.
    pub fn hello(&mut self) -> (Option<String>, Revision) {
        match self.answer() {
            Said::Hello { store, revision, .. } => (store, revision),
            said => panic!("no hello: {said:?}"),
        }
    }

    /// Writes an order that is to be adopted.
    ///
    /// # Panics
    /// When it is not.
    pub fn steer(&mut self, order: &Order) {
        let to = match order {
            Order::Whole(snapshot) => snapshot.revision,
            Order::Delta(delta) => delta.to,
            Order::Current { .. } | Order::Goodbye { .. } => panic!("nothing to adopt"),
        };
        self.order(order);
        assert_eq!(self.answer(), Said::Adopted { revision: to });
    }

    /// Waits until the relay hangs up.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_for_end(&mut self) {
        while self.hear().is_ok() {}
    }
}
