//! Sessions on their way to a successor: in a map that outlives the process, by names that do, too.

use std::time::Duration;

use proto::wireguard::{FlowKey, Index, Place, Session};
use rustix::time::{ClockId, clock_gettime};
use wire::key::Key;
use wire::maps::{Kept, Leg};

use crate::udp::Shared;

/// Now, on the one clock that two processes share and that goes on while the host sleeps, as the
/// peers' timers do.
pub(super) fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

/// `session` as it is kept; `None` if it came to an address of ours that has no name.
pub(super) fn keep(session: &Session, shared: &Shared, now: Duration) -> Option<Kept> {
    let leg = |key: &FlowKey| {
        let local = shared.address(key.from.port()).filter(|it| !it.ip().is_unspecified())?;
        Some(Leg { local, remote: key.from.remote(), receiver: key.receiver.0 })
    };
    let [initiator, responder] = session.peers.map(|key| key.0);
    Some(Kept {
        initiator,
        responder,
        forth: leg(&session.forth)?,
        back: leg(&session.back)?,
        deadline_ns: u64::try_from((now + session.left).as_nanos()).unwrap_or(u64::MAX),
    })
}

/// The session that was `kept`; `None` if it is over, or came to an address that no socket has now.
pub(super) fn resume(kept: &Kept, shared: &Shared, now: Duration) -> Option<Session> {
    let left = Duration::from_nanos(kept.deadline_ns).checked_sub(now)?;
    let key = |leg: &Leg| {
        let from = Place::new(shared.port(leg.local)?, leg.remote);
        Some(FlowKey { from, receiver: Index(leg.receiver) })
    };
    Some(Session {
        peers: [kept.initiator, kept.responder].map(Key),
        forth: key(&kept.forth)?,
        back: key(&kept.back)?,
        left,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{BuildInfo, Registry};
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    fn shared(bound: &str) -> Arc<Shared> {
        let registry = Registry::new(1, BuildInfo::new("sim"), UNIX_EPOCH);
        Shared::new(&[bound.parse().expect("an address")], registry.links, None)
    }

    fn session(shared: &Shared) -> Session {
        let place = |local: &str, remote: &str| {
            let port = shared.port(local.parse().expect("an address")).expect("it is served");
            Place::new(port, remote.parse().expect("an address"))
        };
        let key = |from, receiver| FlowKey { from, receiver: Index(receiver) };
        Session {
            peers: [[1; 32], [2; 32]].map(Key),
            forth: key(place("192.0.2.1:3478", "198.51.100.7:5"), 7),
            back: key(place("192.0.2.2:3478", "198.51.100.8:6"), 8),
            left: Duration::from_secs(9),
        }
    }

    #[test]
    fn a_successor_with_other_numbers_gets_the_same_session() {
        let theirs = shared("[::]:3478");
        let before = session(&theirs);
        let kept =
            keep(&before, &theirs, Duration::from_secs(100)).expect("both addresses are known");
        let ours = shared("[::]:3478");
        // Numbers are given out as addresses are seen, here in another order.
        let _ = ours.port("192.0.2.2:3478".parse().expect("an address"));
        let after = resume(&kept, &ours, Duration::from_secs(103)).expect("6 s are left");
        assert_eq!(after.left, Duration::from_secs(6));
        assert_eq!(keep(&after, &ours, Duration::from_secs(103)), Some(kept));
        assert_ne!(after.forth.from.port(), before.forth.from.port());
    }

    #[test]
    fn what_is_over_or_has_no_socket_is_left_behind() {
        let theirs = shared("[::]:3478");
        let kept = keep(&session(&theirs), &theirs, Duration::ZERO).expect("both are known");
        assert_eq!(resume(&kept, &theirs, Duration::from_secs(10)), None);
        assert_eq!(resume(&kept, &shared("[::]:3479"), Duration::ZERO), None);
    }
}
