//! The keeper of the fast path: has XDP know what the relay knows.
//!
//! Owns the programs once they are attached, and the one thread that writes their maps. The relay
//! on core 0 is the truth; what it makes or ends arrives here as reports, is resolved to interface
//! and station, and goes into the maps. What cannot be resolved stays with the sockets. Nothing here
//! is on the way of a packet: with this thread stuck, both paths go on as they are. The start of the
//! dataplane prepares, starts and stops it.

mod keeper;
pub mod look;
mod next_hop;
pub(crate) mod privilege;
mod sessions;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::{fmt, io};

use crossbeam_channel::{Receiver, Sender};
use mio::{Poll, Waker};
use proto::wireguard::Session;
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};

use crate::affinity;
use crate::fault::{ExitCode, OperatorFault};
use crate::observe::Registry;
use crate::udp::{REPORTS_MAX, Report, Reporter, Shared};
use crate::xdp::{self, FastPath, Wanted, Watch, XdpFault};
use keeper::{Interface, Keeper, WAKE, attachments};
use look::{Look, Looks};
use next_hop::Neighbourhood;

pub use keeper::Served;

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// How to attach; `None` for not at all.
    pub mode: Option<Wanted>,
    /// Names of the interfaces, none twice.
    pub interfaces: Vec<String>,
    /// Folder on a bpffs where link and maps outlive the process.
    pub pins: Option<PathBuf>,
}

/// The programs in the kernel, switched off or as a predecessor left them.
pub struct Prepared {
    fast_path: FastPath,
    interfaces: Vec<Interface>,
    pinned: bool,
    poll: Poll,
    bell: Arc<Waker>,
    reports: (Sender<Report>, Receiver<Report>),
    looks: (Looks, Receiver<Look>),
    /// Whether the maps can be written without privileges.
    unprivileged: bool,
}

/// The keeper's thread.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<()>,
    orders: Arc<Orders>,
    bell: Arc<Waker>,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("interfaces", &self.interfaces).finish_non_exhaustive()
    }
}

/// Has the fast path drop binding requests, so that clients look for another relay.
#[derive(Clone, Debug)]
pub struct Shedder {
    orders: Arc<Orders>,
    bell: Arc<Waker>,
}

impl Shedder {
    /// Whether they are dropped from now on.
    pub fn shed(&self, shedding: bool) {
        self.orders.shed.store(shedding, Relaxed);
        let _ = self.bell.wake();
    }
}

/// What the process asks of the keeper.
#[derive(Debug, Default)]
struct Orders {
    shed: AtomicBool,
    stop: AtomicBool,
}

/// Loads and attaches as `wish` says, then gives up the privileges that took. `None` where there is
/// to be no fast path, or `auto` finds none.
///
/// # Errors
///
/// When an interface does not exist, or a mode that was asked for by name cannot be had.
pub fn prepare(wish: &Wish, seed: [u64; 2]) -> Result<Option<Prepared>, OperatorFault> {
    let Some((wanted, indices)) = wanted(wish)? else {
        return Ok(do_without(wish));
    };
    match attach(wish, wanted, &indices, seed) {
        Ok(prepared) => Ok(Some(prepared)),
        // Whatever the sockets could do, the other process would go on in front of them.
        Err(fault) if fault.code() == ExitCode::TryAgain => Err(fault),
        Err(fault) if wanted == Wanted::Auto => {
            tracing::warn!(%fault, "no XDP: everything goes through the sockets");
            Ok(do_without(wish))
        }
        Err(fault) => Err(fault),
    }
}

/// Detaches what an earlier start has left, which nobody would keep in step, and gives up what only
/// programs take.
fn do_without(wish: &Wish) -> Option<Prepared> {
    if let Some(pins) = &wish.pins {
        match xdp::remove_pins(pins) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(pins = %pins.display(), "programs of an earlier start detached");
            }
            Err(fault) => tracing::error!(%fault, "programs of an earlier start stay attached"),
        }
    }
    if let Err(error) = privilege::give_up_loading() {
        tracing::warn!(%error, "capabilities for loading XDP programs are kept");
    }
    None
}

/// Says what [`prepare`] would do, as far as that shows without attaching anything.
///
/// # Errors
///
/// As [`prepare`].
pub(crate) fn examine(wish: &Wish) -> Result<String, OperatorFault> {
    let Some((wanted, _)) = wanted(wish)? else {
        let why = if wish.mode.is_some() { "no xdp_interface is named" } else { "asked for" };
        return Ok(format!("off: {why}"));
    };
    let names = wish.interfaces.join(", ");
    let tried = FastPath::load(None, [0; 2]).and_then(|mut fast_path| fast_path.try_for(wanted));
    match tried.map_err(operator_fault) {
        Ok(()) => Ok(format!(
            "{} on {names}: the kernel takes the programs; attaching them is not tried",
            format!("{wanted:?}").to_lowercase()
        )),
        Err(fault) if wanted == Wanted::Auto => Ok(format!("off: {fault}")),
        Err(fault) => Err(fault),
    }
}

/// What to attach, and the indices of the interfaces to attach it to; `None` for nothing.
fn wanted(wish: &Wish) -> Result<Option<(Wanted, Vec<u32>)>, OperatorFault> {
    let Some(wanted) = wish.mode else { return Ok(None) };
    if wish.interfaces.is_empty() {
        return Ok(None);
    }
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
    let socket = socket.map_err(|error| failed("interfaces", error.into()))?;
    let index = |name: &String| {
        name_to_index(&socket, name).map_err(|error| match error {
            Errno::NODEV => OperatorFault::config(format_args!(
                "xdp_interface: there is no {name}; name one that `ip link` shows"
            )),
            error => failed(name, error.into()),
        })
    };
    let indices: Result<_, _> = wish.interfaces.iter().map(index).collect();
    Ok(Some((wanted, indices?)))
}

fn attach(
    wish: &Wish,
    wanted: Wanted,
    indices: &[u32],
    seed: [u64; 2],
) -> Result<Prepared, OperatorFault> {
    let mut fast_path = FastPath::load(wish.pins.as_deref(), seed).map_err(operator_fault)?;
    let hood = Neighbourhood::open().map_err(|error| failed("routes and neighbours", error))?;
    let mut interfaces = Vec::new();
    for (name, index) in wish.interfaces.iter().zip(indices) {
        let mode = if wanted == Wanted::Auto && hood.is_pair(*index) {
            // In the driver of a virtual pair, what a program sends is lost unless the other end
            // has a program, too; and that cannot be seen from here.
            tracing::info!(interface = name, "one end of a virtual pair: not native");
            fast_path.attach(name, Wanted::Tcx).or_else(|_| fast_path.attach(name, Wanted::Generic))
        } else {
            fast_path.attach(name, wanted)
        };
        let mode = mode.map_err(operator_fault)?;
        interfaces.push(Interface {
            name: name.clone(),
            index: *index,
            mode,
            slot: 0,
            gone: false,
        });
    }
    fast_path.settle();
    let thread = |error| failed("the fast path's thread", error);
    let poll = Poll::new().map_err(thread)?;
    let bell = Arc::new(Waker::new(poll.registry(), WAKE).map_err(thread)?);
    let looks = Looks::new(Arc::clone(&bell));
    let mut prepared = Prepared {
        fast_path,
        interfaces,
        pinned: wish.pins.is_some(),
        poll,
        bell,
        reports: crossbeam_channel::bounded(REPORTS_MAX),
        looks,
        unprivileged: false,
    };
    prepared.give_up_privileges();
    Ok(prepared)
}

/// What is missing, in the operator's terms.
fn operator_fault(fault: XdpFault) -> OperatorFault {
    if matches!(fault, XdpFault::Taken { .. }) {
        return OperatorFault::new(ExitCode::TryAgain, format_args!("xdp_pin: {fault}"));
    }
    if !fault.is_privilege() {
        return OperatorFault::new(ExitCode::Unavailable, format_args!("xdp: {fault}"));
    }
    let missing = privilege::missing().unwrap_or_default();
    let missing = if missing.is_empty() { "a privilege".into() } else { missing.join(", ") };
    OperatorFault::new(
        ExitCode::Privilege,
        format_args!("xdp: this process lacks {missing}: {fault}; grant it, or say --xdp off"),
    )
}

fn failed(what: &str, error: io::Error) -> OperatorFault {
    OperatorFault::new(ExitCode::Failed, format_args!("xdp: {what}: {error}; try --xdp off"))
}

impl Prepared {
    /// Gives up what loading took, if the maps can be written without it: before Linux 5.19 they
    /// cannot where unprivileged BPF is off. A thread that has given up tries it out.
    fn give_up_privileges(&mut self) {
        let fast_path = &mut self.fast_path;
        let tried = thread::scope(|scope| {
            let tried = scope.spawn(|| {
                privilege::give_up()?;
                // Writes what is there already, but for a look that a predecessor took.
                fast_path.watch(&Watch::default()).map_err(io::Error::other)
            });
            tried.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
        });
        match tried.and_then(|()| privilege::give_up_loading()) {
            Ok(()) => {
                self.unprivileged = true;
                tracing::info!("capabilities for loading XDP programs are given up");
            }
            Err(error) => tracing::warn!(
                %error,
                "capabilities are kept: this kernel wants them for each write to a map"
            ),
        }
    }

    /// The relay's way to the keeper.
    #[must_use]
    pub fn reporter(&self) -> Reporter {
        Reporter::new(self.reports.0.clone(), Arc::clone(&self.bell), self.pinned)
    }

    /// The way to ask for a closer look at the programs.
    #[must_use]
    pub fn looks(&self) -> Looks {
        self.looks.0.clone()
    }

    /// Starts the keeper, which lets the programs work for `served`. Also returns the sessions that
    /// a predecessor left.
    ///
    /// # Errors
    ///
    /// When the kernel tells nothing of its routes, or has no thread left.
    pub fn start(
        self,
        shared: &Arc<Shared>,
        registry: &Arc<Registry>,
        served: Served,
    ) -> Result<(Running, Vec<Session>), OperatorFault> {
        registry.fast_path.attach(attachments(&self.interfaces));
        let orders = Arc::new(Orders::default());
        let mut keeper = Keeper::new(
            self.fast_path,
            self.interfaces,
            self.pinned,
            Arc::clone(shared),
            Arc::clone(registry),
            served,
        )
        .map_err(|error| failed("routes and neighbours", error))?;
        let sessions = keeper.predecessors();
        let (poll, reports, looks) = (self.poll, self.reports.1, self.looks.1);
        let theirs = Arc::clone(&orders);
        let unprivileged = self.unprivileged;
        let body = move || {
            affinity::yield_to_workers();
            if unprivileged {
                privilege::give_up_admin();
            }
            keeper.run(poll, &reports, &looks, &theirs);
        };
        let thread = thread::Builder::new().name("fast-path".into()).spawn(body);
        let thread = thread.map_err(|error| failed("the fast path's thread", error))?;
        Ok((Running { thread, orders, bell: self.bell }, sessions))
    }
}

impl Running {
    /// What has binding requests dropped, or answered again.
    #[must_use]
    pub fn shedder(&self) -> Shedder {
        Shedder { orders: Arc::clone(&self.orders), bell: Arc::clone(&self.bell) }
    }

    /// Ends the keeper. Pinned programs go on forwarding what is known and answer nothing; others
    /// are detached.
    pub fn stop(self) {
        self.orders.stop.store(true, Relaxed);
        let _ = self.bell.wake();
        if self.thread.join().is_err() {
            tracing::error!("the fast path's thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_another_process_has_may_be_free_later() {
        let fault = operator_fault(XdpFault::Taken { pins: PathBuf::from("/sys/fs/bpf/perigee") });
        assert_eq!(fault.code(), ExitCode::TryAgain);
        assert!(fault.to_string().contains("/sys/fs/bpf/perigee"), "{fault}");
    }
}
