//! What the steps play on: three clusters, a person's workstation, and the gateway's agent.

use std::{
    fmt::Write,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::STEPS;
use crate::{
    agent::Agent,
    client::{Answer, Outcome, Running, SteadyLoad, row},
    demo::{
        Show, Step,
        report::StepReport,
        screen::{Screen, Watch},
    },
    stage::{App, AppPod, KubeStage, POOL, SOON, StageOptions, declared},
    topology::{HTTP_PORT, VIP},
};

/// The clusters that run pods.
pub(super) const MEMBERS: [&str; 2] = ["hangzhou", "shanghai"];
/// Pods in each cluster.
pub(super) const PODS: u8 = 3;
/// The members that the gateway serves.
const SELECTOR: &str = "location in (cn-hangzhou, cn-shanghai)";
/// Connections started each second while something changes.
const RATE: u32 = 200;

#[derive(Debug)]
pub(in crate::demo) struct Clusters {
    screen: Screen,
    pub(super) agent: Agent,
    /// Agents of other gateways, which a step started.
    pub(super) others: Vec<Agent>,
    /// Pods that refuse or are silent, by a step.
    broken: Vec<Broken>,
    pub(super) stage: KubeStage,
}

/// What a step did to a pod.
#[derive(Debug)]
enum Broken {
    Refusing(AppPod),
    Silent(AppPod),
}

impl Show for Clusters {
    const STEPS: &'static [Step<Clusters>] = &STEPS;

    fn set_up(screen: Screen) -> Result<Clusters> {
        screen.say(
            "Starting three Kubernetes clusters, gateway, hangzhou and shanghai: etcd, API server, controllers \
             and scheduler as released, and a small kubelet of our own, which runs pods in network namespaces. \
             A line that begins with $ is run as it stands, by bash. A kubectl context has its cluster's name.",
        );
        let options = StageOptions { register: false, ..StageOptions::default() };
        let stage = KubeStage::start(options).context("cannot start the clusters")?;
        screen.say(
            "gateway has Kanmon's definitions by now (kanmon crds | kubectl --context gateway apply -f -). \
             Both others become members, and get an app:",
        );
        for member in MEMBERS {
            let line = format!(
                "kanmon remote-secret create --context {member} --name {member} 2>/dev/null | \
                 kubectl --context gateway apply -f -"
            );
            type_in(&stage, screen, &line)?;
        }
        screen.say(
            "Their MemberClusters say where they are, and have labels by which a gateway selects them; VIPs of \
             Services that name none come from a pool:",
        );
        let members = MEMBERS.map(|member| declared(member, "SameName")).join("---\n");
        stage.workstation().write("members.yaml", &members)?;
        stage.workstation().write("pool.yaml", POOL)?;
        type_in(&stage, screen, "kubectl --context gateway apply -f members.yaml -f pool.yaml")?;
        stage.workstation().write("httpbin.yaml", &app().yaml())?;
        for member in MEMBERS {
            type_in(&stage, screen, &format!("kubectl --context {member} apply -f httpbin.yaml"))?;
        }
        let selected = ["--member-selector", SELECTOR];
        let agent = stage.start_agent(&stage.gateway(), &selected).context("cannot start the agent")?;
        screen.say(&format!(
            "kanmon run --member-selector '{SELECTOR}' is attached ({}) to the gateway's eth0.",
            agent.attach_mode()?
        ));
        Ok(Clusters { screen, agent, others: Vec::new(), broken: Vec::new(), stage })
    }

    fn agent(&self) -> &Agent {
        &self.agent
    }

    fn commands(&self) -> String {
        let mut text = String::from("\nEverything is left running. To look around, as root:\n\n");
        let client = self.stage.bed().client_ns().path().display();
        let lines = [
            format!("nsenter --net={client} bash"),
            self.stage.workstation().enter(),
            "kanmon status --socket gateway.sock".to_owned(),
            "kanmon flows --socket gateway.sock".to_owned(),
            "kubectl --context gateway get memberclusters".to_owned(),
            "kubectl --context hangzhou -n demo get pods -o wide".to_owned(),
            "kubectl --context hangzhou -n demo scale deployment/httpbin --replicas=5".to_owned(),
            format!("curl http://{}/", VIP.v4),
            format!("less {}", self.stage.bed().log("kanmon").display()),
        ];
        for line in lines {
            writeln!(text, "  {line}").expect("a String takes what is written to it");
        }
        text.push_str("\nCtrl-C ends it and cleans up.\n");
        text
    }
}

/// The app of story S0.
pub(super) fn app() -> App {
    App::new("httpbin", PODS).at(VIP).over_zones()
}

/// Shows a command, runs it, and shows what it printed.
fn type_in(stage: &KubeStage, screen: Screen, line: &str) -> Result<String> {
    screen.say(&format!("  $ {line}"));
    let printed = stage.type_in(line)?;
    for line in printed.lines() {
        screen.say(format!("  {line}").trim_end());
    }
    Ok(printed)
}

impl Clusters {
    /// Says a sentence of the story.
    pub(super) fn say(&self, text: &str) {
        self.screen.say(&format!("  {text}"));
    }

    /// Shows a command, runs it, and shows what it printed.
    pub(super) fn type_in(&self, line: &str) -> Result<String> {
        type_in(&self.stage, self.screen, line)
    }

    /// Says which Services of the members take part, where they don't say so. Whether that was a change.
    pub(super) fn discover(&self, discovery: &str) -> Result<bool> {
        let members = MEMBERS.join(" ");
        let look = format!(
            "kubectl --context gateway get membercluster {members} -o jsonpath='{{..spec.discovery}}'"
        );
        if self.stage.type_in(&look)?.split_whitespace().all(|found| found == discovery) {
            return Ok(false);
        }
        let patch = format!("{{\"spec\":{{\"discovery\":\"{discovery}\"}}}}");
        self.type_in(&format!(
            "kubectl --context gateway patch membercluster {members} --type=merge -p '{patch}'"
        ))?;
        Ok(true)
    }

    /// Makes sure that the app is in both clusters, without a policy, and the agent uses all its pods, whatever the
    /// step before did.
    pub(super) fn all_well(&mut self) -> Result<Vec<AppPod>> {
        self.mend();
        self.stage.type_in("kubectl --context gateway -n demo delete loadbalancingpolicies --all")?;
        self.discover("SameName")?;
        for member in MEMBERS {
            self.stage.type_in(&format!("kubectl --context {member} apply -f httpbin.yaml"))?;
        }
        let wanted = MEMBERS.map(|member| (member, PODS.into()));
        self.stage.wait_until_used(&mut self.agent, &app(), &wanted)
    }

    /// Makes a pod refuse connections, until the next [`Clusters::mend`].
    pub(super) fn refuse(&mut self, pod: &AppPod) -> Result<()> {
        self.broken.push(Broken::Refusing(pod.clone()));
        self.stage.refuse(pod)
    }

    /// Makes a pod silent, until the next [`Clusters::mend`].
    pub(super) fn silence(&mut self, pod: &AppPod) -> Result<()> {
        self.broken.push(Broken::Silent(pod.clone()));
        self.stage.silence(pod)
    }

    /// Mends the pods that are broken.
    pub(super) fn mend(&mut self) {
        for broken in self.broken.drain(..) {
            let mended = match &broken {
                Broken::Refusing(pod) => self.stage.accept(pod),
                Broken::Silent(pod) => self.stage.heal(pod),
            };
            // Whatever replaced a pod that is gone is not broken.
            if let Err(error) = mended {
                self.screen.say(&format!("  ({error:#})"));
            }
        }
    }

    /// Shows the counts as they grow.
    pub(super) fn watch(&self, live: &crate::client::Live) -> Watch {
        self.screen.watch(live)
    }

    /// Starts connections to the app, and returns once they have been going well for a while.
    pub(super) fn load(&self) -> Result<Load> {
        self.load_at((VIP.v4, HTTP_PORT).into())
    }

    /// The same, to another service.
    pub(super) fn load_at(&self, target: SocketAddr) -> Result<Load> {
        self.start(SteadyLoad::new(target, RATE))
    }

    /// The same, with a client that waits so long for an answer.
    pub(super) fn load_with(&self, target: SocketAddr, timeout: Duration) -> Result<Load> {
        self.start(SteadyLoad { timeout, ..SteadyLoad::new(target, RATE) })
    }

    fn start(&self, load: SteadyLoad) -> Result<Load> {
        let watch = self.watch(&load.live);
        let running = self.stage.bed().client().load(load)?;
        let begun = Instant::now();
        running
            .wait_for(begun + SOON, |all| row(all, begun, RATE as usize / 2, |_| true))
            .context("connections fail already before anything changes")?;
        Ok(Load { running, _watch: watch })
    }
}

/// Connections at a steady rate, shown as they come.
pub(super) struct Load {
    running: Running,
    _watch: Watch,
}

impl Load {
    /// The start of the first `count` connections in a row, from `from` on, that `cluster` alone answered.
    pub(super) fn only(&self, cluster: &str, from: Instant, count: usize) -> Option<Instant> {
        self.row(from, count, |answer| answer.cluster == cluster)
    }

    /// The start of the first `count` connections in a row, from `from` on, whose answers are as `expected`.
    pub(super) fn row(
        &self,
        from: Instant,
        count: usize,
        expected: impl Fn(&Answer) -> bool,
    ) -> Option<Instant> {
        let row = |all: &[Outcome]| row(all, from, count, &expected);
        self.running.wait_for(from + Duration::from_secs(30), row).map(|row| row.began)
    }

    /// The start of the first connection, from `from` on, whose answer is as `expected`.
    pub(super) fn first(&self, from: Instant, expected: impl Fn(&Answer) -> bool) -> Option<Instant> {
        self.row(from, 1, expected)
    }

    /// Ends it; all that became of it.
    pub(super) fn stop(self) -> Vec<Outcome> {
        self.running.stop().outcomes
    }

    /// Ends it: none may have failed since `from`.
    pub(super) fn end(self, from: Instant) -> (StepReport, Vec<Outcome>) {
        let mut outcomes = self.running.stop().outcomes;
        outcomes.retain(|outcome| outcome.finished >= from);
        let mut report = StepReport::of(&outcomes.iter().collect());
        expect_none_failed(&mut report);
        (report, outcomes)
    }
}

pub(super) fn expect_none_failed(report: &mut StepReport) {
    let failed = report.failed;
    report.expect(failed == 0, || format!("{failed} failed"));
}
