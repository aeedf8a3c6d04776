//! The packet program is one source in two homes: this feeds the same histories of packets to the host build and
//! to the kernel, and wants the same verdicts, bytes, counters, events and tables; and to a model of the gateway
//! (`model`), which says what verdicts, bytes and counters have to be.
//!
//! `KANMON_TEST_LONG=1` runs ten times as many packets, `KANMON_PARITY_SEED=n` other ones.

mod frames;
mod history;
mod model;
mod session;
mod shrink;
mod sources;

use std::env;

use lb_common::{
    abi::Counter,
    datapath::{Verdict, forward},
    host::HostPacket,
};
use tests::{
    kernel_run::{KernelProgram, MAX_HEAD_ROOM, XDP_DROP, pin_to_cpu},
    netns::{Mac, Netns, RunDir, veth},
};

use history::{Profile, World};
use session::{Interfaces, Session, Tally, load};

/// Packets of the plain run.
const PACKETS: u64 = 200_000;
/// MTU of one of the interfaces.
const NARROW: u16 = 1300;
/// How often each verdict and each counter occurs at least.
const LEAST: u64 = 100;

/// Runs a test on one CPU, in a network namespace that has a veth pair.
fn in_namespace(test: impl FnOnce(Interfaces) + Send) {
    let run = RunDir::create().expect("a run directory (root is needed)");
    let ns = Netns::create(&run, "parity").expect("a namespace");
    let mac = |last| Mac([0x02, 0, 0, 0, 9, last]);
    let (near, far) = veth((&ns, "near", mac(1)), (&ns, "far", mac(2))).expect("a veth pair");
    near.set_mtu(NARROW.into()).expect("an MTU");
    // The loopback's is 65,536: more than the program tells apart.
    let interfaces = Interfaces { known: [1, near.index(), far.index()], mtus: [u16::MAX, NARROW, 1500] };
    ns.run(|| {
        pin_to_cpu(0).expect("CPU 0 is ours");
        test(interfaces);
    });
}

#[test]
fn the_host_and_the_kernel_agree_on_whole_histories() {
    let long = env::var("KANMON_TEST_LONG").is_ok_and(|value| value == "1");
    let packets = if long { 10 * PACKETS } else { PACKETS };
    let seed = env::var("KANMON_PARITY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    in_namespace(|interfaces| {
        let mut kernel = load();
        let mut tally = Tally::default();
        let mut number = 0_u64;
        while tally.packets < packets {
            let world = World::new(seed, number, &interfaces);
            number += 1;
            if let Err(mismatch) = history::run(&world, &mut kernel, &interfaces, &mut tally) {
                let history = shrink::shrink(&world, &mut kernel, &interfaces, mismatch);
                panic!("KANMON_PARITY_SEED={seed}, history {}: {history}", number - 1);
            }
        }
        println!("{} packets in {number} histories\n{tally}", tally.packets);
        tally.assert_each_at_least(LEAST);
    });
}

#[test]
fn a_program_without_its_callees_drops_what_needs_them_and_says_so() {
    in_namespace(|interfaces| {
        let mut kernel: KernelProgram = load();
        let world = World::of_profile(Profile::Broad, 7, &interfaces);
        let mut session = Session::start(&world, &mut kernel, &interfaces);
        session.kernel.remove_called_programs().expect("they are there");
        let mut runner = session.kernel.runner().expect("a runner");
        for number in 0..LEAST as u16 {
            let frame = frames::opening(number);
            let mut packet = HostPacket::new(&frame);
            let verdict = forward(&mut packet, &session.gateway.maps.cpu(0));
            assert!(matches!(verdict, Verdict::NewFlowV4 | Verdict::NewFlowV6), "{verdict:?}");
            let outcome = runner.run(&frame, interfaces.known[0], MAX_HEAD_ROOM).expect("a run");
            assert_eq!((outcome.action, outcome.frame), (XDP_DROP, &frame[..]));
        }
        assert_eq!(session.kernel.tables.counter(Counter::DropNotReady), LEAST);
        session.kernel.tables.counters.clear();
        session.kernel.install_called_programs().expect("they go in again");
        let frame = frames::opening(0);
        session.frame(interfaces.known[0], MAX_HEAD_ROOM, &frame).expect("both forward it now");
        assert_eq!(session.kernel.tables.counter(Counter::FlowOpened), 1);
    });
}
