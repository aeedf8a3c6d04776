//! A next hop that changes.

use std::time::{Duration, Instant};

use tests::{
    client::{SteadyLoad, Tally, row},
    netns::{Link, Mac},
    scenario::Scenario,
    topology::POD_PORT,
    wire::Wire,
};

use super::{ANSWER, SOON, gateway};

/// How long after the change requests may fail: the announcement has to be heard and the maps written.
const WINDOW: Duration = Duration::from_secs(2);

#[test]
fn a_router_that_changes_its_hardware_address_under_load_gets_the_frames_there_without_a_restart() {
    let (bed, agent) = gateway(2);
    let router = Link::find(bed.cen(), "gateway0").unwrap();
    let load = SteadyLoad { timeout: ANSWER, ..SteadyLoad::new(bed.vip_http(), 200) };
    let load = bed.client().load(load).unwrap();
    let begun = Instant::now();
    assert!(load.wait_for(begun + SOON, |all| row(all, begun, 100, |_| true)).is_some());
    let pid = agent.status().unwrap()["pid"].clone();

    let new = Mac([2, 0x4b, 0x77, 0, 0, 1]);
    let old = bed.change_router_mac(new).unwrap();
    assert_ne!(old, new);
    let changed = Instant::now();
    let after = load.wait_for(changed + SOON, |all| row(all, changed + WINDOW, 300, |_| true));
    assert!(after.is_some(), "traffic goes on: {:?}", load.settled().iter().collect::<Tally>());
    // The program writes the new address into what goes on to pods and into what goes back to clients.
    let wire = Wire::open(&router).unwrap();
    let mut seen = [false; 2];
    while seen != [true; 2] {
        let (frame, packet) = wire.receive(None, None, ANSWER).unwrap();
        seen[usize::from(packet.source == bed.vip_http())] |=
            packet.destination.port() == POD_PORT || packet.source == bed.vip_http();
        assert_eq!((frame.destination, packet.intact), (new, true), "{packet:?}");
    }
    let outcomes = load.stop().outcomes;
    let late: Tally = outcomes.iter().filter(|outcome| outcome.started >= changed + WINDOW).collect();
    assert_eq!(late.failed, 0, "after the first {WINDOW:?}: {late:?}");
    let all: Tally = outcomes.iter().collect();
    Scenario::of(
        "a_router_that_changes_its_hardware_address_under_load_gets_the_frames_there_without_a_restart",
        &all,
    )
    .report();
    assert_eq!(agent.status().unwrap()["pid"], pid);
}
