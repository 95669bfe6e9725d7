//! Where the programs are attached, and what stays of that when the process goes.
//!
//! Owns the choice of a hook for each interface, and the pins' folder, which it locks: in it a link for
//! each interface and mode, below `maps-N` the maps of layout `N`, and below `sessions-N` the sessions
//! in theirs. So links are replaced in one step across layouts, and maps never. Files of others are
//! left alone. The loader calls it.

use std::collections::HashMap;
use std::fs::{self, DirEntry, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
use wire::maps::{LAYOUT, SESSION_LAYOUT};

use super::fault::pin_fault;
use super::{KEPT, Mode, ONCE_KEPT, SESSION, Wanted, XdpFault};

/// The program for XDP in the committed object.
const XDP: &str = "relay";
/// The program for tcx.
const TCX: &str = "relay_tcx";
/// What the names of pinned links begin with.
const LINK: &str = "link-";
/// What the names of folders with maps begin with.
const FOLDER: &str = "maps-";
/// What the names of folders with sessions begin with.
const SESSIONS: &str = "sessions-";
/// What a bpffs says that it is (BPF_FS_MAGIC in linux/magic.h).
const BPFFS: u64 = 0xcafe_4a11;

/// How long the kernel may take to detach a link whose pin is gone; it puts that off.
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// The programs' links.
#[derive(Debug)]
pub(super) struct Links {
    /// Where they and the maps are pinned.
    pins: Option<PathBuf>,
    /// Of the pins' folder.
    _lock: Option<Lock>,
    /// By the number of the interface.
    attached: HashMap<u32, Mode>,
    /// Names of the pins that belong to `attached`.
    names: Vec<String>,
}

impl Links {
    /// No links yet; the folder for maps exists now.
    pub(super) fn new(pins: Option<&Path>) -> Result<Self, XdpFault> {
        let mut links = Self {
            pins: pins.map(Path::to_owned),
            _lock: None,
            attached: HashMap::new(),
            names: Vec::new(),
        };
        let Some(pins) = pins else { return Ok(links) };
        must_be_bpffs(pins)?;
        fs::create_dir_all(pins).map_err(|error| pin_fault(pins, &error))?;
        links._lock = Some(lock(pins)?);
        for folder in [links.maps(), links.sessions()].into_iter().flatten() {
            fs::create_dir_all(&folder).map_err(|error| pin_fault(&folder, &error))?;
        }
        Ok(links)
    }

    /// Those that an earlier process has pinned in this folder.
    pub(super) fn left(pins: &Path) -> Result<Self, XdpFault> {
        Ok(Self {
            pins: Some(pins.to_owned()),
            _lock: Some(lock(pins)?),
            attached: HashMap::new(),
            names: Vec::new(),
        })
    }

    /// The folder for maps of this layout.
    pub(super) fn maps(&self) -> Option<PathBuf> {
        self.pins.as_ref().map(|pins| pins.join(format!("{FOLDER}{LAYOUT}")))
    }

    /// The folder for sessions, which outlive changes of all other maps.
    pub(super) fn sessions(&self) -> Option<PathBuf> {
        self.pins.as_ref().map(|pins| pins.join(format!("{SESSIONS}{SESSION_LAYOUT}")))
    }

    /// The folder that all pins are in.
    pub(super) fn pins(&self) -> Option<&Path> {
        self.pins.as_deref()
    }

    /// Attaches to `interface` as `wanted`.
    pub(super) fn attach(
        &mut self,
        object: &mut Ebpf,
        interface: &str,
        wanted: Wanted,
    ) -> Result<Mode, XdpFault> {
        let number = number_of(interface)?;
        let mut refused = None;
        for mode in self.choices(interface, number, wanted) {
            match self.attach_as(object, interface, number, mode) {
                Ok(()) => {
                    tracing::info!(interface, %mode, "fast path attached");
                    self.attached.insert(number, mode);
                    let ours = link_name(interface, number, mode);
                    self.remove_links(|name| concerns(name, interface, number) && *name != ours);
                    self.names.push(ours);
                    self.remove_old_maps();
                    return Ok(mode);
                }
                Err(fault) => {
                    tracing::warn!(interface, %mode, %fault, "fast path refused");
                    refused = Some(fault);
                }
            }
        }
        Err(refused.expect("every choice has at least one mode"))
    }

    /// The modes to try, in their order: what an earlier process has left in place comes first.
    fn choices(&self, interface: &str, number: u32, wanted: Wanted) -> Vec<Mode> {
        let mut modes = match wanted {
            Wanted::Auto => vec![Mode::Native, Mode::Tcx, Mode::Generic],
            Wanted::Native => vec![Mode::Native],
            Wanted::Tcx => vec![Mode::Tcx],
            Wanted::Generic => vec![Mode::Generic],
        };
        let is_pinned = |mode| self.pin(interface, number, mode).is_some_and(|pin| pin.exists());
        modes.sort_by_key(|mode| !is_pinned(*mode));
        modes
    }

    fn pin(&self, interface: &str, number: u32, mode: Mode) -> Option<PathBuf> {
        self.pins.as_ref().map(|pins| pins.join(link_name(interface, number, mode)))
    }

    fn attach_as(
        &mut self,
        object: &mut Ebpf,
        interface: &str,
        number: u32,
        mode: Mode,
    ) -> Result<(), XdpFault> {
        let pin = self.pin(interface, number, mode);
        if let Some(path) = pin.as_ref().filter(|path| path.exists()) {
            match take_over(object, mode, path) {
                Ok(()) => return Ok(()),
                // The interface it was for is gone, perhaps for another of the same name.
                Err(why) => tracing::warn!(interface, %mode, why, "pinned link of no use"),
            }
            fs::remove_file(path).map_err(|error| pin_fault(path, &error))?;
        }
        // The kernel takes one XDP program for an interface, whatever that was called before.
        let is_xdp = |name: &str| [Mode::Native, Mode::Generic].iter().any(|it| is_in(name, *it));
        let displaced = match mode {
            Mode::Native | Mode::Generic => {
                self.remove_links(|name| is_xdp(name) && concerns(name, interface, number))
            }
            Mode::Tcx => 0,
        };
        let until = Instant::now() + if displaced > 0 { GONE_WITHIN } else { Duration::ZERO };
        let link = loop {
            match attach(object, interface, mode, pin.is_some()) {
                Err(_) if Instant::now() < until => thread::yield_now(),
                result => break result?,
            }
        };
        if let (Some(path), Some(link)) = (pin, link) {
            let link = link.map_err(|error| pin_fault(&path, &error))?;
            // The pin alone holds it: whoever removes that detaches, whatever runs.
            drop(link.pin(&path).map_err(|error| pin_fault(&path, &error))?);
        }
        Ok(())
    }

    /// Whether what comes in by some interface may leave by this one in XDP: the driver must have a
    /// way, unless none of those that it comes from has one either.
    pub(super) fn takes_xdp(&self, number: u32) -> bool {
        let native = |mode: &Mode| *mode == Mode::Native;
        self.attached.get(&number).is_none_or(native) || !self.attached.values().any(native)
    }

    /// Removes the links of interfaces that this process has not attached to.
    pub(super) fn settle(&self) {
        self.remove_links(|name| !self.names.contains(name));
    }

    /// Removes pinned links by name, and says how many.
    fn remove_links(&self, unwanted: impl Fn(&String) -> bool) -> usize {
        let mut removed = 0;
        for (name, path) in self.entries() {
            if name.starts_with(LINK) && unwanted(&name) {
                match fs::remove_file(&path) {
                    Ok(()) => {
                        tracing::info!(name, "pinned link removed");
                        removed += 1;
                    }
                    Err(error) => tracing::warn!(name, %error, "pinned link not removed"),
                }
            }
        }
        removed
    }

    /// Removes maps of other layouts, which nobody reads any more.
    fn remove_old_maps(&self) {
        let ours = [self.maps(), self.sessions()];
        for (name, path) in self.entries() {
            if is_folder(&name) && !ours.iter().flatten().any(|folder| *folder == path) {
                match remove_maps(&path) {
                    Ok(()) => tracing::info!(name, "maps of another layout removed"),
                    Err(error) => tracing::warn!(name, %error, "maps not removed"),
                }
            }
        }
    }

    /// What is in the pins' folder, by name.
    fn entries(&self) -> Vec<(String, PathBuf)> {
        let Some(entries) = self.pins.as_ref().and_then(|pins| fs::read_dir(pins).ok()) else {
            return Vec::new();
        };
        let named = |entry: DirEntry| Some((entry.file_name().into_string().ok()?, entry.path()));
        entries.filter_map(Result::ok).filter_map(named).collect()
    }

    /// Removes every pin of ours, and the folder if nothing else is in it.
    pub(super) fn remove_all(&self) -> Result<(), XdpFault> {
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        for (name, path) in self.entries() {
            let removed = if name.starts_with(LINK) {
                fs::remove_file(&path)
            } else if is_folder(&name) {
                remove_maps(&path)
            } else {
                tracing::warn!(pin = %path.display(), "not ours, left where it is");
                Ok(())
            };
            removed.map_err(|error| pin_fault(&path, &error))?;
        }
        remove_empty(pins).map_err(|error| pin_fault(pins, &error))
    }
}

/// Name of the pin of a link. It has the interface's number, too, because names move from one
/// interface to another.
fn link_name(interface: &str, number: u32, mode: Mode) -> String {
    format!("{LINK}{}-{number}-{mode}", escaped(interface))
}

/// A bpffs has no dots in its names, and interfaces have.
fn escaped(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

/// Whether `name` is that of a link in this mode.
fn is_in(name: &str, mode: Mode) -> bool {
    name.rsplit_once('-').is_some_and(|(_, last)| last == mode.to_string())
}

/// Whether `name` is that of a link, in whichever mode, of an interface with this name or number.
fn concerns(name: &str, interface: &str, number: u32) -> bool {
    let place = name.strip_prefix(LINK).and_then(|rest| rest.rsplit_once('-'));
    let Some((place, _)) = place else { return false };
    // The first layout had the name alone.
    let both = place.rsplit_once('-').is_some_and(|(named, numbered)| {
        let numbered = numbered.parse::<u32>().ok();
        numbered == Some(number) || numbered.is_some() && named == escaped(interface)
    });
    both || place == escaped(interface)
}

/// Whether a folder of this name is for maps.
fn is_folder(name: &str) -> bool {
    let number = name.strip_prefix(FOLDER).or_else(|| name.strip_prefix(SESSIONS));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Refuses a folder that is, or would be, on another file system than one for pins.
fn must_be_bpffs(pins: &Path) -> Result<(), XdpFault> {
    let there = pins.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    match statfs(there) {
        Ok(found) if found.f_type as u64 == BPFFS => Ok(()),
        Ok(_) => Err(pin_fault(pins, &"not on a bpffs")),
        Err(error) => Err(pin_fault(pins, &io::Error::from(error))),
    }
}

/// A folder that is this process's own: two that write the same maps undo each other's work.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone leaves it locked for a child that is about to be another program.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock(pins: &Path) -> Result<Lock, XdpFault> {
    let folder = File::open(pins).map_err(|error| pin_fault(pins, &error))?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(folder)),
        Err(Errno::WOULDBLOCK) => Err(XdpFault::Taken { pins: pins.to_owned() }),
        Err(error) => Err(pin_fault(pins, &io::Error::from(error))),
    }
}

/// Removes the maps in a folder, and it too if nothing else is in it.
fn remove_maps(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let ours = KEPT.iter().chain(&ONCE_KEPT).chain([&SESSION]);
        if ours.into_iter().any(|name| entry.file_name() == *name) {
            fs::remove_file(entry.path())?;
        }
    }
    remove_empty(folder)
}

fn remove_empty(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            tracing::warn!(folder = %folder.display(), "others have files in it; left in place");
            Ok(())
        }
        result => result,
    }
}

fn number_of(interface: &str) -> Result<u32, XdpFault> {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None);
    any.and_then(|socket| name_to_index(socket, interface))
        .map_err(|error| XdpFault::Interface { name: interface.to_owned(), why: error.to_string() })
}

/// The XDP program, which is loaded at the start.
pub(super) fn xdp(object: &mut Ebpf) -> &mut Xdp {
    let program = object.program_mut(XDP).expect("the committed object has this program");
    program.try_into().expect("it is an XDP program")
}

/// The program for tcx, loaded when it is asked for first.
pub(super) fn tcx(object: &mut Ebpf) -> Result<&mut SchedClassifier, ProgramError> {
    let program = object.program_mut(TCX).expect("the committed object has this program");
    let program: &mut SchedClassifier = program.try_into().expect("it is a classifier");
    if program.fd().is_err() {
        program.load()?;
    }
    Ok(program)
}

/// Attaches; gives the link if it is to be pinned.
fn attach(
    object: &mut Ebpf,
    interface: &str,
    mode: Mode,
    pinned: bool,
) -> Result<Option<Result<FdLink, LinkError>>, XdpFault> {
    let attached = match mode {
        Mode::Native => attach_xdp(object, interface, XdpMode::Driver, pinned),
        Mode::Generic => attach_xdp(object, interface, XdpMode::Skb, pinned),
        Mode::Tcx => attach_tcx(object, interface, pinned),
    };
    let needs = if mode == Mode::Tcx { ", which takes Linux 6.6" } else { "" };
    attached.map_err(|error| XdpFault::Program {
        what: format!("attaching to {interface} ({mode}{needs})"),
        error,
    })
}

type Attached = Result<Option<Result<FdLink, LinkError>>, ProgramError>;

fn attach_xdp(object: &mut Ebpf, interface: &str, flags: XdpMode, pinned: bool) -> Attached {
    let program = xdp(object);
    let id = program.attach(interface, flags)?;
    Ok(if pinned { Some(program.take_link(id)?.try_into()) } else { None })
}

fn attach_tcx(object: &mut Ebpf, interface: &str, pinned: bool) -> Attached {
    let program = tcx(object)?;
    // Behind those that are there already.
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, TcAttachType::Ingress, order)?;
    Ok(if pinned { Some(program.take_link(id)?.try_into()) } else { None })
}

/// Gives the link pinned at `path` this object's program, in one step.
fn take_over(object: &mut Ebpf, mode: Mode, path: &Path) -> Result<(), String> {
    let link = PinnedLink::from_pin(path).map_err(|error| error.to_string())?;
    let link = FdLink::from(link);
    // What aya has of it is dropped: the pin alone holds it.
    let taken = match mode {
        Mode::Native | Mode::Generic => {
            let link = XdpLink::try_from(link).map_err(|error| error.to_string())?;
            let program = xdp(object);
            program.attach_to_link(link).and_then(|id| program.take_link(id)).map(drop)
        }
        Mode::Tcx => {
            let link = SchedClassifierLink::try_from(link).map_err(|error| error.to_string())?;
            tcx(object).and_then(|program| {
                let id = program.attach_to_link(link)?;
                program.take_link(id).map(drop)
            })
        }
    };
    taken.map_err(|error| format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_names_that_a_bpffs_takes() {
        assert_eq!(link_name("eth0", 2, Mode::Native), "link-eth0-2-native");
        assert_eq!(link_name("eth0.100", 3, Mode::Tcx), "link-eth0%2e100-3-tcx");
        assert_ne!(link_name("a%2eb", 1, Mode::Tcx), link_name("a.b", 1, Mode::Tcx));
        assert!(is_in("link-eth0-2-generic", Mode::Generic));
        assert!(!is_in("link-eth0-2-generic", Mode::Native));
    }

    #[test]
    fn a_link_concerns_an_interface_by_name_and_by_number() {
        for other in ["link-eth0-2-native", "link-eth0-7-tcx", "link-wan0-2-tcx", "link-eth0-tcx"] {
            assert!(concerns(other, "eth0", 2), "{other}");
        }
        for other in ["link-eth0-1-3-generic", "link-eth1-3-native", "maps-2", "link-2"] {
            assert!(!concerns(other, "eth0", 2), "{other}");
        }
    }

    #[test]
    fn only_own_folders_are_taken_for_maps() {
        assert!(is_folder("maps-7") && is_folder("sessions-1"));
        for foreign in ["maps-", "maps-x", "maps", "7", "sessions-", "link-2"] {
            assert!(!is_folder(foreign), "{foreign}");
        }
    }
}
