//! Whether the loop of every relay core still turns.
//!
//! Owns what was last seen of each worker's rounds. An idle worker sleeps as long as it may, so each
//! look rings its bell, and the worker owes a round until the next one. Touches no session. The
//! process's census looks once a second, for `/livez`.

use super::Fabric;
use crate::io::Socket;

/// Looks without a round in between after which a core counts as stalled.
const LOOKS_MAX: u32 = 10;

/// See the module.
#[derive(Debug, Default)]
pub struct Pulse(Vec<Seen>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    rounds: u64,
    /// Looks since `rounds` moved.
    looks: u32,
}

impl Pulse {
    /// Looks at every core of `fabric`; gives those that have stalled.
    pub fn look<S: Socket>(&mut self, fabric: &Fabric<S>) -> Vec<usize> {
        self.0.resize(fabric.cores(), Seen::default());
        for (core, seen) in self.0.iter_mut().enumerate() {
            let rounds = fabric.counters(core).rounds.value();
            let looks = if rounds == seen.rounds { seen.looks.saturating_add(1) } else { 0 };
            *seen = Seen { rounds, looks };
            fabric.mailbox(core).nudge();
        }
        let stalled = |(core, seen): (usize, &Seen)| (seen.looks >= LOOKS_MAX).then_some(core);
        self.0.iter().enumerate().filter_map(stalled).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::io::Wake;
    use crate::observe::CoreCounters;
    use crate::relay::Tuning;

    fn fabric() -> Arc<Fabric<Arc<TcpStream>>> {
        Fabric::new(Tuning::default(), &[Arc::new(CoreCounters::default()), Arc::default()])
    }

    #[test]
    fn a_core_that_makes_no_round_has_stalled_until_it_does() {
        let (fabric, mut pulse) = (fabric(), Pulse::default());
        for _ in 1..LOOKS_MAX {
            assert!(pulse.look(&fabric).is_empty());
            fabric.counters(0).rounds.increment();
        }
        assert_eq!(pulse.look(&fabric), [1]);
        fabric.counters(1).rounds.increment();
        assert!(pulse.look(&fabric).is_empty());
    }

    #[derive(Default)]
    struct Bell(AtomicU32);

    impl Wake for Bell {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_look_wakes_who_sleeps_and_nobody_else() {
        let (fabric, mut pulse, bell) = (fabric(), Pulse::default(), Arc::new(Bell::default()));
        let mailbox = fabric.mailbox(0);
        mailbox.hang_bell(Arc::clone(&bell) as Arc<dyn Wake>);
        for _ in 0..3 {
            assert!(mailbox.may_sleep());
            pulse.look(&fabric);
            pulse.look(&fabric);
        }
        assert_eq!(bell.0.load(Ordering::Relaxed), 3);
    }
}
