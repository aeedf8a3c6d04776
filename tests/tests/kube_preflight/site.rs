//! A gateway that is ready to run an agent, members that declare their networks, and `kanmon preflight` there.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tests::{
    netns::Link,
    stage::{App, KubeStage, POOL, StageOptions},
    topology::{VIP, program},
};

/// Where somebody types a line of shell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    /// A person's workstation, with kubectl and kanmon.
    Desk,
    /// The gateway.
    Gateway,
    /// The router between all networks.
    Router,
    /// The nodes of a member, behind which its pods are.
    Node(&'static str),
    /// The control plane of a cluster.
    Api(&'static str),
}

/// The members as somebody writes them who plans networks. The nodes' are as small as their addresses allow: control
/// planes are beside them.
const MEMBERS: [(&str, &str); 2] = [
    (
        "hangzhou",
        "  podCIDRs: [10.0.0.0/16, 'fd00:10::/48']
  nodeCIDRs: [20.0.0.0/24, 'fd00:20::/64']
  serviceCIDRs: [172.16.0.0/16, 'fd00:172:16::/112']
",
    ),
    (
        "shanghai",
        "  podCIDRs: [10.1.0.0/16, 'fd00:10:1::/48']
  nodeCIDRs: [21.0.0.0/24, 'fd00:21::/64']
  serviceCIDRs: [172.17.0.0/16, 'fd00:172:17::/112']
",
    ),
];

/// The gateway's second address, which backends see: not the one that the kernel sends from by itself.
const SNAT: [&str; 2] = ["192.168.0.11/24", "fd00:c0a8::11/64"];

/// The stage with it all.
pub(crate) struct Site {
    stage: KubeStage,
}

impl Site {
    pub(crate) fn start() -> Result<Site> {
        let site = Site { stage: KubeStage::start(StageOptions::default())? };
        let eth0 = Link::find(site.stage.bed().gateway(), "eth0")?;
        SNAT.iter().try_for_each(|address| eth0.add_address(address.parse()?))?;
        site.stage.kube("gateway")?.apply(POOL)?;
        site.declare()?;
        let app = App::new("httpbin", 2).at(VIP);
        for (member, _) in MEMBERS {
            site.stage.deploy(member, &app)?;
        }
        for (member, _) in MEMBERS {
            site.stage.wait_for_pods(member, &app, 2)?;
            site.wait_for_slices(member)?;
        }
        Ok(site)
    }

    pub(crate) fn stage(&self) -> &KubeStage {
        &self.stage
    }

    /// Declares the members as they are: what was said otherwise is undone.
    pub(crate) fn declare(&self) -> Result<()> {
        let yaml = MEMBERS.map(|(member, networks)| tests::stage::declared(member, "SameName") + networks);
        self.stage.kube("gateway")?.apply(&yaml.join("---\n")).map(drop)
    }

    /// Types a line of shell.
    pub(crate) fn type_at(&self, at: At, line: &str) -> Result<()> {
        let bed = self.stage.bed();
        let ns = match at {
            At::Desk => return self.stage.type_in(line).map(drop),
            At::Gateway => bed.gateway().clone(),
            At::Router => bed.cen().clone(),
            At::Node(member) => bed.node(member)?,
            At::Api(cluster) => self.stage.kube(cluster)?.ns().clone(),
        };
        let mut shell = ns.command("bash");
        shell.args(["-euo", "pipefail", "-c", line]);
        let output = bed.run().output(shell, "").context("cannot run bash")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{line}` at {at:?} failed ({}): {said}", output.status);
        Ok(())
    }

    /// Runs `kanmon preflight` on the gateway, with the arguments that its agent would have. Of an argument that
    /// `instead` has as well, only that counts.
    pub(crate) fn preflight(&self, instead: &[&str]) -> Result<Report> {
        let gateway = self.stage.gateway();
        let addresses = SNAT.map(|address| address.split('/').next().unwrap_or_default());
        let usual = [
            "--interface=eth0".to_owned(),
            format!("--kubeconfig={}", self.stage.kube("gateway")?.kubeconfig().display()),
            format!("--node-name={}", gateway.node()),
            format!("--pin-dir={}", gateway.pins().display()),
            format!("--snat-addresses={}", addresses.join(",")),
        ];
        let name = |argument: &str| argument.split('=').next().map(str::to_owned);
        let kept = usual.into_iter().filter(|usual| instead.iter().all(|one| name(one) != name(usual)));
        let mut command: Command = gateway.ns().command(program("kanmon")?);
        command.args(["preflight", "-o", "json"]).args(kept).args(instead);
        let output = self.stage.run().output(command, "")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = || format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        let Printed { ok, findings } = serde_json::from_str(&text).with_context(said)?;
        let exit = output.status.code().with_context(said)?;
        ensure!(ok == (exit == 0), "the exit code is {exit}: {text}");
        Ok(Report { findings, exit, text })
    }

    /// The slices say that the pods are ready a moment after the pods do.
    fn wait_for_slices(&self, member: &str) -> Result<()> {
        let slices = "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices";
        let kube = self.stage.kube(member)?;
        kube.see(
            "the slices have two endpoints that are ready in each family",
            slices,
            tests::stage::SOON,
            |list| {
                let items = list["items"].as_array()?;
                let all = items.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
                let ready = all.filter(|endpoint| endpoint["conditions"]["ready"] == true).count();
                (ready == 4).then_some(())
            },
        )
    }
}

/// What preflight prints.
#[derive(Debug, Deserialize)]
struct Printed {
    ok: bool,
    findings: Vec<Finding>,
}

/// A line of it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Finding {
    pub(crate) check: String,
    pub(crate) subject: String,
    pub(crate) status: String,
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) fix: String,
}

/// What preflight found.
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
    pub(crate) exit: i32,
    pub(crate) text: String,
}

impl Report {
    /// Everything that is not well, but for what is so on every such gateway: a veth hides VLAN tags until an agent
    /// tells it not to, and the machine that runs the tests may be in a cloud, which checks source addresses.
    pub(crate) fn unsound(&self) -> Vec<Finding> {
        let usual = |found: &Finding| {
            found.status == "warning"
                && match found.check.as_str() {
                    "offloads" => found.message.contains("VLAN tags from XDP"),
                    "source-check" => found.subject == "the fabric",
                    _ => false,
                }
        };
        self.findings.iter().filter(|found| found.status != "ok" && !usual(found)).cloned().collect()
    }
}
