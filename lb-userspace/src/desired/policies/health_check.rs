//! How a policy says that endpoints be probed. It goes before the Service's annotations.

use std::time::Duration;

use super::super::health_check::{Check, HealthCheck, HealthCheckKind, STATUSES};
use super::super::resources::{HealthCheckSpec, HealthCheckType, parse_statuses};
use super::duration;

/// What a health check that has been checked asks for.
pub(super) fn resolve(spec: &HealthCheckSpec) -> Check {
    let default = HealthCheck::default();
    let interval = duration(spec.interval.as_ref()).unwrap_or(default.interval);
    let timeout: Option<Duration> = duration(spec.timeout.as_ref());
    Check {
        check: HealthCheck {
            kind: kind(spec),
            interval,
            timeout: timeout.unwrap_or(default.timeout).min(interval),
            unhealthy_threshold: spec.unhealthy_threshold.unwrap_or(default.unhealthy_threshold),
            healthy_threshold: spec.healthy_threshold.unwrap_or(default.healthy_threshold),
            host: spec.host.clone(),
            ca_certificate: spec.ca_certificate.as_deref().map(Into::into),
        },
        explicit: true,
        port: spec.port,
    }
}

fn kind(spec: &HealthCheckSpec) -> HealthCheckKind {
    let path = || spec.path.clone().unwrap_or_else(|| "/".to_owned());
    let statuses = spec.expected_statuses.as_deref().and_then(parse_statuses);
    let expected_status = statuses.map_or(STATUSES, |(first, last)| first..=last);
    match spec.kind {
        HealthCheckType::None => HealthCheckKind::None,
        HealthCheckType::Tcp => HealthCheckKind::Tcp,
        HealthCheckType::Http => HealthCheckKind::Http { path: path(), expected_status },
        HealthCheckType::Https => HealthCheckKind::Https { path: path(), expected_status },
        HealthCheckType::Grpc => HealthCheckKind::Grpc { service: spec.service.clone().unwrap_or_default() },
    }
}
