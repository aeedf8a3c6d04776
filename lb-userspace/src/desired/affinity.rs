//! Session affinity: for how long a client stays with its pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceSpec;

use super::problems::{self, Problems};
use super::types::{ObjectName, Reason};

/// Where a Service doesn't say, as Kubernetes has it.
const DEFAULT: Duration = Duration::from_secs(10_800);
/// The longest that Kubernetes takes, in seconds.
const MOST: i32 = 86_400;

/// What a Service asks for; `None`: nothing.
pub(super) fn parse(
    cluster: &str,
    name: &ObjectName,
    spec: &ServiceSpec,
    problems: &mut Problems,
) -> Option<Duration> {
    match spec.session_affinity.as_deref().unwrap_or("None") {
        "ClientIP" => {}
        "None" | "" => return None,
        other => {
            let message = format!(
                "sessionAffinity is {other}, which is not known, so that each connection of a client is balanced by \
                 itself; say ClientIP or None"
            );
            problems.warning(cluster, problems::service(name), Reason::InvalidObject, message);
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else { return Some(DEFAULT) };
    match u64::try_from(seconds) {
        Ok(time) if time > 0 && seconds <= MOST => Some(Duration::from_secs(time)),
        _ => {
            let message = format!(
                "sessionAffinityConfig.clientIP.timeoutSeconds is {seconds}, which is not within 1 to {MOST}, so that {} \
                 counts",
                DEFAULT.as_secs()
            );
            problems.warning(cluster, problems::service(name), Reason::InvalidObject, message);
            Some(DEFAULT)
        }
    }
}
