//! Which driver this host allows, and why.
//!
//! Asks the kernel for a ring with every feature the uring driver relies on, instead of guessing
//! from a version number: containers and sysctls refuse rings on kernels that have them.

use std::fmt;
use std::io;

use super::uring;

/// What the operator asked for with `--io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// io_uring where it works, else epoll.
    Auto,
    /// io_uring or no start.
    Uring,
    /// epoll.
    Epoll,
}

/// The driver to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// See [`super::uring`].
    Uring,
    /// See [`super::epoll`].
    Epoll,
}

/// The choice and the one line that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The driver to run.
    pub driver: Chosen,
    /// Why, for the log.
    pub why: String,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

/// Chooses the driver.
///
/// # Errors
/// The kernel's refusal, in words, where [`Wanted::Uring`] was asked for and cannot be had.
pub fn choose(wanted: Wanted) -> Result<Choice, String> {
    choose_by(wanted, uring::probe)
}

fn choose_by(wanted: Wanted, probe: impl FnOnce() -> io::Result<()>) -> Result<Choice, String> {
    let choice = |driver, why: &str| Ok(Choice { driver, why: why.to_owned() });
    match wanted {
        Wanted::Epoll => choice(Chosen::Epoll, "asked for"),
        Wanted::Auto => match probe() {
            Ok(()) => choice(Chosen::Uring, "the kernel has every io_uring feature needed"),
            Err(refusal) => choice(Chosen::Epoll, &explain(&refusal)),
        },
        Wanted::Uring => match probe() {
            Ok(()) => choice(Chosen::Uring, "asked for"),
            Err(refusal) => Err(explain(&refusal)),
        },
    }
}

fn explain(refusal: &io::Error) -> String {
    let why = match refusal.raw_os_error() {
        Some(libc::EPERM) => "forbidden by a container profile or kernel.io_uring_disabled",
        Some(libc::ENOSYS) => "the kernel was built without it",
        Some(libc::EINVAL) => "the kernel is older than 6.1 and lacks a feature",
        Some(libc::ENOMEM) => "locked memory is limited too low (ulimit -l)",
        Some(_) | None => "the kernel refused a ring",
    };
    format!("io_uring is not to be had: {why} ({refusal})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }

    #[test]
    fn auto_falls_back_and_says_why() {
        let choice = choose_by(Wanted::Auto, refused).expect("auto never fails");
        assert_eq!(choice.driver, Chosen::Epoll);
        assert!(choice.why.contains("container profile"), "{}", choice.why);
        let choice = choose_by(Wanted::Auto, || Ok(())).expect("auto never fails");
        assert_eq!(choice.driver, Chosen::Uring);
    }

    #[test]
    fn uring_is_not_silently_replaced() {
        assert!(
            choose_by(Wanted::Uring, refused)
                .is_err_and(|why| why.contains("EPERM") || why.contains("not permitted"))
        );
        assert_eq!(choose_by(Wanted::Epoll, refused).map(|c| c.driver), Ok(Chosen::Epoll));
    }
}
