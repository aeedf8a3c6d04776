//! Clients that stay with their backend, and open connections on both CPUs at once.

use std::{net::SocketAddr, thread};

use tests::kernel_run::pin_to_cpu;

use super::{
    bed::{Bed, Steps, backend, client, insist, syn},
    gateway::Family,
    pace::{Leaves, Pace},
};

const BACKENDS: u8 = 8;
const ROUNDS: u32 = 20;
/// Clients of a round, half of them of each family.
const CLIENTS: u32 = 1000;
/// In ticks of about 268 ms: three hours.
const STAY: u32 = 40_234;
/// Connections that each thread opens for each client: at first, while rings change, and when a backend has gone.
const CONNECTIONS: u16 = 3;
/// The backend that goes.
const GONE: u8 = 2;

/// Where a client's connections of both threads went, in the order in which they were opened.
type Homes = Vec<[SocketAddr; CONNECTIONS as usize]>;

#[test]
fn a_client_that_opens_connections_on_both_cpus_has_one_backend_through_every_change() {
    let mut bed = Bed::load(BACKENDS, |gateway, service| gateway.set_stay(service, STAY));
    let families = [Family::V4, Family::V6];
    let rings = families.map(|family| {
        let members = bed.members(family);
        let backwards: Vec<u32> = members.iter().rev().copied().collect();
        let few: Vec<u32> = members.iter().step_by(3).copied().collect();
        [&members, &backwards, &few].map(|members| bed.ring(members))
    });
    let pace = Pace::new(0);
    let homes: [Homes; 2] = thread::scope(|scope| {
        let _leaves = Leaves(&pace.limit);
        let threads = [0, 1].map(|cpu| {
            let (pace, runner) = (&pace, bed.kernel.runner());
            scope.spawn(move || {
                let _leaves = Leaves(&pace.threads[cpu]);
                pin_to_cpu(cpu).expect("two CPUs");
                let (mut runner, mut steps) = (runner.expect("a runner"), Steps::new(pace, cpu));
                let mut homes = Homes::new();
                for round in 0..ROUNDS {
                    let first = homes.len();
                    for connection in 0..CONNECTIONS {
                        for n in 0..CLIENTS {
                            steps.meet();
                            let from = client(round * CLIENTS + n, 40_000 + 2 * connection + cpu as u16);
                            let home = insist(&mut runner, &syn(from)).backend;
                            if connection == 0 {
                                homes.push([home; CONNECTIONS as usize]);
                            }
                            homes[first + n as usize][usize::from(connection)] = home;
                        }
                    }
                }
                steps.done();
                homes
            })
        });
        for round in 0..ROUNDS {
            let step = |connections| (round * u32::from(CONNECTIONS) + connections) * CLIENTS;
            pace.run_to(step(1));
            let mut changes = 0;
            pace.run_to_beside(step(2), || {
                changes += 1;
                families
                    .iter()
                    .zip(&rings)
                    .for_each(|(family, rings)| bed.set_ring(*family, rings[changes % 3]));
            });
            assert!(changes > 1, "round {round}: the rings hardly ever changed");
            families.iter().zip(&rings).for_each(|(family, rings)| bed.set_ring(*family, rings[0]));
            families.iter().for_each(|family| bed.set_usable(*family, GONE, false));
            pace.run_to(step(3));
            families.iter().for_each(|family| bed.set_usable(*family, GONE, true));
            bed.check_and_forget(&format!("round {round}"));
        }
        threads.map(|thread| thread.join().expect("no thread panics"))
    });
    let mut moved = 0;
    for (n, (one, other)) in (0..).zip(homes[0].iter().zip(&homes[1])) {
        let told = || format!("client {n}: {one:?}, {other:?}");
        assert_eq!(one, other, "two backends at once: {}", told());
        let [first, second, third] = *one;
        assert_eq!(first, second, "it did not stay: {}", told());
        if first == backend(Family::of(n), GONE) {
            moved += 1;
            assert_ne!(third, first, "{}", told());
        } else {
            assert_eq!(third, first, "it left without need: {}", told());
        }
    }
    assert!(moved > ROUNDS * CLIENTS / 20, "hardly anybody was with the backend that went");
}
