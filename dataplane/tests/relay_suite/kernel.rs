//! The suite over the kernel's drivers: a thread per worker, TCP over loopback.

use std::io::Write;
use std::marker::PhantomData;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dataplane::io::epoll::Epoll;
use dataplane::io::uring::Uring;
use dataplane::io::{Driver, Wake};
use dataplane::relay::{Fabric, Worker};
use dataplane::udp::Udp;
use rustix::net::RecvFlags;
use socket2::SockRef;

use crate::harness::{End, Harness, Load, PATIENCE};

/// Bytes that the kernel may hold for a client that does not read, on each side.
const KERNEL_BUFFER_BYTES: usize = 128 << 10;

/// A driver that needs nothing but a clock.
pub(crate) trait Make: Driver<Socket = Arc<TcpStream>> + 'static {
    const HAS_FEW_BUFFERS: bool;

    fn make(epoch: Instant) -> Self;
}

impl Make for Epoll {
    const HAS_FEW_BUFFERS: bool = false;

    fn make(epoch: Instant) -> Self {
        Self::new(epoch).expect("descriptors are there")
    }
}

impl Make for Uring {
    const HAS_FEW_BUFFERS: bool = true;

    fn make(epoch: Instant) -> Self {
        Self::new(epoch).expect("probed before")
    }
}

pub(crate) struct Threads<D> {
    epoch: Instant,
    listener: TcpListener,
    workers: Vec<Thread>,
    /// While these live, the workers wait.
    held: Vec<Sender<()>>,
    driver: PhantomData<D>,
}

/// What a worker is asked between two rounds.
enum Question {
    Load(Sender<Load>),
    /// To say that it has heard, and to wait until the other channel closes.
    Hold(Sender<()>, Receiver<()>),
    /// To go on alone until it is stopped.
    Run,
}

struct Thread {
    questions: Option<Sender<Question>>,
    waker: Arc<dyn Wake>,
    handle: Option<JoinHandle<()>>,
}

impl<D: Make> Harness for Threads<D> {
    type Socket = Arc<TcpStream>;
    type End = Tcp;
    const STEPS_MAX: usize = usize::MAX;
    const HAS_FEW_BUFFERS: bool = D::HAS_FEW_BUFFERS;
    const LATENESS: Duration = PATIENCE;

    fn start(fabric: &Arc<Fabric<Arc<TcpStream>>>) -> Self {
        let epoch = Instant::now();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        // Before a connection exists, or its window is agreed on already.
        SockRef::from(&listener)
            .set_recv_buffer_size(KERNEL_BUFFER_BYTES)
            .expect("within the kernel's limit");
        let workers = (0..fabric.cores()).map(|core| spawn::<D>(core, epoch, fabric)).collect();
        Self { epoch, listener, workers, held: Vec::new(), driver: PhantomData }
    }

    /// The relay connects and the client accepts, so that the client's small window is inherited.
    fn connect(&mut self) -> (Tcp, Arc<TcpStream>) {
        let address = self.listener.local_addr().expect("bound");
        let relay = TcpStream::connect(address).expect("the listener lives");
        let (client, _) = self.listener.accept().expect("it has just connected");
        SockRef::from(&relay).set_send_buffer_size(KERNEL_BUFFER_BYTES).expect("a live socket");
        relay.set_nonblocking(true).expect("a live socket");
        relay.set_nodelay(true).expect("a live socket");
        client.set_nodelay(true).expect("a live socket");
        client.set_write_timeout(Some(PATIENCE)).expect("a live socket");
        let relay = Arc::new(relay);
        (Tcp { stream: client, relay: Arc::downgrade(&relay) }, relay)
    }

    fn step(&mut self) -> Load {
        self.workers.iter().fold(Load::default(), |load, worker| {
            let (answer, answered) = mpsc::channel();
            worker.ask(Question::Load(answer));
            load + answered.recv_timeout(PATIENCE).expect("the worker finishes a round")
        })
    }

    fn hold(&mut self) {
        for worker in &self.workers {
            let (heard, hears) = mpsc::channel();
            let (go_on, waits) = mpsc::channel();
            worker.ask(Question::Hold(heard, waits));
            assert!(
                hears
                    .recv_timeout(PATIENCE)
                    .is_err_and(|end| end == RecvTimeoutError::Disconnected)
            );
            self.held.push(go_on);
        }
    }

    fn go_on(&mut self) {
        self.held.clear();
    }

    fn run_to_end(self) {
        self.workers.iter().for_each(|worker| worker.ask(Question::Run));
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }
}

fn spawn<D: Make>(core: usize, epoch: Instant, fabric: &Arc<Fabric<Arc<TcpStream>>>) -> Thread {
    let fabric = Arc::clone(fabric);
    let (questions, asked) = mpsc::channel();
    let (waker, made) = mpsc::channel();
    let handle = thread::spawn(move || {
        // On its own thread: a ring belongs to its creator.
        let driver = D::make(epoch);
        waker.send(driver.waker()).expect("the test waits for it");
        work(Worker::new(core, fabric, driver, Udp::default()).expect("no ports to watch"), &asked);
    });
    let waker = made.recv_timeout(PATIENCE).expect("the worker starts");
    Thread { questions: Some(questions), waker, handle: Some(handle) }
}

fn work<D: Driver>(mut worker: Worker<D>, asked: &Receiver<Question>) {
    loop {
        worker.round().expect("the driver goes on");
        worker.check();
        loop {
            let load =
                Load { waiting_packets: worker.waiting_packets(), held_bytes: worker.held_bytes() };
            match asked.try_recv() {
                // A test that fails no longer listens.
                Ok(Question::Load(answer)) => drop(answer.send(load)),
                Ok(Question::Hold(heard, go_on)) => {
                    drop(heard);
                    let _ = go_on.recv_timeout(PATIENCE);
                }
                Ok(Question::Run) => return worker.run().expect("the driver goes on"),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }
}

impl Thread {
    fn ask(&self, question: Question) {
        let questions = self.questions.as_ref().expect("dropped with the harness only");
        questions.send(question).expect("the worker lives");
        self.waker.wake();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.questions = None;
        self.waker.wake();
        let joined = self.handle.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(matches!(joined, Some(Ok(()))), "a worker panicked");
        }
    }
}

/// A client's end.
pub(crate) struct Tcp {
    stream: TcpStream,
    relay: Weak<TcpStream>,
}

impl End for Tcp {
    fn write(&mut self, bytes: &[u8]) {
        // A relay that has ended the session refuses the rest, which is its right.
        let _ = self.stream.write_all(bytes);
    }

    fn read(&mut self, into: &mut Vec<u8>) -> bool {
        let mut bytes = [0; 64 << 10];
        loop {
            match rustix::net::recv(&self.stream, &mut bytes[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((len, _)) => into.extend_from_slice(&bytes[..len]),
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn close(&mut self) {
        // It fails on a connection that the relay has ended, which is as good.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn is_held(&self) -> bool {
        self.relay.strong_count() > 0
    }
}
