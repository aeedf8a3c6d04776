//! Stories S0 and S4 on real clusters, with real packets: what is deployed, registered, scaled, updated and
//! removed as a user would do it is what answers, and nothing that drains properly fails.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tests::{
    agent::Agent,
    client::{Outcome, Report, Running, SteadyLoad, Tally, TcpLoad, row},
    scenario::{Scenario, eventually},
    stage::{App, AppPod, Gateway, KubeStage, SOON, StageOptions, wait_until_exactly},
    topology::{Dual, HTTP_PORT, VIP},
};

/// Connections started each second while something changes.
const RATE: u32 = 100;

/// How long the Secret of a member may be gone before the member is: short, so that tests see both sides.
const GRACE_PERIOD: Duration = Duration::from_secs(4);

fn httpbin(replicas: u8) -> App {
    App::new("httpbin", replicas).at(VIP)
}

/// The registered stage with `httpbin` in both clusters, and an agent that uses all its pods.
fn merged(replicas: u8) -> (KubeStage, Agent, Vec<AppPod>) {
    let stage = KubeStage::start(StageOptions::default()).unwrap();
    let mut agent = stage.start_agent(&stage.gateway(), &[]).unwrap();
    let app = httpbin(replicas);
    stage.deploy("hangzhou", &app).unwrap();
    stage.deploy("shanghai", &app).unwrap();
    let count = usize::from(replicas);
    let pods = stage.wait_until_used(&mut agent, &app, &[("hangzhou", count), ("shanghai", count)]).unwrap();
    (stage, agent, pods)
}

fn http(vip: Dual) -> [SocketAddr; 2] {
    vip.both().map(|ip| (ip, HTTP_PORT).into())
}

fn connect(stage: &KubeStage, target: SocketAddr, connections: usize) -> Tally {
    stage.bed().client().tcp(TcpLoad::new(target, connections)).unwrap().tally()
}

/// A load that has been going well for a second.
fn load(stage: &KubeStage, target: SocketAddr) -> Running {
    let load = stage.bed().client().load(SteadyLoad::new(target, RATE)).unwrap();
    let well =
        load.wait_for(Instant::now() + SOON, |all| row(all, all.first()?.started, RATE as usize, |_| true));
    assert!(well.is_some(), "connections fail before anything changes: {:?}", load.stop().tally());
    load
}

/// Ends a load of which nothing may have failed.
fn assert_none_failed(name: &str, load: Running) -> Report {
    let report = load.stop();
    let tally = report.tally();
    Scenario::of(name, &tally).report();
    assert_eq!(tally.failed, 0, "{tally:?}");
    report
}

fn clusters(tally: &Tally) -> BTreeSet<&str> {
    tally.by_cluster.keys().map(String::as_str).collect()
}

fn answered_by(outcome: &Outcome, cluster: &str) -> bool {
    outcome.result.as_ref().is_ok_and(|answer| answer.cluster == cluster)
}

fn names<'a>(pods: impl IntoIterator<Item = &'a AppPod>) -> BTreeSet<&'a str> {
    pods.into_iter().map(|pod| pod.name.as_str()).collect()
}

#[test]
fn s0_the_same_service_in_two_clusters_is_one_and_spreads_evenly_over_the_pods_of_both() {
    let (stage, agent, pods) = merged(3);
    for target in http(VIP) {
        let tally = connect(&stage, target, 1000);
        Scenario::of(
            "s0_the_same_service_in_two_clusters_is_one_and_spreads_evenly_over_the_pods_of_both",
            &tally,
        )
        .report();
        assert_eq!(tally.failed, 0, "{tally:?}");
        for cluster in ["hangzhou", "shanghai"] {
            let share = tally.cluster_share(cluster);
            assert!((0.44..=0.56).contains(&share), "{target}: {cluster} answered {share}: {tally:?}");
        }
        let served: BTreeSet<&str> = tally.by_pod.keys().map(String::as_str).collect();
        assert_eq!(served, names(&pods), "{target}");
    }
    let hosts: BTreeSet<IpAddr> = agent
        .flows()
        .unwrap()
        .iter()
        .map(|flow| flow.upstream_host.parse::<SocketAddr>().unwrap().ip())
        .collect();
    let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
    assert_eq!(hosts, addresses, "`kanmon flows` shows the pods of both clusters as upstream_host");
    let region = &agent.status().unwrap()["region"];
    assert_eq!(region, "cn-hangzhou", "the gateway's place is its Node's");
}

#[test]
fn s0_a_service_deleted_in_one_cluster_is_answered_by_the_other_and_nothing_fails() {
    let (stage, mut agent, pods) = merged(3);
    let [target, _] = http(VIP);
    let load = load(&stage, target);
    stage
        .type_in("kubectl --context hangzhou -n demo delete service/httpbin deployment/httpbin --wait=false")
        .unwrap();
    let left: Vec<AppPod> = pods.into_iter().filter(|pod| pod.cluster == "shanghai").collect();
    wait_until_exactly(&mut agent, &httpbin(3), &left).unwrap();
    let gone = Instant::now();
    let all_in_shanghai =
        load.wait_for(gone + SOON, |all| row(all, gone, 500, |answer| answer.cluster == "shanghai"));
    stage.wait_until_ended("hangzhou", &httpbin(3)).unwrap();
    let report = assert_none_failed(
        "s0_a_service_deleted_in_one_cluster_is_answered_by_the_other_and_nothing_fails",
        load,
    );
    // The maps follow what the agent shows by a moment.
    let moved = all_in_shanghai.expect("500 in a row that shanghai answered").began;
    let later: Vec<&Outcome> = report.outcomes.iter().filter(|outcome| outcome.started >= moved).collect();
    assert_eq!(clusters(&later.into_iter().collect()), ["shanghai"].into(), "every later request");
}

#[test]
fn s0_scaling_up_and_down_under_load_loses_nothing() {
    let (stage, mut agent, _) = merged(2);
    let app = httpbin(2);
    let [target, _] = http(VIP);
    let load = load(&stage, target);
    for (cluster, hangzhou, shanghai) in
        [("hangzhou", 5, 2), ("shanghai", 5, 0), ("hangzhou", 1, 0), ("shanghai", 1, 3)]
    {
        let replicas = if cluster == "hangzhou" { hangzhou } else { shanghai };
        stage
            .type_in(&format!(
                "kubectl --context {cluster} -n demo scale deployment/httpbin --replicas={replicas}"
            ))
            .unwrap();
        let pods = stage
            .wait_until_used(&mut agent, &app, &[("hangzhou", hangzhou), ("shanghai", shanghai)])
            .unwrap();
        let now = Instant::now();
        let wanted = names(&pods);
        let all = load
            .wait_for(now + SOON, |all| row(all, now, 100, |answer| wanted.contains(answer.pod.as_str())));
        assert!(all.is_some(), "new connections reach {wanted:?} and nobody else");
    }
    stage.wait_until_ended("hangzhou", &app).unwrap();
    assert_none_failed("s0_scaling_up_and_down_under_load_loses_nothing", load);
}

#[test]
fn s0_a_rolling_update_under_load_loses_nothing() {
    let (stage, mut agent, before) = merged(3);
    let [target, _] = http(VIP);
    let load = load(&stage, target);
    stage
        .type_in(
            "kubectl --context shanghai -n demo set env deployment/httpbin STEP=2 && \
             kubectl --context shanghai -n demo rollout status deployment/httpbin --timeout=120s",
        )
        .unwrap();
    let after = stage.wait_until_used(&mut agent, &httpbin(3), &[("hangzhou", 3), ("shanghai", 3)]).unwrap();
    stage.wait_until_ended("shanghai", &httpbin(3)).unwrap();
    assert_none_failed("s0_a_rolling_update_under_load_loses_nothing", load);
    let kept: Vec<&AppPod> = after.iter().filter(|pod| before.contains(pod)).collect();
    assert!(
        kept.iter().all(|pod| pod.cluster == "hangzhou") && kept.len() == 3,
        "shanghai's are new: {kept:?}"
    );
    let tally = connect(&stage, target, 300);
    assert_eq!(tally.by_pod.keys().map(String::as_str).collect::<BTreeSet<_>>(), names(&after));
}

/// Story S4's two clusters: each has a gateway whose agent takes it for its own, and `helloworld` in another
/// version. Nobody knows the other cluster yet.
struct Pair {
    agents: [Agent; 2],
    gateways: [Gateway; 2],
    apps: [App; 2],
    stage: KubeStage,
}

const PAIR: [&str; 2] = ["hangzhou", "shanghai"];

impl Pair {
    fn start(more: &[&'static str]) -> Pair {
        let clusters = [&PAIR, more].concat();
        let stage =
            KubeStage::start(StageOptions { clusters, register: false, ..StageOptions::default() }).unwrap();
        let gateways = PAIR.map(|cluster| stage.gateway_of(cluster).unwrap());
        let versions = [("v1", &gateways[0]), ("v2", &gateways[1])];
        let apps = versions.map(|(version, gateway)| hello(version).at(gateway.vip()));
        for (cluster, app) in PAIR.into_iter().zip(&apps) {
            stage.deploy(cluster, app).unwrap();
            stage.type_in(&local(cluster)).unwrap();
        }
        let grace = format!("--secret-grace-period={}s", GRACE_PERIOD.as_secs());
        let agents = [0, 1].map(|n| stage.start_agent(&gateways[n], &[&grace]).unwrap());
        let mut pair = Pair { agents, gateways, apps, stage };
        for (n, cluster) in PAIR.into_iter().enumerate() {
            pair.wait_until_used(n, &[(cluster, 2)]);
        }
        pair
    }

    /// Applies to each cluster the other one's Secret.
    fn introduce(&self) {
        // One way as istioctl prints it, the other as Kanmon does.
        let shanghai = self.stage.istioctl("shanghai", "first").unwrap();
        self.stage.workstation().write("shanghai-secret.yaml", &shanghai).unwrap();
        self.stage
            .type_in(
                "kubectl --context hangzhou create namespace istio-system && \
                 kubectl --context hangzhou apply -f shanghai-secret.yaml",
            )
            .unwrap();
        self.stage
            .type_in(
                "kanmon remote-secret create --istio --context hangzhou --name hangzhou | \
                 kubectl --context shanghai apply -f -",
            )
            .unwrap();
    }

    fn wait_until_used(&mut self, agent: usize, clusters: &[(&str, usize)]) -> Vec<AppPod> {
        let app = self.apps[agent].clone();
        self.stage.wait_until_used(&mut self.agents[agent], &app, clusters).unwrap()
    }

    /// Who answers at the VIP of the gateway of cluster `n`: nothing may fail.
    fn answers(&self, n: usize) -> Tally {
        let [target, _] = http(self.gateways[n].vip());
        let tally = connect(&self.stage, target, 200);
        assert_eq!(tally.failed, 0, "{tally:?}");
        tally
    }
}

fn hello(version: &'static str) -> App {
    App::new("helloworld", 2).version(version)
}

/// Makes a cluster a member of its own gateway's.
fn local(cluster: &str) -> String {
    format!(
        "kubectl --context {cluster} apply -f - <<'END'
apiVersion: kanmon.dev/v1alpha1
kind: MemberCluster
metadata: {{name: {cluster}}}
spec:
  region: cn-{cluster}
  source: {{local: {{}}}}
END"
    )
}

#[test]
fn s4_remote_secrets_both_ways_make_both_versions_answer_at_both_gateways() {
    let mut pair = Pair::start(&[]);
    for (n, cluster) in PAIR.into_iter().enumerate() {
        assert_eq!(clusters(&pair.answers(n)), [cluster].into(), "nobody knows the other cluster yet");
    }
    pair.introduce();
    for n in 0..PAIR.len() {
        pair.wait_until_used(n, &[("hangzhou", 2), ("shanghai", 2)]);
        let tally = pair.answers(n);
        assert_eq!(clusters(&tally), PAIR.into(), "{tally:?}");
        for version in ["v1", "v2"] {
            let of_version = format!("helloworld-{version}-");
            assert!(tally.by_pod.keys().any(|pod| pod.starts_with(&of_version)), "{version}: {tally:?}");
        }
    }
}

#[test]
fn s4_without_its_secret_a_cluster_answers_until_the_grace_period_is_over() {
    let mut pair = Pair::start(&[]);
    pair.introduce();
    pair.wait_until_used(0, &[("hangzhou", 2), ("shanghai", 2)]);
    let [target, _] = http(pair.gateways[0].vip());
    let load = load(&pair.stage, target);
    // Replaced within the grace period, as operators do it: nothing drains.
    pair.stage
        .type_in("kubectl --context hangzhou replace --force --grace-period=0 -f shanghai-secret.yaml")
        .unwrap();
    let replaced = Instant::now();
    let outcomes = load
        .wait_for(replaced + SOON, |all| {
            let later = all.iter().filter(|outcome| outcome.started > replaced + GRACE_PERIOD).count();
            (later > RATE as usize).then(|| all.to_vec())
        })
        .expect("the load goes on");
    assert!(
        outcomes.windows(60).all(|window| window.iter().any(|outcome| answered_by(outcome, "shanghai"))),
        "a Secret that is replaced drains nothing, at no time"
    );
    let deleted = Instant::now();
    pair.stage
        .type_in("kubectl --context hangzhou -n istio-system delete secret istio-remote-secret-shanghai")
        .unwrap();
    pair.wait_until_used(0, &[("hangzhou", 2)]);
    let report =
        assert_none_failed("s4_without_its_secret_a_cluster_answers_until_the_grace_period_is_over", load);
    let within = deleted + GRACE_PERIOD / 2;
    let late = report.outcomes.iter().filter(|outcome| outcome.started > within);
    assert!(
        late.into_iter().any(|outcome| answered_by(outcome, "shanghai")),
        "it answers in the grace period"
    );
    assert_eq!(clusters(&pair.answers(0)), ["hangzhou"].into());
    eventually("the member goes with its Secret", SOON, || {
        let members = pair.agents[0].members().unwrap();
        members.iter().map(|member| member.name.as_str()).eq(["hangzhou"])
    });
    pair.wait_until_used(1, &[("hangzhou", 2), ("shanghai", 2)]);
    assert_eq!(clusters(&pair.answers(1)), PAIR.into(), "the other gateway's members are its own");
}

#[test]
fn s4_a_third_cluster_is_one_more_secret() {
    let mut pair = Pair::start(&["beijing"]);
    pair.introduce();
    pair.stage.deploy("beijing", &hello("v3")).unwrap();
    let beijing = pair.stage.istioctl("beijing", "first").unwrap();
    pair.stage.workstation().write("beijing-secret.yaml", &beijing).unwrap();
    for (n, cluster) in PAIR.into_iter().enumerate() {
        pair.stage.type_in(&format!("kubectl --context {cluster} apply -f beijing-secret.yaml")).unwrap();
        pair.wait_until_used(n, &[("hangzhou", 2), ("shanghai", 2), ("beijing", 2)]);
        let tally = pair.answers(n);
        assert_eq!(clusters(&tally), ["beijing", "hangzhou", "shanghai"].into(), "{tally:?}");
    }
}

#[test]
fn s4_a_rotated_token_takes_over_and_loses_nothing() {
    let mut pair = Pair::start(&[]);
    pair.introduce();
    pair.wait_until_used(0, &[("hangzhou", 2), ("shanghai", 2)]);
    let [target, _] = http(pair.gateways[0].vip());
    let load = load(&pair.stage, target);
    let rotated = pair.stage.istioctl("shanghai", "second").unwrap();
    pair.stage.workstation().write("shanghai-secret.yaml", &rotated).unwrap();
    pair.stage.type_in("kubectl --context hangzhou apply -f shanghai-secret.yaml").unwrap();
    pair.stage.revoke("shanghai", "first").unwrap();
    // What is new in shanghai is seen: by the new token, the old one is worth nothing any more.
    pair.stage
        .type_in("kubectl --context shanghai -n demo scale deployment/helloworld-v2 --replicas=4")
        .unwrap();
    pair.wait_until_used(0, &[("hangzhou", 2), ("shanghai", 4)]);
    eventually("shanghai is connected", SOON, || {
        let members = pair.agents[0].members().unwrap();
        let shanghai = members.into_iter().find(|member| member.name == "shanghai").unwrap();
        shanghai.connection.unwrap().connected == Some(true)
    });
    let report = assert_none_failed("s4_a_rotated_token_takes_over_and_loses_nothing", load);
    assert_eq!(clusters(&report.tally()), PAIR.into());
}
