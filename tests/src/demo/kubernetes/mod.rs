//! What `cargo xtask demo --kubernetes` shows: real clusters, as a person would use them. The commands that it
//! prints are those that it runs.

mod loss;
mod merge;
mod secrets;
mod stage;

use super::Step;

pub(super) use stage::Clusters;

const STEPS: [Step<Clusters>; 4] = [
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
