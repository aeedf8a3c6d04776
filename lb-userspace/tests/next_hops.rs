//! Next hops against a real kernel: a gateway and a router, each in a network namespace of its own thread.
//!
//! Needs root. The namespaces exist only as long as these threads, so nothing is left behind.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lb_userspace::network::{
    LinkKind, NetworkWatcher, NextHop, NextHopError, NextHops, default_snat_addresses, list_links,
    release_neighbours,
};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::watch;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const SECOND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Gateway `eth0` 192.168.0.10/24, fd00::10/64 — router 192.168.0.1 and .2, fd00::1; pods behind the router.
/// Gateway `eth1` 192.168.1.10/24 — the router's second port, 192.168.1.1.
struct Network {
    gateway: File,
    router: File,
}

impl Network {
    fn new() -> Self {
        let network = Self { gateway: new_namespace(), router: new_namespace() };
        let router = format!("/proc/{}/fd/{}", std::process::id(), network.router.as_raw_fd());
        network.on_gateway(|| {
            run("ip link set lo up");
            for (name, peer) in [("eth0", "r0"), ("eth1", "r1")] {
                run(&format!("ip link add {name} type veth peer name {peer} netns {router}"));
            }
            run("ip link set eth0 address 02:00:00:00:00:01 up");
            run("ip link set eth1 up");
            run("ip addr add 192.168.0.10/24 dev eth0");
            run("ip addr add 192.168.1.10/24 dev eth1");
            run("ip addr add fd00::10/64 dev eth0 nodad");
        });
        network.on_router(|| {
            run("ip link set r0 address 02:00:00:00:00:0a up");
            run("ip link set r1 up");
            run("ip addr add 192.168.0.1/24 dev r0");
            run("ip addr add 192.168.0.2/24 dev r0");
            run("ip addr add 192.168.1.1/24 dev r1");
            run("ip addr add fd00::1/64 dev r0 nodad");
        });
        network.on_gateway(|| {
            run("ip route add 10.0.0.0/16 via 192.168.0.1 mtu 1400");
            run("ip route add fd10::/64 via fd00::1");
        });
        network
    }

    fn on_gateway<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        within(&self.gateway, action)
    }

    fn on_router<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        within(&self.router, action)
    }

    /// Runs an asynchronous test on the gateway.
    fn test<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        self.on_gateway(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(test());
        });
    }
}

fn new_namespace() -> File {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (these tests need root)");
        File::open("/proc/thread-self/ns/net").expect("the new namespace")
    });
    thread.join().expect("no panic")
}

fn within<T: Send>(namespace: &File, action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering a namespace of ours");
            action()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().expect("a program")).args(words).status().expect("started");
    assert!(status.success(), "{command}: {status}");
}

fn output(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("started");
    String::from_utf8(output.stdout).expect("text")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

async fn ifindex(name: &str) -> u32 {
    let links = list_links().await.expect("links");
    links.iter().find(|link| link.name == name).expect("the interface").ifindex
}

async fn wait(
    next_hops: &mut watch::Receiver<Arc<NextHops>>,
    what: &str,
    condition: impl Fn(&NextHops) -> bool,
) -> Arc<NextHops> {
    let outcome = timeout(LIMIT, next_hops.wait_for(|all| condition(all)))
        .await
        .map(|all| all.map(|all| Arc::clone(&all)));
    match outcome {
        Ok(all) => all.expect("the watcher runs"),
        Err(_) => panic!("{what}: not within {LIMIT:?}; now {:#?}", next_hops.borrow()),
    }
}

fn mac_to(all: &NextHops, address: &str) -> Option<[u8; 6]> {
    all.get(&ip(address))?.as_ref().ok().map(|next_hop| next_hop.destination_mac)
}

fn error_to(all: &NextHops, address: &str) -> Option<NextHopError> {
    all.get(&ip(address))?.as_ref().err().cloned()
}

#[test]
fn addresses_resolve_to_the_gateways_mac_and_the_attached_interface() {
    Network::new().test(|| async {
        let eth0 = ifindex("eth0").await;
        let watcher = NetworkWatcher::start(&[eth0]).await.expect("started");
        watcher.set_addresses(addresses(&["10.0.0.7", "10.0.3.9", "192.168.0.2", "fd10::5", "fd00::1"]));
        let resolved = |all: &NextHops| all.len() == 5 && all.values().all(Result::is_ok);
        let all = wait(&mut watcher.next_hops(), "all resolved", resolved).await;
        let routed = NextHop {
            destination_mac: ROUTER_MAC,
            source_mac: GATEWAY_MAC,
            ifindex: eth0,
            mtu: 1400,
            vlan: vec![],
            service_tag: false,
        };
        assert_eq!(all[&ip("10.0.0.7")], Ok(routed.clone()));
        assert_eq!(all[&ip("10.0.3.9")], Ok(routed.clone()));
        let on_link = NextHop { mtu: 1500, ..routed };
        for address in ["192.168.0.2", "fd10::5", "fd00::1"] {
            assert_eq!(all[&ip(address)], Ok(on_link.clone()), "{address}");
        }
        // Two pods behind one router share its neighbour, which the kernel keeps fresh.
        let neighbours = output("ip neigh show dev eth0");
        assert_eq!(neighbours.matches("192.168.0.1 ").count(), 1, "{neighbours}");
        assert_eq!(neighbours.matches(" managed ").count(), 3, "{neighbours}");
    });
}

#[test]
fn what_the_kernel_has_learned_of_a_path_is_not_taken_for_the_routes_mtu() {
    let network = Network::new();
    network.on_router(|| {
        run("ip link add far mtu 1300 type veth peer name farther");
        run("ip link set far up");
        run("ip link set farther up");
        run("ip addr add 10.0.255.1/16 dev far");
        run("ip addr add fd10::ff/64 dev far nodad");
        for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{forwarding}"), "1").expect("written");
        }
    });
    network.test(|| async {
        // Datagrams that fit the first link and not the second: the router says so, and the kernel remembers.
        for (own, pod) in [("192.168.0.10:0", "10.0.0.7"), ("[fd00::10]:0", "fd10::5")] {
            let socket = UdpSocket::bind(own).expect("bound");
            let learned = async {
                while !output(&format!("ip route get {pod}")).contains("mtu 1300") {
                    // The second one fails once the kernel knows.
                    let _ = socket.send_to(&[0; 1340], (ip(pod), 9));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(LIMIT, learned).await.expect("learned in time");
        }
        let watcher = NetworkWatcher::start(&[ifindex("eth0").await]).await.expect("started");
        watcher.set_addresses(addresses(&["10.0.0.7", "fd10::5"]));
        let resolved = |all: &NextHops| all.len() == 2 && all.values().all(Result::is_ok);
        let all = wait(&mut watcher.next_hops(), "all resolved", resolved).await;
        let mtu = |pod| all[&ip(pod)].as_ref().map(|hop| hop.mtu);
        assert_eq!((mtu("10.0.0.7"), mtu("fd10::5")), (Ok(1400), Ok(1500)));
    });
}

#[test]
fn ten_thousand_backends_behind_one_router_are_one_neighbour() {
    Network::new().test(|| async {
        let watcher = NetworkWatcher::start(&[ifindex("eth0").await]).await.expect("started");
        let pods: BTreeSet<_> =
            (0..10_000_u16).map(|n| IpAddr::from([10, 0, (n >> 8) as u8, n as u8])).collect();
        watcher.set_addresses(pods);
        let resolved = |all: &NextHops| all.len() == 10_000 && all.values().all(Result::is_ok);
        wait(&mut watcher.next_hops(), "all resolved", resolved).await;
        assert_eq!(output("ip -4 neigh show dev eth0").lines().count(), 1);
    });
}

#[test]
fn a_routers_changed_mac_takes_effect() {
    let network = Network::new();
    network.test(|| async {
        let watcher = NetworkWatcher::start(&[ifindex("eth0").await]).await.expect("started");
        let mut next_hops = watcher.next_hops();
        watcher.set_addresses(addresses(&["10.0.0.7"]));
        wait(&mut next_hops, "resolved", |all| mac_to(all, "10.0.0.7") == Some(ROUTER_MAC)).await;
        network.on_router(|| {
            run("ip link set r0 address 02:00:00:00:00:0b");
            // The router asks for the gateway, which thereby learns the router's new address.
            run("ip neigh flush all");
            let socket = UdpSocket::bind("192.168.0.1:0").expect("bound");
            socket.send_to(b"hello", "192.168.0.10:9").expect("sent");
        });
        wait(&mut next_hops, "followed", |all| mac_to(all, "10.0.0.7") == Some(SECOND_MAC)).await;
    });
}

#[test]
fn a_changed_route_takes_effect() {
    let network = Network::new();
    network.test(|| async {
        let watcher =
            NetworkWatcher::start(&[ifindex("eth0").await, ifindex("eth1").await]).await.expect("on");
        let eth1 = ifindex("eth1").await;
        let mut next_hops = watcher.next_hops();
        watcher.set_addresses(addresses(&["10.0.0.7", "10.0.1.7"]));
        let resolved = |all: &NextHops| all.len() == 2 && all.values().all(Result::is_ok);
        wait(&mut next_hops, "resolved", resolved).await;
        run("ip route add 10.0.1.0/24 via 192.168.1.1");
        let by_eth1 = |all: &NextHops, address| {
            all.get(&ip(address)).is_some_and(|hop| hop.as_ref().is_ok_and(|hop| hop.ifindex == eth1))
        };
        let all = wait(&mut next_hops, "the new route", |all| by_eth1(all, "10.0.1.7")).await;
        assert!(!by_eth1(&all, "10.0.0.7"));
        run("ip route del 10.0.1.0/24");
        wait(&mut next_hops, "the old route again", |all| mac_to(all, "10.0.1.7") == Some(ROUTER_MAC)).await;
        run("ip route del 10.0.0.0/16");
        let no_route = |all: &NextHops| matches!(error_to(all, "10.0.0.7"), Some(NextHopError::NoRoute(_)));
        let all = wait(&mut next_hops, "no route", no_route).await;
        let text = error_to(&all, "10.0.0.7").expect("an error").to_string();
        assert_eq!(
            text,
            "no route: the kernel answers \"network is unreachable\"; add a route to this address on the gateway"
        );
    });
}

#[test]
fn a_changed_rule_takes_effect() {
    Network::new().test(|| async {
        let watcher = NetworkWatcher::start(&[ifindex("eth0").await]).await.expect("started");
        let mut next_hops = watcher.next_hops();
        watcher.set_addresses(addresses(&["10.0.0.7"]));
        wait(&mut next_hops, "resolved", |all| mac_to(all, "10.0.0.7").is_some()).await;
        run("ip rule add to 10.0.0.0/24 unreachable");
        wait(&mut next_hops, "unreachable", |all| error_to(all, "10.0.0.7").is_some()).await;
    });
}

#[test]
fn a_neighbour_that_does_not_answer_is_an_error_until_it_does() {
    let network = Network::new();
    network.test(|| async {
        let watcher = NetworkWatcher::start(&[ifindex("eth0").await]).await.expect("started");
        let mut next_hops = watcher.next_hops();
        watcher.set_addresses(addresses(&["192.168.0.99"]));
        let failed = |all: &NextHops| {
            matches!(error_to(all, "192.168.0.99"), Some(NextHopError::Unresolved { state, .. }) if state == "failed")
        };
        let all = wait(&mut next_hops, "unresolved", failed).await;
        let text = error_to(&all, "192.168.0.99").expect("an error").to_string();
        assert!(text.contains("192.168.0.99 on eth0 does not answer"), "{text}");
        network.on_router(|| run("ip addr add 192.168.0.99/24 dev r0"));
        wait(&mut next_hops, "answers", |all| mac_to(all, "192.168.0.99") == Some(ROUTER_MAC)).await;
    });
}

#[test]
fn a_neighbour_whose_entry_somebody_deletes_is_resolved_again() {
    Network::new().test(|| async {
        let watcher = NetworkWatcher::start(&[ifindex("eth0").await]).await.expect("started");
        let mut next_hops = watcher.next_hops();
        watcher.set_addresses(addresses(&["10.0.0.7"]));
        wait(&mut next_hops, "resolved", |all| mac_to(all, "10.0.0.7").is_some()).await;
        next_hops.mark_unchanged();
        run("ip neigh del 192.168.0.1 dev eth0");
        wait(&mut next_hops, "lost", |all| mac_to(all, "10.0.0.7").is_none()).await;
        wait(&mut next_hops, "resolved again", |all| mac_to(all, "10.0.0.7").is_some()).await;
    });
}

#[test]
fn an_administrators_permanent_neighbour_is_used_and_left_alone() {
    Network::new().test(|| async {
        run("ip neigh add 192.168.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
        let watcher = NetworkWatcher::start(&[ifindex("eth0").await]).await.expect("started");
        let mut next_hops = watcher.next_hops();
        watcher.set_addresses(addresses(&["192.168.0.77"]));
        let expected = Some([2, 0, 0, 0, 0, 0x77]);
        wait(&mut next_hops, "resolved", |all| mac_to(all, "192.168.0.77") == expected).await;
        watcher.release().await.expect("released");
        assert!(output("ip neigh show 192.168.0.77").contains("PERMANENT"));
    });
}

#[test]
fn an_interface_that_is_not_attached_is_refused_by_name() {
    Network::new().test(|| async {
        let watcher = NetworkWatcher::start(&[ifindex("eth0").await]).await.expect("started");
        let mut next_hops = watcher.next_hops();
        watcher.set_addresses(addresses(&["192.168.1.1", "192.168.0.10"]));
        let all = wait(&mut next_hops, "refused", |all| all.len() == 2).await;
        let not_attached = NextHopError::NotAttached { interface: "eth1".into() };
        assert_eq!(error_to(&all, "192.168.1.1"), Some(not_attached));
        assert_eq!(error_to(&all, "192.168.0.10"), Some(NextHopError::Local));
        assert_eq!(output("ip neigh show dev eth1"), "", "no neighbour is asked for where none is used");
    });
}

#[test]
fn an_interface_that_goes_down_and_comes_back_is_followed() {
    Network::new().test(|| async {
        let watcher = NetworkWatcher::start(&[ifindex("eth0").await]).await.expect("started");
        let mut next_hops = watcher.next_hops();
        watcher.set_addresses(addresses(&["192.168.0.2"]));
        wait(&mut next_hops, "resolved", |all| mac_to(all, "192.168.0.2").is_some()).await;
        run("ip link set eth0 down");
        wait(&mut next_hops, "down", |all| error_to(all, "192.168.0.2").is_some()).await;
        run("ip link set eth0 up");
        wait(&mut next_hops, "up again", |all| mac_to(all, "192.168.0.2").is_some()).await;
    });
}

#[test]
fn neighbours_outlive_the_watcher_until_they_are_released() {
    Network::new().test(|| async {
        let eth0 = [ifindex("eth0").await];
        let watcher = NetworkWatcher::start(&eth0).await.expect("started");
        watcher.set_addresses(addresses(&["10.0.0.7", "192.168.0.2"]));
        let both = |all: &NextHops| all.len() == 2 && all.values().all(Result::is_ok);
        wait(&mut watcher.next_hops(), "resolved", both).await;
        drop(watcher);
        let managed = || output("ip neigh show dev eth0").matches(" managed ").count();
        assert_eq!(managed(), 2);
        // The next run needs one of them only and gives the other back.
        let watcher = NetworkWatcher::start(&eth0).await.expect("started");
        let mut next_hops = watcher.next_hops();
        watcher.set_addresses(addresses(&["10.0.0.7"]));
        let one = |all: &NextHops| all.len() == 1 && mac_to(all, "10.0.0.7").is_some();
        wait(&mut next_hops, "adopted", one).await;
        assert_eq!(managed(), 1);
        drop(watcher);
        release_neighbours().await.expect("released");
        assert_eq!(managed(), 0);
    });
}

#[test]
fn interfaces_and_addresses_of_the_node_are_known_and_followed() {
    Network::new().test(|| async {
        let eth0 = ifindex("eth0").await;
        let watcher = NetworkWatcher::start(&[eth0]).await.expect("started");
        let links = watcher.links().borrow().clone();
        let link = links.iter().find(|link| link.name == "eth0").expect("eth0");
        assert_eq!((link.mac, link.mtu, link.up), (Some(GATEWAY_MAC), 1500, true));
        assert_eq!((&link.kind, link.driver.as_str()), (&LinkKind::Ethernet, "veth"));
        let mut local = watcher.local_addresses();
        let chosen = default_snat_addresses(&local.borrow_and_update(), &[eth0]);
        assert_eq!(chosen, [ip("192.168.0.10"), ip("fd00::10")]);
        run("ip addr add 203.0.113.5/32 dev lo");
        let added = local.wait_for(|all| all.iter().any(|address| address.address == ip("203.0.113.5")));
        timeout(LIMIT, added).await.expect("in time").expect("the watcher runs");
    });
}
