//! Connections to API servers that misbehave, and the whole source on them.

mod fake;
mod gone;
mod guest;
mod members;
mod policies;
mod source;
mod writing;

use std::time::Duration;

use serde_json::{Value, json};

use super::link::Pace;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const MEMBERS: &str = "/apis/kanmon.dev/v1alpha1/memberclusters";

/// Nothing here takes longer, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fast, so that tests are. Not so its timeout: on a busy machine an answer takes long, and is one all the same.
fn pace() -> Pace {
    let millis = Duration::from_millis;
    Pace {
        interval: millis(50),
        retry: millis(50),
        timeout: millis(3000),
        discovery: millis(50),
        renewal: millis(50),
    }
}

fn service(name: &str) -> Value {
    json!({"metadata": {"namespace": "demo", "name": name, "uid": format!("uid-{name}")},
        "spec": {"ports": [{"port": 80}]}})
}
