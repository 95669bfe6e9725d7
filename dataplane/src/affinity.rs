//! Where threads run and how they share a core.
//!
//! Pins threads to CPUs and sets their weight. Best effort beyond pinning: a container may refuse a
//! priority, and the relay works without.

use std::io;

use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

use crate::config::Cores;

/// Niceness of front threads: a tenth of the worker's weight on a busy core, all of an idle one.
const FRONT_NICE: i32 = 10;
/// Time slice of a relay worker, in nanoseconds: the shortest that the kernel grants. Whoever wakes
/// with a shorter slice than the running thread's takes the core at once (Linux 6.12 and later);
/// with equal ones a worker waits until a handshake's slice of some milliseconds is over.
const WORKER_SLICE_NS: u64 = 100_000;

/// CPUs that this process may use, in ascending order.
///
/// # Errors
/// The kernel's.
pub fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// The CPUs to run workers on.
///
/// # Errors
/// In words, what of `cores` this host cannot give.
pub fn choose(cores: &Cores, allowed: &[usize]) -> Result<Vec<usize>, String> {
    match cores {
        Cores::Auto => Ok(allowed.to_vec()),
        Cores::Count(count) if *count <= allowed.len() => Ok(allowed[..*count].to_vec()),
        Cores::Count(count) => Err(format!(
            "cores: {count} workers were asked for and this process may use {} CPUs; ask for fewer or write auto",
            allowed.len()
        )),
        Cores::List(list) => match list.iter().find(|cpu| !allowed.contains(cpu)) {
            None => Ok(list.clone()),
            Some(cpu) => Err(format!(
                "cores: CPU {cpu} is not one that this process may use ({allowed:?}); name others or write auto"
            )),
        },
    }
}

/// Binds the calling thread to `cpu`.
///
/// # Errors
/// The kernel's.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Lets the calling thread interrupt others of its core when it has something to do. Says whether the
/// kernel agreed: one before 6.12 ignores it.
#[allow(unsafe_code, reason = "neither the standard library nor rustix has this system call")]
pub fn be_prompt() -> bool {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: WORKER_SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes behind the pointer during the call and keeps nothing.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0_u32) };
    result == 0
}

/// Makes the calling thread yield to the relay worker of its core.
pub fn yield_to_workers() {
    // Refused only where raising niceness is, which no kernel does.
    let _ = setpriority_process(Some(gettid()), FRONT_NICE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_no_more_than_there_is() {
        let allowed = [2, 3, 5];
        assert_eq!(choose(&Cores::Auto, &allowed), Ok(vec![2, 3, 5]));
        assert_eq!(choose(&Cores::Count(2), &allowed), Ok(vec![2, 3]));
        assert_eq!(choose(&Cores::List(vec![5]), &allowed), Ok(vec![5]));
        assert!(choose(&Cores::Count(4), &allowed).is_err());
        assert!(choose(&Cores::List(vec![4]), &allowed).is_err_and(|why| why.contains("CPU 4")));
    }
}
