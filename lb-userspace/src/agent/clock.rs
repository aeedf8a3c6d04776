//! The clock that the packet program uses.

/// Nanoseconds of the monotonic clock, coarse: what `bpf_ktime_get_coarse_ns` says.
pub(super) fn nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec, which the call only fills in.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    debug_assert_eq!(result, 0, "every Linux has this clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The current tick.
pub(super) fn tick() -> u16 {
    lb_common::clock::tick(nanoseconds())
}
