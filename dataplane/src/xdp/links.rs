//! Where the programs are attached, and what stays of that when the process goes.
//!
//! Owns the choice of a hook for each interface, and the files in the pins' folder: a link for each
//! interface and mode, and below `maps-N` the maps of layout `N`, so that links are replaced in one
//! step across layouts and maps never. Files of others are left alone. The loader calls it.

use std::collections::HashMap;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
use wire::maps::LAYOUT;

use super::fault::pin_fault;
use super::{MAPS, Mode, Wanted, XdpFault};

/// The program for XDP in the committed object.
const XDP: &str = "relay";
/// The program for tcx.
const TCX: &str = "relay_tcx";
/// What the names of pinned links begin with.
const LINK: &str = "link-";
/// What the names of folders with maps begin with.
const FOLDER: &str = "maps-";

/// How long the kernel may take to detach a link whose pin is gone; it puts that off.
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// The programs' links.
#[derive(Debug)]
pub(super) struct Links {
    /// Where they and the maps are pinned.
    pins: Option<PathBuf>,
    /// Links that outlive this process, and so must outlive aya's own list.
    pinned: Vec<PinnedLink>,
    /// By the number of the interface.
    attached: HashMap<u32, Mode>,
    /// Names of the pins that belong to `attached`.
    names: Vec<String>,
}

impl Links {
    /// No links yet; the folder for maps exists now.
    pub(super) fn new(pins: Option<&Path>) -> Result<Self, XdpFault> {
        let links = Self { pins: pins.map(Path::to_owned), ..Self::left(Path::new("")) };
        if let Some(folder) = links.maps() {
            fs::create_dir_all(&folder).map_err(|error| pin_fault(&folder, &error))?;
        }
        Ok(links)
    }

    /// Those that an earlier process has pinned in this folder.
    pub(super) fn left(pins: &Path) -> Self {
        Self {
            pins: Some(pins.to_owned()),
            pinned: Vec::new(),
            attached: HashMap::new(),
            names: Vec::new(),
        }
    }

    /// The folder for maps of this layout.
    pub(super) fn maps(&self) -> Option<PathBuf> {
        self.pins.as_ref().map(|pins| pins.join(format!("{FOLDER}{LAYOUT}")))
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
        for mode in self.choices(interface, wanted) {
            match self.attach_as(object, interface, mode) {
                Ok(()) => {
                    tracing::info!(interface, %mode, "fast path attached");
                    self.attached.insert(number, mode);
                    self.names.push(link_name(interface, mode));
                    self.remove_links(|name| {
                        is_of(name, interface) && *name != link_name(interface, mode)
                    });
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
    fn choices(&self, interface: &str, wanted: Wanted) -> Vec<Mode> {
        let mut modes = match wanted {
            Wanted::Auto => vec![Mode::Native, Mode::Tcx, Mode::Generic],
            Wanted::Native => vec![Mode::Native],
            Wanted::Tcx => vec![Mode::Tcx],
            Wanted::Generic => vec![Mode::Generic],
        };
        modes.sort_by_key(|mode| !self.pin(interface, *mode).is_some_and(|pin| pin.exists()));
        modes
    }

    fn pin(&self, interface: &str, mode: Mode) -> Option<PathBuf> {
        self.pins.as_ref().map(|pins| pins.join(link_name(interface, mode)))
    }

    fn attach_as(
        &mut self,
        object: &mut Ebpf,
        interface: &str,
        mode: Mode,
    ) -> Result<(), XdpFault> {
        let pin = self.pin(interface, mode);
        if let Some(path) = pin.as_ref().filter(|path| path.exists()) {
            match take_over(object, mode, path) {
                Ok(()) => return Ok(()),
                // The interface it was for is gone, perhaps for another of the same name.
                Err(why) => tracing::warn!(interface, %mode, why, "pinned link of no use"),
            }
            fs::remove_file(path).map_err(|error| pin_fault(path, &error))?;
        }
        // The kernel does not take both kinds of XDP on one interface.
        let displaced = match mode {
            Mode::Native => self.remove_links(|name| *name == link_name(interface, Mode::Generic)),
            Mode::Generic => self.remove_links(|name| *name == link_name(interface, Mode::Native)),
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
            self.pinned.push(link.pin(&path).map_err(|error| pin_fault(&path, &error))?);
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
        for (name, path) in self.entries() {
            if layout_of(&name).is_some_and(|layout| layout != LAYOUT) {
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
            } else if layout_of(&name).is_some() {
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

/// Name of the pin of a link. A bpffs has no dots in its names, and interfaces have.
fn link_name(interface: &str, mode: Mode) -> String {
    format!("{LINK}{}-{mode}", interface.replace('%', "%25").replace('.', "%2e"))
}

/// Whether `name` is that of a link of `interface`, in whichever mode.
fn is_of(name: &str, interface: &str) -> bool {
    [Mode::Native, Mode::Tcx, Mode::Generic].iter().any(|mode| name == link_name(interface, *mode))
}

/// The layout that a folder's name stands for.
fn layout_of(name: &str) -> Option<u32> {
    name.strip_prefix(FOLDER)?.parse().ok()
}

/// Removes the maps in a folder, and it too if nothing else is in it.
fn remove_maps(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if MAPS.iter().any(|name| entry.file_name() == *name) {
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
fn tcx(object: &mut Ebpf) -> Result<&mut SchedClassifier, ProgramError> {
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
    // aya keeps the link until the program is dropped; the pin keeps it after that.
    let taken = match mode {
        Mode::Native | Mode::Generic => {
            let link = XdpLink::try_from(link).map_err(|error| error.to_string())?;
            xdp(object).attach_to_link(link).map(drop)
        }
        Mode::Tcx => {
            let link = SchedClassifierLink::try_from(link).map_err(|error| error.to_string())?;
            tcx(object).and_then(|program| program.attach_to_link(link)).map(drop)
        }
    };
    taken.map_err(|error| format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_names_that_a_bpffs_takes() {
        assert_eq!(link_name("eth0", Mode::Native), "link-eth0-native");
        assert_eq!(link_name("eth0.100", Mode::Tcx), "link-eth0%2e100-tcx");
        assert_ne!(link_name("a%2eb", Mode::Tcx), link_name("a.b", Mode::Tcx));
        assert!(is_of("link-eth0-generic", "eth0"));
        assert!(!is_of("link-eth0-1-generic", "eth0"));
    }

    #[test]
    fn only_own_folders_are_taken_for_maps() {
        assert_eq!(layout_of("maps-7"), Some(7));
        for foreign in ["maps-", "maps-x", "maps", "7"] {
            assert_eq!(layout_of(foreign), None, "{foreign}");
        }
    }
}
