//! Both CPUs at once in the kernel's packet program: the tables' protocol where it really runs.
//!
//! Four million racing inserts in total: no flow twice, forward and reverse always in pairs, each taken port
//! with exactly one owner, and no reply to anybody but the owner of its port. In files of their own: a SYN that its
//! backend refuses or leaves unanswered (`rescue.rs`), backends to which connections fail (`trips.rs`), clients that stay
//! with their backend (`affinity.rs`), and ICMP errors (`errors.rs`).

mod races {
    mod affinity;
    mod errors;
    mod rescue;
    mod trips;

    pub(crate) mod bed;
    pub(crate) mod gateway;
    pub(crate) mod ledger;
    pub(crate) mod owners;
    pub(crate) mod pace;
    pub(crate) mod sweeper;
}

use std::{thread, time::Instant};

use lb_common::{abi::Counter, host::Sizes};
use tests::kernel_run::{KernelProgram, KernelTables, pin_to_cpu};

use races::{
    gateway::{Family, Frames, load},
    ledger,
    owners::{Delivery, Observation, check_deliveries},
    pace::{Leaves, Pace, run},
    sweeper::beside_the_sweep,
};

/// Inserts of each thread in each test; there are two of both.
const INSERTS: u32 = 1_000_000;
/// Flows of a round, after which the tables are looked at.
const ROUND: u32 = 2048;

const ROOMY: Sizes = Sizes {
    flow_buckets: 4096,
    reverse_v4_buckets: 4096,
    reverse_v6_buckets: 4096,
    services: 4,
    ring_pairs: 512,
    members: 4,
    backends: 4,
    snat_stride: 1,
    flow_stats: 4096,
    cpus: 64,
};

#[test]
fn two_cpus_that_insert_the_same_flows_make_each_of_them_once() {
    let kernel = load(&ROOMY, 256);
    let rounds = INSERTS.div_ceil(ROUND);
    let pace = Pace::new(0);
    thread::scope(|scope| {
        let _leaves = Leaves(&pace.limit);
        for cpu in 0..2 {
            let (kernel, pace) = (&kernel, &pace);
            scope.spawn(move || {
                let _leaves = Leaves(&pace.threads[cpu]);
                pin_to_cpu(cpu).expect("two CPUs");
                let (mut runner, mut frames) = (kernel.runner().expect("a runner"), Frames::new());
                for client in 0..rounds * ROUND {
                    pace.meet(cpu, client);
                    run(&mut runner, frames.request(Family::of(client), client));
                }
            });
        }
        for round in 0..rounds {
            pace.run_to((round + 1) * ROUND);
            let flows =
                ledger::check(&kernel.tables).unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert!(flows > ROUND as usize / 2, "round {round}: {flows} flows");
            if round + 1 < rounds {
                forget_flows(&kernel.tables);
            }
        }
    });
    let opened = kernel.tables.counter(Counter::FlowOpened);
    let contended = kernel.tables.counter(Counter::DropInsertContended);
    println!("{} inserts, {opened} flows made, {contended} contended", 2 * rounds * ROUND);
    assert!(opened >= u64::from(INSERTS) * 9 / 10, "{opened} flows of {INSERTS}");
}

fn forget_flows(tables: &KernelTables) {
    for table in [&tables.flows, &tables.reverse_v4, &tables.reverse_v6, &tables.ports] {
        table.clear();
    }
}

/// Small enough to be full all the time.
const SMALL: Sizes = Sizes { flow_buckets: 256, reverse_v4_buckets: 256, reverse_v6_buckets: 256, ..ROOMY };

#[test]
fn no_reply_reaches_a_stranger_while_flows_are_made_evicted_and_swept() {
    let kernel = load(&SMALL, 8);
    let epoch = Instant::now();
    let (logs, swept) = beside_the_sweep(&kernel, |cpu, pace| ask_and_answer(&kernel, cpu, pace, epoch));
    println!("{swept}");
    let flows = ledger::check(&kernel.tables).expect("the tables agree");
    let [(mut observations, mut deliveries), (more_observations, more_deliveries)] = logs;
    observations.extend(more_observations);
    deliveries.extend(more_deliveries);
    println!(
        "{} requests and {} replies forwarded, {flows} flows left; made {}, displaced {}, reclaimed {}, ports \
         reclaimed {}, table full {}",
        observations.len(),
        deliveries.len(),
        kernel.tables.counter(Counter::FlowOpened),
        kernel.tables.counter(Counter::FlowDisplaced),
        kernel.tables.counter(Counter::FlowReclaimed),
        kernel.tables.counter(Counter::PortReclaimed),
        kernel.tables.counter(Counter::DropTableFull),
    );
    for counter in
        [Counter::FlowDisplaced, Counter::FlowReclaimed, Counter::PortReclaimed, Counter::DropTableFull]
    {
        assert!(kernel.tables.counter(counter) > 100, "{} hardly ever", counter.name());
    }
    assert!(observations.len() > INSERTS as usize / 2, "most flows are made");
    assert!(deliveries.len() > INSERTS as usize / 10, "many replies are delivered");
    check_deliveries(observations, &deliveries).expect("each reply went to the owner of its port");
}

/// Requests of ever new clients, both threads the same ones, and replies to ports that were seen lately.
fn ask_and_answer(
    kernel: &KernelProgram,
    cpu: usize,
    pace: &Pace,
    epoch: Instant,
) -> (Vec<Observation>, Vec<Delivery>) {
    let (mut runner, mut frames) = (kernel.runner().expect("a runner"), Frames::new());
    let mut observations = Vec::with_capacity(INSERTS as usize);
    let mut deliveries = Vec::with_capacity(INSERTS as usize);
    let mut recent = [None; 64];
    let now = || epoch.elapsed().as_nanos() as u64;
    for client in 0..INSERTS {
        let family = Family::of(client);
        pace.meet(cpu, client);
        let start = now();
        if let Some(frame) = run(&mut runner, frames.request(family, client)) {
            let port = family.snat_port(frame);
            assert!(family.is_to_backend(frame), "client {client}: a backend of another service");
            observations.push(Observation { family, port, client, start, end: now() });
            recent[(client % 64) as usize] = Some((family, port, client));
        }
        // The two threads answer different flows: one the newest, the other older ones.
        let back = if cpu == 0 { 0 } else { client.wrapping_mul(29) % 64 };
        if let Some((family, port, asker)) = recent[((client + 64 - back) % 64) as usize] {
            let start = now();
            if let Some(frame) = run(&mut runner, frames.reply(family, port)) {
                deliveries.push(Delivery { family, port, client: family.client(frame), start, end: now() });
                // Heard again, a client is proven, and its flow keeps its place.
                let start = now();
                if let Some(frame) = run(&mut runner, frames.request(family, asker)) {
                    let port = family.snat_port(frame);
                    observations.push(Observation { family, port, client: asker, start, end: now() });
                }
            }
        }
    }
    (observations, deliveries)
}
