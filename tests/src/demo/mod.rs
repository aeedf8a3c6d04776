//! What `cargo xtask demo` shows: nine steps on story S1's network, each with a verdict; with `--all` eleven more, on
//! what policies ask for and what failures cost; and what it shows with `--kubernetes`, on real clusters
//! (`kubernetes/`).
//!
//! A step is a function of the stage (`stage.rs`, `kubernetes/stage.rs`); the lists of them are `STEPS`. `ok`
//! judges what was delivered; times are reported beside their goal.

mod consistency;
mod faults;
mod flaps;
mod inspect;
mod kubernetes;
mod lifecycle;
mod locality;
mod report;
mod rescue;
mod screen;
mod spread;
mod stage;
mod world;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use self::{
    kubernetes::Clusters,
    report::{Report, StepReport},
    screen::Screen,
    stage::Stage,
};
use crate::{
    agent::{Agent, AgentOptions},
    netns::{clean_on_signals, exit_code_after_signal},
    topology::{Bed, HTTP_PORT, Options, VIP},
};

/// Connections over two clusters of story S1's network, through failures and back.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo")]
pub struct Args {
    /// Show real Kubernetes clusters instead: members, services and endpoints come from their API servers.
    #[arg(long)]
    kubernetes: bool,
    /// Write what happened as JSON to this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Run only the step of this name; may be repeated.
    #[arg(long, value_name = "NAME", value_parser = step_names())]
    only: Vec<String>,
    /// Run the steps that a plain run leaves out as well.
    #[arg(long)]
    all: bool,
    /// Leave everything running at the end, and print commands to look around with.
    #[arg(long)]
    keep: bool,
    /// Print one line a step.
    #[arg(long)]
    quiet: bool,
}

/// A step of the demo.
struct Step<S> {
    name: &'static str,
    /// What happens, for the person who watches.
    story: &'static str,
    /// Whether it runs without `--all`.
    plain: bool,
    run: fn(&mut S) -> Result<StepReport>,
}

/// What a demo plays on.
trait Show: Sized + 'static {
    /// What happens on it, in this order.
    const STEPS: &'static [Step<Self>];

    /// Builds it, with an agent that works.
    fn set_up(screen: Screen) -> Result<Self>;

    /// The agent whose program is shown.
    fn agent(&self) -> &Agent;

    /// What a person can type to look around while everything runs.
    fn commands(&self) -> String;
}

const STEPS: [Step<Stage>; 20] = [
    Step {
        name: "distribution",
        story: "1,000 clients connect to one address; pods of two clusters answer.",
        plain: true,
        run: spread::distribution,
    },
    Step { name: "udp", story: "The same address over UDP: 1,000 requests.", plain: true, run: spread::udp },
    Step {
        name: "ipv6",
        story: "And over IPv6: 500 connections to the service's second address.",
        plain: true,
        run: spread::ipv6,
    },
    Step {
        name: "consistency",
        story: "200 connections stay open while a pod is added in hangzhou and another drains.",
        plain: true,
        run: consistency::consistency,
    },
    Step {
        name: "pod-killed",
        story: "A pod's server dies under load: its port refuses connections.",
        plain: true,
        run: faults::pod_killed,
    },
    Step {
        name: "pod-silent",
        story: "A pod's link goes down under load: it just does not answer.",
        plain: true,
        run: faults::pod_silent,
    },
    Step {
        name: "cluster-down",
        story: "All of hangzhou goes silent under load: shanghai takes over.",
        plain: true,
        run: faults::cluster_down,
    },
    Step {
        name: "recovery",
        story: "Hangzhou comes back and gets its share again.",
        plain: true,
        run: faults::recovery,
    },
    Step {
        name: "inspect",
        story: "What the kernel holds can be read with bpftool, by name.",
        plain: true,
        run: inspect::inspect,
    },
    Step {
        name: "s1-distribute",
        story: "A policy sends 90% to hangzhou and 10% to shanghai: 10,000 connections.",
        plain: false,
        run: locality::s1_distribute,
    },
    Step {
        name: "s1-failover",
        story: "hangzhou serves, shanghai stands by; hangzhou is scaled to 0.",
        plain: false,
        run: locality::s1_failover,
    },
    Step {
        name: "s1-spillover",
        story: "Two of hangzhou's four pods die: 30% spill over to shanghai. 10,000 connections.",
        plain: false,
        run: locality::s1_spillover,
    },
    Step {
        name: "s1-outlier",
        story: "A pod refuses though its cluster calls it ready, and nobody probes: it is ejected for 5 s.",
        plain: false,
        run: rescue::s1_outlier,
    },
    Step {
        name: "rst-rescue",
        story: "A pod refuses and nobody probes: the kernel takes 2,000 connections elsewhere, unseen.",
        plain: false,
        run: rescue::rst_rescue,
    },
    Step {
        name: "syn-rescue",
        story: "A pod says nothing and nobody probes: the second SYN of 500 connections goes elsewhere.",
        plain: false,
        run: rescue::syn_rescue,
    },
    Step {
        name: "cluster-silent",
        story: "hangzhou goes silent under 500 connections a second.",
        plain: false,
        run: rescue::cluster_silent,
    },
    Step {
        name: "s2-zone",
        story: "The gateway's zone serves; it fails, and others do; it heals, and is back after 3 s.",
        plain: false,
        run: locality::s2_zone,
    },
    Step {
        name: "flapping",
        story: "hangzhou fails and comes back ten times: connections leave it once and come back once.",
        plain: false,
        run: flaps::flapping,
    },
    Step {
        name: "rolling-update",
        story: "All pods of both clusters are replaced under load.",
        plain: false,
        run: lifecycle::rolling_update,
    },
    Step {
        name: "drain",
        story: "hangzhou is drained with 200 connections open.",
        plain: false,
        run: lifecycle::drain,
    },
];

fn step_names() -> clap::builder::PossibleValuesParser {
    // Some are shown in both ways.
    let all: BTreeSet<&str> = names(&STEPS).chain(names(Clusters::STEPS)).collect();
    all.into_iter().collect::<Vec<_>>().into()
}

fn names<S>(steps: &[Step<S>]) -> impl Iterator<Item = &'static str> {
    steps.iter().map(|step| step.name)
}

/// Runs the demo; says whether every step was ok.
///
/// # Errors
/// When the network or the agent cannot be started, or the report cannot be written.
pub fn run(args: &Args) -> Result<bool> {
    if args.kubernetes { show::<Clusters>(args) } else { show::<Stage>(args) }
}

fn show<S: Show>(args: &Args) -> Result<bool> {
    expect_own_steps::<S>(args)?;
    clean_on_signals()?;
    let begun = Instant::now();
    let screen = Screen::new(args.quiet);
    let mut report = Report::new()?;
    let played = play::<S>(args, screen, &mut report);
    report.close(begun.elapsed(), played.as_ref().err());
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    let stage = played?;
    screen.end(&report);
    if args.keep {
        keep(&stage, &screen, report.ok);
    }
    Ok(report.ok)
}

/// Refuses steps of the other show: asked for, they would not run.
fn expect_own_steps<S: Show>(args: &Args) -> Result<()> {
    for name in &args.only {
        ensure!(
            names(S::STEPS).any(|own| own == name),
            "the step {name} is shown {} --kubernetes; here there are {}",
            if args.kubernetes { "without" } else { "with" },
            names(S::STEPS).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

fn play<S: Show>(args: &Args, screen: Screen, report: &mut Report) -> Result<S> {
    let mut stage = S::set_up(screen)?;
    report.attach = stage.agent().attach_mode()?;
    for step in S::STEPS.iter().filter(|step| chosen(step, args)) {
        screen.begin(step.name, step.story);
        let begun = Instant::now();
        let mut done =
            (step.run)(&mut stage).unwrap_or_else(|error| StepReport::failed(format!("{error:#}")));
        done.finish(step.name, begun.elapsed());
        screen.verdict(&done);
        report.steps.push(done);
    }
    Ok(stage)
}

fn chosen<S>(step: &Step<S>, args: &Args) -> bool {
    if args.only.is_empty() { step.plain || args.all } else { args.only.iter().any(|name| name == step.name) }
}

impl Show for Stage {
    const STEPS: &'static [Step<Stage>] = &STEPS;

    fn set_up(screen: Screen) -> Result<Stage> {
        screen.say(
            "Building the network: a client, a gateway, a CEN router, and two clusters, hangzhou and shanghai, \
             of three pods each. Everything is in network namespaces.",
        );
        let bed = Bed::s1(Options::default()).context("cannot build the network")?;
        let place = AgentOptions { zone: locality::ZONE.into(), ..AgentOptions::default() };
        let agent = bed.start_agent(place).context("cannot start the agent")?;
        screen.say(&format!(
            "kanmon is attached ({}) to the gateway's eth0. A first request, by curl:",
            agent.attach_mode()?
        ));
        screen.say(&first_request(&bed));
        Ok(Stage::new(bed, agent, screen))
    }

    fn agent(&self) -> &Agent {
        &self.agent
    }

    fn commands(&self) -> String {
        Stage::commands(self)
    }
}

/// The first request is a person's: curl. What it says is shown, the steps judge.
fn first_request(bed: &Bed) -> String {
    let url = format!("http://{}:{HTTP_PORT}/", VIP.v4);
    let mut curl: Command = bed.client_ns().command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "3", &url]);
    match curl.output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            format!("  $ curl {url}\n  {}", String::from_utf8_lossy(&said).trim())
        }
        Err(error) => format!("  (curl cannot be run: {error})"),
    }
}

fn keep(stage: &impl Show, screen: &Screen, ok: bool) -> ! {
    exit_code_after_signal(u8::from(!ok));
    screen.print(&stage.commands());
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn the_plain_run_has_the_nine_steps_in_their_order() {
        let names = |args: &[&str]| {
            let args = Args::parse_from([&["demo"], args].concat());
            STEPS.iter().filter(|step| chosen(step, &args)).map(|step| step.name).collect::<Vec<_>>()
        };
        let nine = [
            "distribution",
            "udp",
            "ipv6",
            "consistency",
            "pod-killed",
            "pod-silent",
            "cluster-down",
            "recovery",
            "inspect",
        ];
        assert_eq!(names(&[]), nine);
        let more = [
            "s1-distribute",
            "s1-failover",
            "s1-spillover",
            "s1-outlier",
            "rst-rescue",
            "syn-rescue",
            "cluster-silent",
            "s2-zone",
            "flapping",
            "rolling-update",
            "drain",
        ];
        assert_eq!(names(&["--all"]), [&nine[..], &more].concat());
        assert_eq!(names(&["--only", "drain"]), ["drain"]);
        assert_eq!(names(&["--only", "udp", "--only", "inspect"]), ["udp", "inspect"]);
        assert!(Args::try_parse_from(["demo", "--only", "upd"]).is_err());
    }

    #[test]
    fn the_steps_of_one_show_are_refused_on_the_other() {
        let args = |args: &[&str]| Args::parse_from([&["demo"], args].concat());
        let clusters = args(&["--kubernetes", "--only", "s0-merge"]);
        assert!(expect_own_steps::<Clusters>(&clusters).is_ok());
        let plain = expect_own_steps::<Stage>(&args(&["--only", "s0-merge"])).unwrap_err().to_string();
        assert!(plain.contains("s0-merge is shown with --kubernetes"), "{plain}");
        let other = expect_own_steps::<Clusters>(&args(&["--kubernetes", "--only", "udp"]));
        assert!(other.unwrap_err().to_string().contains("shown without --kubernetes"));
    }
}
