//! What `cargo xtask demo --kubernetes` shows: real clusters, as a person would use them. The commands that it
//! prints are those that it runs.

mod exports;
mod loss;
mod merge;
mod secrets;
mod stage;

use super::Step;

pub(super) use stage::Clusters;

const STEPS: [Step<Clusters>; 6] = [
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
