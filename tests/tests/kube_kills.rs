//! The agent is killed at any moment, again and again, while Services and endpoints come and go. Afterwards the maps
//! hold what the clusters have, no more and no less, and a Service that was left alone never noticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{
    agent::Agent,
    scene::{Endpoint, MEMBERS, Maps, SOON, Scene, Socket, Traffic, service, slice},
    topology::{Dual, HTTP_PORT, POD_PORT},
};

/// How often the agent is killed.
const KILLS: usize = 20;
/// How long it may live, at most, before it is: from the middle of its start to the middle of its work.
const LIFE: Duration = Duration::from_secs(4);
/// Services that come and go.
const SERVICES: u8 = 6;
/// The port of the first round's endpoints where nobody listens.
const FIRST_PORT: u16 = 21_000;
/// Flows that are over are forgotten soon, and with them their ports.
const ARGUMENTS: [&str; 8] = [
    "--flows=65536",
    "--flows-v6=32768",
    "--services=256",
    "--backends=512",
    "--members=1024",
    "--tcp-closed=1s",
    "--tcp-reset=1s",
    "--tcp-half-open=2s",
];

/// Numbers that anybody can have again who knows the first.
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        let seed = RandomState::new().hash_one(0);
        println!("seed {seed:#x}");
        Dice(seed)
    }

    /// Below `end`.
    fn roll(&mut self, end: u64) -> u64 {
        // splitmix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

fn vip(number: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(192, 168, 100, 30 + number),
        v6: Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0x30 + u16::from(number)),
    }
}

fn name(number: u8) -> String {
    format!("fleeting-{number}")
}

/// Objects of one member, others in each round: some Services, with endpoints at the app's pods and at ports where
/// nobody listens and that are never used again; where `all_ready` does not hold, some that are not ready. Then the
/// Services that there are not.
fn objects(
    scene: &Scene,
    member: &str,
    dice: &mut Dice,
    round: u16,
    all_ready: bool,
) -> (String, Vec<String>) {
    let pods = scene.pods_of(member);
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for number in 0..SERVICES {
        if dice.roll(4) == 0 {
            gone.push(name(number));
            continue;
        }
        kept.push(service(&name(number), vip(number)));
        for family in 0..2 {
            let mut endpoints = Vec::new();
            for pod in &pods {
                let address = pod.addresses[family];
                match dice.roll(5) {
                    0 => {}
                    1 if !all_ready => endpoints.push(Endpoint::not_ready(address)),
                    _ => endpoints.push(Endpoint::ready(address)),
                }
            }
            let port = if dice.roll(3) == 0 { FIRST_PORT + round } else { POD_PORT };
            let mut yaml = slice(&format!("{}-{family}", name(number)), &name(number), port, &endpoints);
            if endpoints.is_empty() && family == 1 {
                // The type of a slice never changes, empty or not.
                yaml = yaml.replace("addressType: IPv4", "addressType: IPv6");
            }
            kept.push(yaml);
        }
    }
    (kept.join("---\n"), gone)
}

fn change(scene: &Scene, member: &str, dice: &mut Dice, round: u16, all_ready: bool) -> Result<()> {
    let cluster = scene.kube(member)?;
    let (kept, gone) = objects(scene, member, dice, round, all_ready);
    if !gone.is_empty() {
        let services: Vec<String> = gone.iter().map(|name| format!("service/{name}")).collect();
        let slices = gone.iter().flat_map(|name| [0, 1].map(|n| format!("endpointslice/{name}-{n}")));
        let all: Vec<String> = services.into_iter().chain(slices).collect();
        let fixed = ["-n", "demo", "delete", "--ignore-not-found", "--wait=false"];
        let arguments: Vec<&str> = fixed.into_iter().chain(all.iter().map(String::as_str)).collect();
        cluster.kubectl(&arguments, "")?;
    }
    if !kept.is_empty() {
        cluster.apply(&kept)?;
    }
    Ok(())
}

/// What both members have together: the backends of each service, by VIP and port.
type Truth = BTreeMap<Socket, BTreeSet<Socket>>;

/// What the clusters say, asked by kubectl.
fn truth(scene: &Scene) -> Result<Truth> {
    let mut vips: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    let mut backends: BTreeMap<String, BTreeSet<Socket>> = BTreeMap::new();
    for member in MEMBERS {
        let list = ["-n", "demo", "get", "services,endpointslices", "-o", "json"];
        let list: Value = serde_json::from_str(&scene.kube(member)?.kubectl(&list, "")?)?;
        for object in list["items"].as_array().context("a list has items")? {
            let metadata = &object["metadata"];
            if object["kind"] == "Service" {
                let name = metadata["name"].as_str().unwrap_or_default().to_owned();
                let addresses = metadata["annotations"]["kanmon.dev/addresses"].as_str();
                let addresses = addresses.with_context(|| format!("{name} has no VIPs"))?;
                vips.insert(name, addresses.split(',').map(str::parse).collect::<Result<_, _>>()?);
            } else {
                let name = metadata["labels"]["kubernetes.io/service-name"].as_str().unwrap_or_default();
                backends.entry(name.to_owned()).or_default().extend(sockets(object)?);
            }
        }
    }
    let mut truth = Truth::new();
    for (name, vips) in vips {
        for vip in vips {
            let all = backends.get(&name).into_iter().flatten().copied();
            truth.insert((vip, HTTP_PORT), all.filter(|(ip, _)| ip.is_ipv4() == vip.is_ipv4()).collect());
        }
    }
    Ok(truth)
}

/// The endpoints of a slice.
fn sockets(slice: &Value) -> Result<Vec<Socket>> {
    let ports = slice["ports"].as_array().into_iter().flatten();
    let port = ports.filter(|port| port["name"] == "http").find_map(|port| port["port"].as_u64());
    let Some(port) = port else { return Ok(Vec::new()) };
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints
        .flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten())
        .map(|address| {
            let address = address.as_str().context("an address is text")?;
            Ok((address.parse()?, u16::try_from(port)?))
        })
        .collect()
}

/// What the agent shows: the backends of each service, without those that only finish their flows.
fn shown(agent: &Agent) -> Result<Truth> {
    let mut shown = Truth::new();
    for row in agent.services()? {
        let vip = row["vip"].as_str().context("a service has a VIP")?.parse()?;
        shown.insert((vip, HTTP_PORT), BTreeSet::new());
    }
    for row in agent.backends()? {
        shown.entry((row.vip, HTTP_PORT)).or_default().insert((row.address, row.port));
    }
    Ok(shown)
}

/// Compares the maps with the truth, but for ports, which flows have.
fn compare(maps: &Maps, truth: &Truth) -> Result<()> {
    let services: BTreeSet<Socket> = truth.keys().copied().collect();
    let backends: BTreeSet<Socket> = truth.values().flatten().copied().collect();
    let members: usize = truth.values().map(BTreeSet::len).sum();
    ensure!(maps.services == services, "services: {:?}, not {services:?}", maps.services);
    ensure!(maps.vips == services.iter().map(|(vip, _)| *vip).collect(), "VIPs: {:?}", maps.vips);
    ensure!(maps.backends == backends, "backends: {:?}, not {backends:?}", maps.backends);
    let elements = (maps.descriptors, maps.backend_elements, maps.members);
    let wanted = (services.len(), backends.len(), members);
    ensure!(elements == wanted, "descriptors, backends, members in use: {elements:?}, not {wanted:?}");
    for (service, named) in &maps.rings {
        let known = truth.get(service).with_context(|| format!("nobody has {service:?}"))?;
        ensure!(named.is_subset(known), "{service:?} has {named:?} in its rings, and {known:?} are there");
    }
    Ok(())
}

#[test]
fn after_twenty_kills_among_changes_the_maps_equal_the_clusters_and_nothing_has_leaked() {
    let scene = Scene::set().unwrap();
    let stage = scene.stage();
    let pins = stage.bed().bpffs();
    let mut agent = stage.start_agent(&stage.gateway(), &ARGUMENTS).unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
    let traffic = Traffic::begin(&scene).unwrap();

    let done = AtomicBool::new(false);
    let mut agent = thread::scope(|scope| {
        let changers: Vec<_> = MEMBERS
            .into_iter()
            .map(|member| {
                let (mut dice, scene, done) = (Dice::new(), &scene, &done);
                scope.spawn(move || {
                    let mut round = 0;
                    while !done.load(Ordering::Relaxed) {
                        change(scene, member, &mut dice, round, false).unwrap();
                        round += 1;
                    }
                    // One that is not ready has an entry only if it once was: none of these is left to compare.
                    change(scene, member, &mut dice, round, true).unwrap();
                    round
                })
            })
            .collect();
        let mut dice = Dice::new();
        for _ in 0..KILLS {
            thread::sleep(Duration::from_millis(dice.roll(LIFE.as_millis() as u64)));
            agent.kill().unwrap();
            let command = stage.agent_command(&stage.gateway(), &ARGUMENTS).unwrap();
            agent = Agent::start(stage.run(), "kanmon", command, stage.gateway().socket().clone()).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        let changes: Vec<u16> = changers.into_iter().map(|changer| changer.join().unwrap()).collect();
        println!("{KILLS} kills among {changes:?} rounds of changes");
        assert!(changes.iter().all(|rounds| *rounds > 3), "{changes:?}");
        agent
    });

    let truth = truth(&scene).unwrap();
    agent
        .wait_until("showing what the clusters have", SOON, |agent| {
            let shown = shown(agent)?;
            ensure!(shown == truth, "it shows {shown:?}, not {truth:?}");
            Ok(agent.status()?["ready"] == true)
        })
        .unwrap();
    traffic.goes_on().unwrap();
    let name = "after_twenty_kills_among_changes_the_maps_equal_the_clusters_and_nothing_has_leaked";
    traffic.end_unharmed(name).unwrap();

    // With the last flow the last port is given back, and what was removed is cleared.
    agent
        .wait_until("done with what is over", SOON, |agent| {
            let flows = agent.flows()?;
            ensure!(flows.is_empty(), "flows: {flows:?}");
            let maps = Maps::read(&pins)?;
            compare(&maps, &truth)?;
            ensure!(maps.ports == 0, "{} ports are taken, and there are no flows", maps.ports);
            Ok(true)
        })
        .unwrap();

    // A fresh agent on fresh maps makes the same of the same clusters.
    let mut before = Maps::read(&pins).unwrap();
    agent.terminate().unwrap();
    assert!(stage.bed().cleanup().unwrap().status.success());
    let mut agent = stage.start_agent(&stage.gateway(), &ARGUMENTS).unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
    before.ports = 0;
    agent
        .wait_until("where the old one was", SOON, |_| {
            let now = Maps::read(&pins)?;
            ensure!(now == before, "fresh maps hold {now:?}; those before held {before:?}");
            Ok(true)
        })
        .unwrap();
}
