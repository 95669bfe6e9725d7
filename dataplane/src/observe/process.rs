//! What the kernel knows about this process.

use std::fs;

/// Resident memory in bytes, or 0 where the kernel does not tell.
pub(super) fn resident_bytes() -> u64 {
    // Second field: resident pages (proc_pid_statm(5)).
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Open file descriptors, or 0 where the kernel does not tell.
pub(super) fn open_descriptors() -> u64 {
    // The listing itself holds one.
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1) as u64)
}

/// CPU time used so far, user and system, in seconds.
pub(super) fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
