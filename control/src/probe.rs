//! Probing: whether a relay node or a satellite answers, by every way that its users take, and how
//! long that takes.
//!
//! Owns one visit of one target. It keeps nothing between visits and judges nobody: what a failure
//! means is for its callers, the prober of `serve` and the commands `netcheck` and `ping`. Every wait
//! has a limit, and whatever a target sends ends a visit at worst.

pub mod derp;
pub mod latency;
pub mod link;
pub mod node;
pub mod place;
pub mod satellite;
pub mod stun;
pub mod trust;

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::fault::words;

pub use derp::Identity;
pub use trust::Trust;

/// How often each question is asked in a visit. The shortest time counts: it is that of the way,
/// the others are those of whoever was busy at either end.
const ROUNDS: u32 = 3;

/// An address family, as DERP maps tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why a target did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not to be reached, or answers something else; in words.
    #[error("{0}")]
    Failed(String),
    /// This host has no way to addresses of that family, which says nothing about the target.
    #[error("this host has no {0}")]
    NoFamily(Family),
    /// It speaks DERP and turned us away: a relay that admits only clients it knows.
    #[error("turned us away: it admits only clients it knows")]
    NotAdmitted,
}

impl Fault {
    fn failed(why: impl fmt::Display) -> Self {
        Self::Failed(why.to_string())
    }

    fn io(error: &io::Error) -> Self {
        Self::Failed(words(error))
    }
}
