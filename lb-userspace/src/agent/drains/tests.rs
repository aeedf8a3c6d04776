//! Drains by hand: whom they are about, what is kept of them, what is said.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::*;
use crate::agent::published::{MemberCluster, Published};
use crate::agent::sweep::Pass;
use crate::desired::{ServiceId, fixtures};
use crate::plan::MemberInfo;

const NOW: &str = "2026-11-23T03:00:00Z";

fn backend(protocol: Protocol, address: &str) -> BackendId {
    let address: SocketAddr = address.parse().unwrap();
    BackendId { protocol, address: address.ip(), port: address.port() }
}

fn endpoint(cluster: &str, backend: BackendId, pod: &str) -> Endpoint {
    let region = String::new();
    Endpoint { backend, region, pod: pod.into(), probe_port: None, ..fixtures::endpoint_in(cluster, 1) }
}

fn service(id: ServiceId, endpoints: Vec<Endpoint>) -> Service {
    Service { id, namespace: "demo".into(), ..fixtures::service(1, endpoints) }
}

/// `demo/httpbin` over TCP with a pod in each cluster and an IPv6 twin, and over UDP with one pod in hangzhou.
fn desired() -> Desired {
    let tcp = ServiceId { vip: [192, 0, 2, 1].into(), port: 80, protocol: Protocol::Tcp };
    let udp = ServiceId { port: 53, protocol: Protocol::Udp, ..tcp };
    let v6 = ServiceId { vip: "fd00:100::1".parse::<IpAddr>().unwrap(), ..tcp };
    let services = [
        service(
            tcp,
            vec![
                endpoint("hangzhou", backend(Protocol::Tcp, "10.0.1.10:8080"), "h-1"),
                endpoint("shanghai", backend(Protocol::Tcp, "10.1.1.10:8080"), "s-1"),
            ],
        ),
        service(udp, vec![endpoint("hangzhou", backend(Protocol::Udp, "10.0.1.10:8080"), "h-1")]),
        service(v6, vec![endpoint("hangzhou", backend(Protocol::Tcp, "[fd00:10::a]:8080"), "h-1")]),
    ];
    Desired {
        services: services.into_iter().map(|service| (service.id, service)).collect(),
        ..Desired::default()
    }
}

fn clusters() -> BTreeSet<&'static str> {
    BTreeSet::from(["hangzhou", "shanghai"])
}

fn found(what: &str) -> Vec<String> {
    let found = Drains::default().find(what, &desired(), &clusters()).unwrap();
    found.keys().map(Name::to_string).collect()
}

/// The drains after `kanmon drain what`.
fn drained(what: &str) -> Drains {
    let mut drains = Drains::default();
    let named = drains.find(what, &desired(), &clusters()).unwrap();
    assert!(drains.drain(&named, NOW));
    drains
}

/// The backends that take no new flows.
fn closed(drains: &Drains, mut desired: Desired) -> Vec<String> {
    drains.apply(&mut desired);
    let endpoints = desired.services.values().flat_map(|service| &service.endpoints);
    let closed = endpoints.filter(|endpoint| !endpoint.takes_new_flows());
    let closed: BTreeSet<BackendId> = closed.map(|endpoint| endpoint.backend).collect();
    closed.iter().map(BackendId::to_string).collect()
}

#[test]
fn a_backend_is_named_as_it_is_shown_with_or_without_its_protocol() {
    assert_eq!(found("hangzhou"), ["cluster hangzhou"]);
    let both = ["backend 10.0.1.10:8080/TCP", "backend 10.0.1.10:8080/UDP"];
    assert_eq!(found("10.0.1.10:8080"), both);
    assert_eq!(found("10.0.1.10:8080/TCP"), both[..1]);
    assert_eq!(found("10.0.1.10:8080/udp"), both[1..]);
    assert_eq!(found("[fd00:10::a]:8080"), ["backend [fd00:10::a]:8080/TCP"]);
    assert_eq!(
        found("[fd00:0010:0::A]:8080/tcp"),
        ["backend [fd00:10::a]:8080/TCP"],
        "however it is written"
    );
}

#[test]
fn whoever_names_what_does_not_exist_is_told_what_does() {
    for what in ["beijing", "10.0.1.10", "10.0.1.10:80", "10.0.1.10:8080/sctp", "[fd00:10::a]:8080/udp", ""] {
        let error = Drains::default().find(what, &desired(), &clusters()).unwrap_err();
        for part in [&format!("{what:?}"), "Clusters: hangzhou, shanghai.", "10.0.1.10:8080/TCP"] {
            assert!(error.contains(part), "{part} is missing: {error}");
        }
    }
    let nothing = Drains::default().find("x", &Desired::default(), &BTreeSet::new()).unwrap_err();
    assert!(nothing.ends_with("Clusters: none. Backends: none"), "{nothing}");
    let many: Vec<BackendId> =
        (1..=20).map(|last| backend(Protocol::Tcp, &format!("10.0.0.{last}:80"))).collect();
    assert!(
        unknown("x", &BTreeSet::new(), &many)
            .ends_with("10.0.0.12:80/TCP, 8 more, which `kanmon backends` lists")
    );
}

#[test]
fn a_drain_takes_new_flows_from_what_it_names_and_from_nothing_else() {
    let both = ["10.0.1.10:8080/TCP", "10.0.1.10:8080/UDP"];
    assert_eq!(closed(&drained("hangzhou"), desired()), [both[0], "[fd00:10::a]:8080/TCP", both[1]]);
    assert_eq!(closed(&drained("10.0.1.10:8080"), desired()), both);
    assert_eq!(closed(&drained("10.1.1.10:8080/tcp"), desired()), ["10.1.1.10:8080/TCP"]);
    assert_eq!(closed(&Drains::default(), desired()), [""; 0]);
}

#[test]
fn the_same_drain_twice_changes_nothing_and_undrain_takes_it_back() {
    let mut drains = drained("hangzhou");
    let named = drains.find("hangzhou", &desired(), &clusters()).unwrap();
    assert!(!drains.drain(&named, "later"));
    assert_eq!(drains.iter().next().unwrap().1.since, NOW);
    assert!(drains.undrain(&named));
    assert!(!drains.undrain(&named));
    assert!(drains.is_empty());
}

#[test]
fn another_pod_that_gets_a_drained_pods_address_is_not_drained() {
    let drains = drained("10.1.1.10:8080");
    let mut desired = desired();
    for endpoint in desired.services.values_mut().flat_map(|service| &mut service.endpoints) {
        if endpoint.pod == "s-1" {
            endpoint.pod = "s-2".into();
        }
    }
    assert_eq!(closed(&drains, desired.clone()), [""; 0]);
    // It can be drained as well.
    let mut drains = drains;
    let named = drains.find("10.1.1.10:8080", &desired, &clusters()).unwrap();
    assert!(drains.drain(&named, NOW));
    assert_eq!(closed(&drains, desired), ["10.1.1.10:8080/TCP"]);
}

#[test]
fn what_is_drained_can_be_undrained_when_it_does_not_exist_any_more() {
    for (what, name) in [("hangzhou", "cluster hangzhou"), ("10.1.1.10:8080", "backend 10.1.1.10:8080/TCP")] {
        let drains = drained(what);
        let found = drains.find(what, &Desired::default(), &BTreeSet::new()).unwrap();
        assert_eq!(found.keys().map(Name::to_string).collect::<Vec<_>>(), [name]);
    }
}

#[test]
fn drains_are_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("state");
    assert_eq!(load(&directory).unwrap(), Drains::default());
    for drains in
        [drained("hangzhou"), drained("10.0.1.10:8080"), drained("[fd00:10::a]:8080"), Drains::default()]
    {
        store::store(&directory, &drains).unwrap();
        assert_eq!(load(&directory).unwrap(), drains);
    }
}

#[test]
fn a_file_that_is_not_ours_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["", "{}", r#"{"version":2,"drained":[]}"#] {
        std::fs::write(dir.path().join("drained.json"), text).unwrap();
        let error = format!("{:#}", load(dir.path()).unwrap_err());
        assert!(error.contains("drained.json"), "{error}");
    }
}

#[test]
fn the_reason_of_a_drain_is_that_of_the_person_first() {
    let drains = drained("hangzhou");
    let mut here = endpoint("hangzhou", backend(Protocol::Tcp, "10.0.1.10:8080"), "h-1");
    let mut there = endpoint("shanghai", backend(Protocol::Tcp, "10.1.1.10:8080"), "s-1");
    let said = |endpoint: &Endpoint, state| cause(&drains, state, endpoint);
    assert_eq!(said(&there, MemberState::Active), None);
    there.ready = false;
    assert_eq!(said(&there, MemberState::Active), Some(DrainCause::NotReady));
    there.terminating = true;
    assert_eq!(said(&there, MemberState::Active), Some(DrainCause::Terminating));
    assert_eq!(said(&there, MemberState::Drain), Some(DrainCause::MemberCluster));
    here.terminating = true;
    assert_eq!(said(&here, MemberState::Drain), Some(DrainCause::ByHand));
}

/// What the loop shows once these drains are in force, with a member and three flows for each endpoint.
fn published(drains: &Drains, states: &[(&str, MemberState)]) -> (Published, Pass) {
    let mut desired = desired();
    for endpoint in desired.services.values_mut().flat_map(|service| &mut service.endpoints) {
        endpoint.terminating = states.contains(&(endpoint.cluster.as_str(), MemberState::Drain));
    }
    drains.apply(&mut desired);
    let state = |(name, state): &(&str, MemberState)| {
        ((*name).to_owned(), MemberCluster { state: *state, ..MemberCluster::default() })
    };
    let mut published = Published {
        drains: Arc::new(drains.clone()),
        clusters: states.iter().map(state).collect(),
        ..Published::default()
    };
    let mut pass = Pass::default();
    for service in desired.services.values() {
        for endpoint in &service.endpoints {
            let index = published.members.len() as u32 + 1;
            let info = MemberInfo {
                service: service.id,
                backend: endpoint.backend,
                index,
                backend_index: index,
                generation: 1,
                flags: 0,
                usable: true,
                drained_by: None,
            };
            published.members.insert((service.id, endpoint.backend), info);
            pass.usage.flows.insert(index, 3);
        }
    }
    published.desired = Arc::new(desired);
    (published, pass)
}

#[test]
fn a_service_all_of_whose_endpoints_people_drained_is_refused_and_says_what_to_do() {
    let refusals = |drains: &Drains, states: &[(&str, MemberState)]| -> Vec<(String, String)> {
        let (published, _) = published(drains, states);
        let services = published.desired.services.values();
        services.filter_map(|service| Some((service.id.to_string(), published.refusal(service)?))).collect()
    };
    let by_hand = refusals(&drained("hangzhou"), &[]);
    let services: Vec<&str> = by_hand.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(services, ["192.0.2.1:53/UDP", "[fd00:100::1]:80/TCP"], "the third has shanghai's");
    assert!(by_hand.iter().all(|(_, why)| why.contains("`kanmon undrain`")), "{by_hand:?}");
    let by_state = refusals(&Drains::default(), &[("hangzhou", MemberState::Drain)]);
    assert!(by_state.len() == 2 && by_state[0].1.contains("`state: Active`"), "{by_state:?}");
    let both = refusals(&drained("10.1.1.10:8080"), &[("hangzhou", MemberState::Drain)]);
    assert_eq!(both.len(), 3);
    assert_eq!(refusals(&Drains::default(), &[]), []);
}

#[test]
fn endpoints_that_all_end_by_themselves_are_no_persons_drain() {
    let mut service = desired().services.into_values().next().unwrap();
    for endpoint in &mut service.endpoints {
        (endpoint.ready, endpoint.terminating) = (false, true);
    }
    // A drain by hand does not make it one: undone, they would not serve either.
    for drains in [Drains::default(), drained("hangzhou")] {
        assert_eq!(refusal(&service, |endpoint| cause(&drains, MemberState::Active, endpoint)), None);
    }
}

/// A keeper whose drains are in force at once, and what it says of `kanmon drain what`, or `undrain`.
struct Bed {
    keeper: Keeper,
    drains: watch::Receiver<Arc<Drains>>,
    in_force: watch::Sender<Arc<Drains>>,
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (drains_out, drains) = watch::channel(Arc::default());
        let (in_force, forced) = watch::channel(Arc::default());
        let keeper = Keeper::new(dir.path().to_owned(), drains_out, forced);
        Self { keeper, drains, in_force, dir }
    }

    fn change(
        &self,
        what: &str,
        drain: bool,
        states: &[(&str, MemberState)],
    ) -> crate::status::view::Drained {
        let change = self.keeper.change(what, drain, &desired(), &clusters()).unwrap();
        let drains = self.drains.borrow().clone();
        self.in_force.send_replace(drains.clone());
        assert_eq!(load(self.dir.path()).unwrap(), *drains, "kept before it is answered");
        let (published, pass) = published(&drains, states);
        answer(&change, true, &published, &pass)
    }
}

#[test]
fn a_drain_is_answered_with_what_it_left() {
    let bed = Bed::new();
    let done = bed.change("hangzhou", true, &[]);
    assert_eq!(done.names, ["cluster hangzhou"]);
    assert_eq!((done.drained, done.changed, done.backends, done.flows), (true, true, 3, 9));
    assert_eq!(done.notes.len(), 2, "two services have nothing else: {:?}", done.notes);
    assert!(!bed.change("hangzhou", true, &[]).changed);
    let (published, pass) = published(&bed.drains.borrow(), &[]);
    let shown = rows(&published, &pass);
    assert_eq!(
        (shown.len(), shown[0].name.as_str(), shown[0].backends, shown[0].flows),
        (1, "hangzhou", 3, 9)
    );
}

#[test]
fn an_undrain_says_what_else_keeps_new_flows_away() {
    let bed = Bed::new();
    bed.change("hangzhou", true, &[]);
    bed.change("10.0.1.10:8080", true, &[]);
    let done = bed.change("10.0.1.10:8080", false, &[]);
    assert_eq!((done.drained, done.changed), (false, true));
    assert_eq!(done.notes, ["cluster hangzhou is drained by hand as well, and stays so"]);
    let done = bed.change("hangzhou", false, &[("hangzhou", MemberState::Drain)]);
    assert_eq!(done.notes, ["MemberCluster hangzhou says `state: Drain`, so it goes on draining"]);
    let done = bed.change("hangzhou", false, &[]);
    assert_eq!((done.changed, done.notes), (false, Vec::new()));
}

#[test]
fn what_cannot_be_kept_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way of a directory").unwrap();
    let (drains_out, drains) = watch::channel(Arc::default());
    let (_in_force, forced) = watch::channel(Arc::default());
    let keeper = Keeper::new(file, drains_out, forced);
    let error = keeper.change("hangzhou", true, &desired(), &clusters()).err().unwrap();
    assert!(error.contains("nothing changes"), "{error}");
    assert!(drains.borrow().is_empty());
}

#[tokio::test]
async fn whoever_drains_waits_until_packets_go_by_it_but_not_for_ever() {
    let bed = Arc::new(Bed::new());
    let change = |bed: &Bed| bed.keeper.change("hangzhou", true, &desired(), &clusters()).unwrap();
    let wait = |patience| {
        let bed = bed.clone();
        tokio::task::spawn_blocking(move || bed.keeper.wait(&change(&bed), patience))
    };
    assert!(!wait(Duration::from_millis(1)).await.unwrap(), "nothing applies it");
    let waiting = wait(Duration::from_secs(3600));
    bed.in_force.send_replace(bed.drains.borrow().clone());
    assert!(waiting.await.unwrap());
}
