//! A backend to which connections fail on both CPUs at once.

use std::{net::SocketAddr, thread};

use lb_common::abi::{Counter, ReactionWord};
use tests::kernel_run::{Runner, pin_to_cpu};

use super::{
    bed::{Bed, Path, Steps, backend, client, insist, refusal, send, syn},
    gateway::Family,
    pace::{Leaves, Pace},
};

const ROUNDS: u32 = 200;
/// Errors in a row that trip a backend. Each thread has so many to tell.
const ERRORS: u16 = 16;
const TRIP_MS: u32 = 10_000;
/// New flows of each thread that are looked at while the backend is tripped.
const NEW: u32 = 40;
/// Clients among whom there are enough that go to one of three backends.
const CLIENTS: u32 = 400;
const PORT: u16 = 40_000;

/// A family's backend that refuses.
fn bad(family: Family) -> SocketAddr {
    backend(family, 1)
}

/// The clients of a round's family that a thread has for itself.
fn clients(round: u32, cpu: usize) -> impl Iterator<Item = SocketAddr> {
    let first = (round * 2 + cpu as u32) * 2 * CLIENTS;
    (0..CLIENTS).map(move |n| client(first + 2 * n + round % 2, PORT))
}

#[test]
fn errors_on_both_cpus_trip_a_backend_once_and_it_comes_back_by_itself() {
    let bed = Bed::load(3, |gateway, service| {
        gateway.set_reaction(service, ReactionWord::new(ERRORS, TRIP_MS, false));
        let members: Vec<u32> = (service * 3 + 1..service * 3 + 4).collect();
        gateway.set_fallback(service, &members);
    });
    let begin = bed.gateway.maps.clock();
    let pace = Pace::new(0);
    thread::scope(|scope| {
        let _leaves = Leaves(&pace.limit);
        for cpu in 0..2 {
            let (bed, pace) = (&bed, &pace);
            scope.spawn(move || {
                let _leaves = Leaves(&pace.threads[cpu]);
                pin_to_cpu(cpu).expect("two CPUs");
                let mut runner = bed.kernel.runner().expect("a runner");
                let mut steps = Steps::new(pace, cpu);
                (0..ROUNDS).for_each(|round| fail(&mut runner, &mut steps, round, cpu));
                steps.done();
            });
        }
        for round in 0..ROUNDS {
            pace.run_to((round + 1) * 3);
            let trips = bed.kernel.tables.counter(Counter::BackendTripped);
            assert_eq!(trips, u64::from(round) + 1, "round {round}");
            bed.check_and_forget(&format!("round {round}"));
            // The next round's family is the other one: this one's trip is over when it comes again.
            bed.kernel.tables.set_clock(begin + u64::from(round + 1) * u64::from(TRIP_MS) * 1_000_000);
        }
    });
}

/// Three steps: flows to the backend, their refusals, and new flows.
fn fail(runner: &mut Runner, steps: &mut Steps<'_>, round: u32, cpu: usize) {
    let family = Family::of(round);
    let mut clients = clients(round, cpu);
    steps.meet();
    let paths = clients.by_ref().map(|client| insist(runner, &syn(client)));
    let flows: Vec<Path> =
        paths.filter(|path| path.backend == bad(family)).take(usize::from(ERRORS)).collect();
    assert_eq!(flows.len(), usize::from(ERRORS), "round {round}: hardly any flow goes to the backend");
    steps.meet();
    for path in flows {
        let told = send(runner, &refusal(path));
        assert!(told.is_some(), "round {round}: a client does not hear that it is refused");
    }
    steps.meet();
    for client in clients.take(NEW as usize) {
        let path = insist(runner, &syn(client));
        assert_ne!(path.backend, bad(family), "round {round}: {client} goes to a tripped backend");
    }
}
