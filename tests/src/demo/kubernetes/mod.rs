//! What `cargo xtask demo --kubernetes` shows: real clusters, as a person would use them. The commands that it
//! prints are those that it runs.

mod exports;
mod loss;
mod merge;
mod outlier;
mod policy;
mod regions;
mod secrets;
mod stage;

use super::Step;

pub(super) use stage::Clusters;

const STEPS: [Step<Clusters>; 11] = [
    Step {
        name: "s0-merge",
        story: "httpbin is in both clusters, under the same name: it is one service, with the pods of both.",
        plain: true,
        run: merge::merge,
    },
    Step {
        name: "s0-delete",
        story: "httpbin is deleted in hangzhou under load: shanghai answers.",
        plain: true,
        run: merge::delete,
    },
    Step {
        name: "s1-distribute",
        story: "A policy sends 90% of new connections to hangzhou, the gateway's region, and 10% to shanghai.",
        plain: false,
        run: regions::distribute,
    },
    Step {
        name: "s1-failover",
        story: "A failover pair: hangzhou is scaled to 0 under load, shanghai answers; and back.",
        plain: false,
        run: regions::failover,
    },
    Step {
        name: "s1-spillover",
        story: "Two of hangzhou's four pods fail: as many connections as they leave over go to shanghai.",
        plain: false,
        run: regions::spillover,
    },
    Step {
        name: "s1-outlier",
        story: "A pod refuses connections while its cluster calls it ready, and nobody probes it.",
        plain: false,
        run: outlier::outlier,
    },
    Step {
        name: "s2-zone",
        story: "The gateway's own zone goes first; it fails, and heals.",
        plain: false,
        run: regions::zone,
    },
    Step {
        name: "s3-export",
        story: "Both members export a service: the exports are valid and agree, and there is an import.",
        plain: true,
        run: exports::export,
    },
    Step {
        name: "s3-external-ip",
        story: "It has an address from a pool, at which both members answer; one leaves by its label, and returns.",
        plain: true,
        run: exports::external_ip,
    },
    Step {
        name: "s4-remote-secret",
        story: "Two clusters with a gateway each learn of each other, by Secrets in Istio's format.",
        plain: true,
        run: secrets::remote_secret,
    },
    Step {
        name: "api-loss",
        story: "shanghai's API server is killed under load: its pods go on serving, and what changes when it \
                is back is caught up with.",
        plain: true,
        run: loss::api_loss,
    },
];

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{super::Args, super::chosen, *};

    #[test]
    fn what_policies_do_is_shown_where_all_is_asked_for() {
        let names = |more: &[&str]| {
            let args = Args::parse_from([&["demo", "--kubernetes"], more].concat());
            STEPS.iter().filter(|step| chosen(step, &args)).map(|step| step.name).collect::<Vec<_>>()
        };
        let plain = ["s0-merge", "s0-delete", "s3-export", "s3-external-ip", "s4-remote-secret", "api-loss"];
        assert_eq!(names(&[]), plain);
        let policies = ["s1-distribute", "s1-failover", "s1-spillover", "s1-outlier", "s2-zone"];
        assert_eq!(names(&["--all"]), [&plain[..2], &policies, &plain[2..]].concat());
        assert_eq!(names(&["--only", "s2-zone"]), ["s2-zone"]);
    }
}
