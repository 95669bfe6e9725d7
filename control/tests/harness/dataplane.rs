//! A dataplane that does as the contract says, or as a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use steer::{Order, PROTOCOL, Revision, Said, Snapshot};

use super::{Control, PATIENCE};

/// What connects a dataplane.
pub(crate) trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// One connection, and what it has led to.
pub(crate) struct Dataplane {
    stream: BufReader<Box<dyn Stream>>,
    pub(crate) snapshot: Snapshot,
}

impl Dataplane {
    /// A connection over the unix socket that has said nothing.
    pub(crate) fn dial(control: &Control) -> Self {
        let stream = UnixStream::connect(control.state.join("steer.sock")).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out is taken");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time-out is taken");
        Self::over(Box::new(stream))
    }

    /// One over `stream`.
    pub(crate) fn over(stream: Box<dyn Stream>) -> Self {
        Self { stream: BufReader::new(stream), snapshot: Snapshot::default() }
    }

    /// The dataplane of `node`, which has nothing.
    pub(crate) fn connect(control: &Control, node: &str) -> Self {
        let mut dataplane = Self::dial(control);
        dataplane.hello(node);
        dataplane
    }

    /// Another connection for `node`, by which this has what `before` had.
    pub(crate) fn again(control: &Control, node: &str, before: &Snapshot) -> Self {
        let mut dataplane = Self::dial(control);
        dataplane.snapshot = before.clone();
        dataplane.hello(node);
        dataplane
    }

    /// Says who it is and what it has.
    pub(crate) fn hello(&mut self, node: &str) {
        let Snapshot { store, revision, past, .. } = &self.snapshot;
        let store = (revision.0 > 0).then(|| store.clone());
        let (node, version) = (node.to_owned(), "0.0.test".to_owned());
        let (revision, past) = (*revision, past.clone());
        self.say(&Said::Hello { protocol: PROTOCOL, node, version, store, revision, past });
    }

    pub(crate) fn say(&mut self, said: &Said) {
        self.write(said.to_line().as_bytes());
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("control reads");
        self.stream.get_mut().flush().expect("control reads");
    }

    /// Writes what control may refuse to read to its end.
    pub(crate) fn throw(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
        let _ = self.stream.get_mut().flush();
    }

    /// The next order of any kind; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Order> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line) {
            Ok(read) if read > 0 => Some(Order::read(&line).expect("a message").expect("known")),
            Ok(_) => None,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("nothing came in time")
            }
            Err(_) => None,
        }
    }

    /// The next order that says something.
    pub(crate) fn order(&mut self) -> Order {
        loop {
            match self.next().expect("the connection goes on") {
                Order::Current { .. } => {}
                order => return order,
            }
        }
    }

    /// What the next order leads to, which is not answered yet, and its kind.
    pub(crate) fn look(&mut self) -> (&'static str, Snapshot) {
        match self.order() {
            Order::Whole(whole) => {
                whole.may_replace(Some(&self.snapshot)).expect("it may be adopted");
                ("whole", *whole)
            }
            Order::Delta(delta) => ("delta", self.snapshot.after(&delta).expect("it fits")),
            order @ (Order::Current { .. } | Order::Goodbye { .. }) => panic!("{order:?}"),
        }
    }

    /// Adopts the next order; its kind.
    pub(crate) fn adopt(&mut self) -> &'static str {
        let (kind, snapshot) = self.look();
        self.snapshot = snapshot;
        self.say(&Said::Adopted { revision: self.snapshot.revision });
        kind
    }

    /// Refuses the next order; its kind.
    pub(crate) fn refuse(&mut self, why: &str) -> &'static str {
        let (kind, snapshot) = self.look();
        self.say(&Said::refused(snapshot.revision, &why));
        kind
    }

    /// Adopts until it goes by `revision`; the kinds.
    pub(crate) fn settle(&mut self, revision: Revision) -> Vec<&'static str> {
        let mut kinds = Vec::new();
        while self.snapshot.revision < revision {
            kinds.push(self.adopt());
        }
        kinds
    }

    /// Why control hangs up; nothing else comes.
    pub(crate) fn goodbye(&mut self) -> String {
        let Order::Goodbye { why } = self.order() else { panic!("no farewell") };
        assert!(self.next().is_none(), "nothing comes after a farewell");
        why
    }

    /// The revision of the next sign of life, before which nothing else comes.
    pub(crate) fn current(&mut self) -> Revision {
        match self.next().expect("the connection goes on") {
            Order::Current { revision } => revision,
            order => panic!("{order:?}"),
        }
    }
}
