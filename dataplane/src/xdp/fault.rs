//! Why the fast path is not there, or not as asked.
//!
//! Owns the errors of the loader and what an operator reads of them. The start of the dataplane
//! tells by it whether a capability is missing.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aya::EbpfError;
use aya::maps::xdp::XdpMapError;
use aya::programs::ProgramError;

/// A refusal of the kernel, or of the operator's choices.
#[derive(Debug, thiserror::Error)]
pub enum XdpFault {
    /// The kernel does not take the object: most often a missing capability.
    #[error(
        "the kernel takes no XDP programs from this process: {0}; \
         give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or say --xdp off"
    )]
    Load(#[from] EbpfError),
    /// The verifier does not take the program, or the interface does not.
    #[error("{what}: {}", Refusal(error))]
    Program {
        /// What was tried.
        what: String,
        /// What the kernel said.
        error: ProgramError,
    },
    /// A map is full or not the committed object's.
    #[error("map {name}: {}", Chain(error))]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        error: XdpMapError,
    },
    /// There is no such interface in this network namespace.
    #[error("there is no network interface {name}: {why}")]
    Interface {
        /// The name asked for.
        name: String,
        /// What the kernel said.
        why: String,
    },
    /// Another process has the folder for pins, and all that is in it.
    #[error("{}: another process has its pins there; stop it, or name another folder", pins.display())]
    Taken {
        /// The folder.
        pins: PathBuf,
    },
    /// A pin could not be read, written or removed.
    #[error("{}: {why}; pins take a bpffs that this process may write to", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        why: String,
    },
}

impl XdpFault {
    /// Whether the kernel refused for want of a capability, as opposed to want of a feature, an
    /// interface or memory. What the file system refuses of the pins is not meant.
    #[must_use]
    pub fn is_privilege(&self) -> bool {
        match self {
            Self::Load(error) => is_refused(error),
            Self::Program { error, .. } => is_refused(error),
            Self::Map { error, .. } => is_refused(error),
            Self::Interface { .. } | Self::Taken { .. } | Self::Pin { .. } => false,
        }
    }
}

/// Whether the kernel said EPERM, or EACCES, which is what the verifier says of programs that take
/// CAP_PERFMON.
fn is_refused(error: &(dyn Error + 'static)) -> bool {
    let denied = |it: &io::Error| it.kind() == io::ErrorKind::PermissionDenied;
    error.downcast_ref().is_some_and(denied) || error.source().is_some_and(is_refused)
}

/// What the kernel says of a program, without the thousands of lines in which the verifier gives its
/// reasons: the last ones are the verdict.
struct Refusal<'a>(&'a ProgramError);

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProgramError::LoadError { io_error, verifier_log } = self.0 else {
            return Chain(self.0).fmt(f);
        };
        write!(f, "{io_error}")?;
        let log = verifier_log.to_string();
        let told = |line: &&str| !line.is_empty() && !line.starts_with("processed ");
        match log.lines().map(str::trim).rfind(told) {
            Some(verdict) => write!(f, "; the verifier says: {verdict}"),
            None => Ok(()),
        }
    }
}

/// An error with all that it is about: the kernel's own word is often the last.
struct Chain<'a, E>(&'a E);

impl<E: Error> fmt::Display for Chain<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let more = error.to_string();
            // Some errors say already what those behind them say.
            if !said.contains(&more) {
                write!(f, ": {more}")?;
            }
            said = more;
            next = error.source();
        }
        Ok(())
    }
}

pub(super) fn map_fault(name: &'static str, error: impl Into<XdpMapError>) -> XdpFault {
    XdpFault::Map { name, error: error.into() }
}

pub(super) fn pin_fault(path: &Path, why: &dyn fmt::Display) -> XdpFault {
    XdpFault::Pin { path: path.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::maps::MapError;
    use aya::sys::SyscallError;

    fn refused(errno: i32) -> XdpFault {
        let io_error = io::Error::from_raw_os_error(errno);
        map_fault("FLOW", MapError::CreateError { name: "FLOW".to_owned(), io_error })
    }

    #[test]
    fn a_missing_capability_is_told_apart() {
        assert!(refused(libc::EPERM).is_privilege());
        assert!(!refused(libc::ENOMEM).is_privilege());
        let error = EbpfError::MapError(MapError::CreateError {
            name: "FLOW".to_owned(),
            io_error: io::Error::from_raw_os_error(libc::EPERM),
        });
        assert!(XdpFault::from(error).is_privilege());
        let io_error = io::Error::from_raw_os_error(libc::EACCES);
        let error = ProgramError::SyscallError(SyscallError { call: "bpf_prog_load", io_error });
        assert!(XdpFault::Program { what: "loading".to_owned(), error }.is_privilege());
        assert!(!pin_fault(Path::new("/nowhere"), &"denied").is_privilege());
    }

    #[test]
    fn the_kernels_word_is_told_once() {
        let said = refused(libc::ENOMEM).to_string();
        assert_eq!(said.matches("Cannot allocate memory").count(), 1, "{said}");
    }
}
