//! What the processor counts while this thread runs, where it counts anything: virtual machines often don't.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{FromRawFd, RawFd},
};

use serde::Serialize;

/// `PERF_TYPE_HARDWARE` and `PERF_TYPE_HW_CACHE`.
const HARDWARE: u32 = 0;
const HARDWARE_CACHE: u32 = 3;
/// `PERF_COUNT_HW_…`.
const CYCLES: u64 = 0;
const INSTRUCTIONS: u64 = 1;
const CACHE_MISSES: u64 = 3;
/// Read misses (`PERF_COUNT_HW_CACHE_RESULT_MISS`) of `PERF_COUNT_HW_CACHE_DTLB`.
const DTLB_MISSES: u64 = 3 | 1 << 16;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// The first version of `struct perf_event_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    config1: u64,
}

/// Of a packet; none where the machine does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Counts {
    pub(super) cycles: Option<f64>,
    pub(super) instructions: Option<f64>,
    /// Of the last cache.
    pub(super) cache_misses: Option<f64>,
    /// Of the table of address translations.
    pub(super) dtlb_misses: Option<f64>,
}

/// Counters of the calling thread.
#[derive(Debug)]
pub(super) struct Counters {
    open: [Option<File>; 4],
}

impl Counters {
    /// Those that there are.
    pub(super) fn open() -> Counters {
        let events = [
            (HARDWARE, CYCLES),
            (HARDWARE, INSTRUCTIONS),
            (HARDWARE, CACHE_MISSES),
            (HARDWARE_CACHE, DTLB_MISSES),
        ];
        Counters { open: events.map(|(kind, config)| counter(kind, config)) }
    }

    /// What `work` took.
    pub(super) fn during<T>(&mut self, work: impl FnOnce() -> T) -> (T, Counts) {
        let before = self.read();
        let done = work();
        let after = self.read();
        let took = |n: usize| Some(after[n]?.wrapping_sub(before[n]?) as f64);
        (done, Counts { cycles: took(0), instructions: took(1), cache_misses: took(2), dtlb_misses: took(3) })
    }

    fn read(&mut self) -> [Option<u64>; 4] {
        self.open.each_mut().map(|file| value(file.as_mut()?))
    }
}

impl Counts {
    /// What is more here than in `other`, for each of so many.
    pub(super) fn beyond(self, other: Counts, packets: u32) -> Counts {
        let net = |own: Option<f64>, other: Option<f64>| {
            Some(((own? - other?) / f64::from(packets) * 100.0).round() / 100.0)
        };
        Counts {
            cycles: net(self.cycles, other.cycles),
            instructions: net(self.instructions, other.instructions),
            cache_misses: net(self.cache_misses, other.cache_misses),
            dtlb_misses: net(self.dtlb_misses, other.dtlb_misses),
        }
    }
}

/// A counter of this thread, on whichever CPU; none where there is none.
fn counter(kind: u32, config: u64) -> Option<File> {
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { kind, size, config, ..Attributes::default() };
    // SAFETY: the attributes have the size that they say, and outlive the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, 0, -1, -1, CLOSE_ON_EXEC) };
    // SAFETY: a new descriptor that nobody else owns.
    (fd >= 0).then(|| unsafe { File::from_raw_fd(fd as RawFd) })
}

fn value(file: &mut File) -> Option<u64> {
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_every_machine_has_goes_on() {
        // PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK: ns for which the thread has run.
        let mut clock = counter(1, 1).unwrap();
        let before = value(&mut clock).unwrap();
        std::hint::black_box((0..100_000_u64).fold(0, |sum, n| sum ^ n.rotate_left(5)));
        assert!(value(&mut clock).unwrap() > before);
    }

    #[test]
    fn what_is_not_counted_stays_unknown() {
        let counts = |cycles, instructions| Counts { cycles, instructions, ..Counts::default() };
        let net = counts(Some(900.0), None).beyond(counts(Some(400.0), Some(1.0)), 100);
        assert_eq!(net, counts(Some(5.0), None));
    }
}
