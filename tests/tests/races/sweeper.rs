//! The agent's sweep beside the racing packets, and the clock, which stands still until the tables are full and
//! then runs until they are empty.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    abi::{FlowState, PORT_BITMAP_WORDS},
    clock::{TICK_NS, tick},
    datapath::{
        Tables, V4, V6,
        sweep::{self, Ended, Observer, Suspects},
    },
};
use tests::kernel_run::{KernelProgram, KernelTables, pin_to_cpu};

use super::pace::{Leaves, Pace};

/// The two backends: IPv4's and IPv6's.
const BACKENDS: [u32; 2] = [1, 2];
/// Passes over the ports lie this far apart, because one must not see a flow that the pass before saw half made.
const PORT_PASS: Duration = Duration::from_nanos(TICK_NS);

/// Of so many passes…
const CYCLE: u64 = 200;
/// … so many see another tick.
const RUNNING: u64 = 24;

/// What the sweep did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Swept {
    passes: u64,
    /// Flows that it ended.
    pub(crate) evicted: u64,
    mended: u64,
}

/// Does something on both CPUs, the sweep beside it; what both saw, and what the sweep did.
pub(crate) fn beside_the_sweep<L: Send>(
    kernel: &KernelProgram,
    work: impl Fn(usize, &Pace) -> L + Sync,
) -> ([L; 2], Swept) {
    let (pace, done) = (Pace::new(u32::MAX), AtomicBool::new(false));
    thread::scope(|scope| {
        let sweeper = scope.spawn(|| sweep_until(&kernel.tables, &done));
        let threads = [0, 1].map(|cpu| {
            let (work, pace) = (&work, &pace);
            scope.spawn(move || {
                let _leaves = Leaves(&pace.threads[cpu]);
                pin_to_cpu(cpu).expect("two CPUs");
                work(cpu, pace)
            })
        });
        let logs = threads.map(|thread| thread.join());
        done.store(true, Ordering::Release);
        let swept = sweeper.join().expect("the sweep does not panic");
        (logs.map(|log| log.expect("no thread panics")), swept)
    })
}

impl Observer for Swept {
    fn flow(&mut self, _state: FlowState, _member: u32) {}

    fn evicted(&mut self, _ended: &Ended) {
        self.evicted += 1;
    }

    fn last_hop(&mut self, _index: u16) {}

    fn mended(&mut self) {
        self.mended += 1;
    }

    fn is_unwanted(&self, _member: u32) -> bool {
        false
    }
}

impl fmt::Display for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passes of the sweep: {} evicted, {} mended", self.passes, self.evicted, self.mended)
    }
}

/// Sweeps all tables again and again until `done`.
fn sweep_until(tables: &KernelTables, done: &AtomicBool) -> Swept {
    let config = *<&KernelTables as Tables>::config(&tables).expect("settings");
    let mut swept = Swept::default();
    let mut suspects: [Suspects; 2] = [[0; PORT_BITMAP_WORDS]; 2];
    let mut ports_at = Instant::now();
    let mut now = 1_u64 << 40;
    while !done.load(Ordering::Acquire) {
        if swept.passes % CYCLE < RUNNING {
            now += TICK_NS;
            tables.set_clock(now);
        }
        for bucket in 0..tables.flows.len() {
            sweep::flow_bucket(&tables, &config, bucket, tick(now), &mut swept);
        }
        for bucket in 0..tables.reverse_v4.len() {
            sweep::reverse_bucket::<V4, _>(&tables, &config, bucket, &mut swept);
        }
        for bucket in 0..tables.reverse_v6.len() {
            sweep::reverse_bucket::<V6, _>(&tables, &config, bucket, &mut swept);
        }
        if ports_at.elapsed() >= PORT_PASS {
            let [v4, v6] = &mut suspects;
            sweep::ports::<V4, _>(&tables, &config, BACKENDS[0], 0, v4, &mut swept);
            sweep::ports::<V6, _>(&tables, &config, BACKENDS[1], 0, v6, &mut swept);
            ports_at = Instant::now();
        }
        swept.passes += 1;
    }
    swept
}
