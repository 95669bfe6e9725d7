//! What the kernel knows and sets for us: pinning, CPU time and memory of a process, descriptors, sockets.
//!
//! All figures about servers come from here, from the kernel's own accounting, never from the server.
//! Must never measure time by itself. The load generator, the limit programs and the runner call it.

use anyhow::{Context as _, Result};
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::SockRef;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::{Child, Command};

/// Congestion control of every load socket: pacing timers of others would distort the figures.
const CONGESTION: &[u8] = b"cubic";

/// Pins the calling thread, and what it starts from now on, to `cores`.
pub(crate) fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    sched_setaffinity(None, &set).with_context(|| format!("pinning to cores {cores:?}"))
}

/// Starts `command` from a thread pinned to `cores`, so that every thread it ever has is held there.
pub(crate) fn spawn_on(cores: &[usize], command: &mut Command) -> Result<Child> {
    std::thread::scope(|scope| {
        let spawner = scope.spawn(|| {
            pin(cores)?;
            command.spawn().context("starting the server")
        });
        spawner.join().ok().context("the starting thread panicked")?
    })
}

/// Lifts the soft limit of open files to the hard one, for us and for what we start.
pub(crate) fn lift_descriptor_limit() -> Result<u64> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })
        .context("lifting the file limit")?;
    Ok(hard.unwrap_or(u64::MAX))
}

/// CPU time of all threads of process `pid` so far, in nanoseconds: user, system and the soft
/// interrupts that ran on its account.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("server is gone")? {
        let schedstat = task?.path().join("schedstat");
        let Ok(text) = fs::read_to_string(&schedstat) else { continue };
        total += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

/// CPU time of the kernel's own thread for the soft interrupts of `core` so far, in nanoseconds: those
/// that ran on no process's account.
pub(crate) fn soft_interrupts_ns(core: usize) -> Result<u64> {
    thread_local!(static THREADS: RefCell<HashMap<usize, u32>> = RefCell::default());
    let pid = THREADS.with_borrow_mut(|threads| {
        threads
            .entry(core)
            .or_insert_with(|| kernel_thread(&format!("ksoftirqd/{core}")))
            .to_owned()
    });
    // A container does not see the kernel's threads.
    if pid == 0 { Ok(0) } else { cpu_ns(pid) }
}

/// The number of the process called `name`, or 0.
fn kernel_thread(name: &str) -> u32 {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let called = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    };
    numbers.find(called).unwrap_or_default()
}

/// Resident memory of process `pid` in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("server is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is not a number")?;
    Ok(kib << 10)
}

/// Sets what every load and limit socket has: no delay, and cubic where the kernel has it.
pub(crate) fn tune(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    // Absent in some kernels; the report's facts then say which algorithm was in force.
    let _ = SockRef::from(stream).set_tcp_congestion(CONGESTION);
    Ok(())
}

/// Gives a UDP socket kernel buffers of `len` bytes, beyond the system's limit where we may.
pub(crate) fn enlarge_buffers(socket: impl AsFd, len: usize) -> Result<()> {
    if sockopt::set_socket_recv_buffer_size_force(&socket, len).is_err() {
        SockRef::from(&socket).set_recv_buffer_size(len)?;
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, len).is_err() {
        SockRef::from(&socket).set_send_buffer_size(len)?;
    }
    Ok(())
}

/// The congestion control that sockets nobody tunes get.
pub(crate) fn default_congestion() -> String {
    fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The processor's name.
pub(crate) fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|line| line.starts_with("model name"));
    model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned()
}

/// The kernel's release.
pub(crate) fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
