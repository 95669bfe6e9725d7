//! The capabilities that loading programs takes, asked for and given up.

use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// What loading and attaching takes, and the one that stands for two of them.
const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
];

/// Names of the capabilities that the calling thread lacks.
///
/// # Errors
///
/// Whatever the kernel says.
pub(crate) fn missing() -> io::Result<Vec<&'static str>> {
    let have = capabilities(None)?.effective;
    let lacks = |it: &&(CapabilitySet, &str)| {
        let by_admin = it.0 != CapabilitySet::NET_ADMIN && have.contains(CapabilitySet::SYS_ADMIN);
        !have.contains(it.0) && !by_admin
    };
    Ok(NEEDED.iter().filter(lacks).map(|(_, name)| *name).collect())
}

/// Gives up, for the calling thread and those it starts, everything that loading programs takes.
///
/// # Errors
///
/// Whatever the kernel says.
pub(super) fn give_up() -> io::Result<()> {
    give_up_sets(NEEDED.iter().fold(CapabilitySet::SYS_ADMIN, |all, (one, _)| all | *one))
}

/// The same but for CAP_SYS_ADMIN, which making a ring takes where the kernel keeps io_uring from
/// everybody else (`kernel.io_uring_disabled` is 1). See [`give_up_admin`].
///
/// # Errors
///
/// Whatever the kernel says.
pub(super) fn give_up_loading() -> io::Result<()> {
    give_up_sets(NEEDED.iter().map(|(one, _)| *one).collect())
}

/// Gives up the rest, for the calling thread and those it starts. Each worker calls it once it has
/// its ring, and the start before it makes any other thread.
pub(crate) fn give_up_admin() {
    if let Err(error) = give_up_sets(CapabilitySet::SYS_ADMIN) {
        tracing::warn!(%error, "CAP_SYS_ADMIN is kept");
    }
}

fn give_up_sets(drop: CapabilitySet) -> io::Result<()> {
    let mut sets = capabilities(None)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(drop);
    }
    Ok(set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_is_given_up_is_missing() {
        // Of this thread alone.
        let tried = thread::spawn(|| {
            let before = capabilities(None).expect("an answer").permitted;
            give_up().expect("less is always allowed");
            let after = capabilities(None).expect("an answer").permitted;
            (before, after, missing().expect("an answer"))
        });
        let (before, after, missing) = tried.join().expect("it ends");
        assert_eq!(missing, ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        let gone = CapabilitySet::SYS_ADMIN | NEEDED.iter().map(|(one, _)| *one).collect();
        assert_eq!(after, before - gone, "these and no others");
    }
}
