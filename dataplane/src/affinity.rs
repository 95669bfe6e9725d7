//! Where threads run and how they share a core.
//!
//! Pins threads to CPUs and sets their weight. Best effort beyond pinning: a container may refuse a
//! priority, and the relay works without.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

use crate::config::Cores;

/// Niceness of front threads above the process's: a tenth of the worker's weight on a busy core, all
/// of an idle one.
const FRONT_NICE: i32 = 10;
/// The highest niceness there is.
const NICE_MAX: i32 = 19;
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

/// Lets the calling thread interrupt others of its core when it has something to do; policy and weight
/// stay as the operator gave them. Says whether the slice is in force: a kernel before 6.12 ignores it,
/// and a real-time policy needs none.
pub fn be_prompt() -> bool {
    let Some(mut attributes) = scheduling() else { return false };
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return false;
    }
    attributes.sched_runtime = WORKER_SLICE_NS;
    set_scheduling(&attributes)
        && scheduling().is_some_and(|now| now.sched_runtime == WORKER_SLICE_NS)
}

/// How the kernel schedules the calling thread.
#[allow(unsafe_code, reason = "neither the standard library nor rustix has this system call")]
fn scheduling() -> Option<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the kernel writes at most `size` bytes behind the pointer during the call.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0_u32) };
    (result == 0).then_some(attributes)
}

#[allow(unsafe_code, reason = "neither the standard library nor rustix has this system call")]
fn set_scheduling(attributes: &libc::sched_attr) -> bool {
    // SAFETY: the kernel reads `size` bytes, which `scheduling` filled in, behind the pointer during
    // the call.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0_u32) };
    result == 0
}

/// Makes the calling thread yield to the relay worker of its core.
pub fn yield_to_workers() {
    let now = getpriority_process(Some(gettid())).unwrap_or_default();
    // Refused only where raising niceness is, which no kernel does.
    let _ = setpriority_process(Some(gettid()), (now + FRONT_NICE).min(NICE_MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_keeps_its_weight_and_says_what_the_kernel_granted() {
        let thread = std::thread::spawn(|| {
            let look = || scheduling().expect("a thread may look at itself");
            let before = look();
            let prompt = be_prompt();
            let after = look();
            assert_eq!(before.sched_policy, after.sched_policy);
            assert_eq!(before.sched_nice, after.sched_nice);
            assert_eq!(prompt, after.sched_runtime == WORKER_SLICE_NS);
            yield_to_workers();
            assert_eq!(look().sched_nice, (before.sched_nice + FRONT_NICE).min(NICE_MAX));
        });
        thread.join().expect("the thread does not panic");
    }

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
