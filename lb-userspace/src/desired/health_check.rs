//! How endpoints are probed, and how a Service's annotations say so.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::addresses::{ADDRESSES_ANNOTATION, SCOPE_ANNOTATION, SHARED_ADDRESS_ANNOTATION};
use super::problems::{self, Problems};
use super::types::{ObjectName, Reason};
use crate::config::{format_duration, parse_duration};

const OURS: &str = "kanmon.dev/";
const KIND: &str = "kanmon.dev/health-check";
const PATH: &str = "kanmon.dev/health-check-path";
const EXPECTED_STATUS: &str = "kanmon.dev/health-check-expected-status";
const INTERVAL: &str = "kanmon.dev/health-check-interval";
const TIMEOUT: &str = "kanmon.dev/health-check-timeout";
const UNHEALTHY_THRESHOLD: &str = "kanmon.dev/health-check-unhealthy-threshold";
const HEALTHY_THRESHOLD: &str = "kanmon.dev/health-check-healthy-threshold";
const KNOWN: [&str; 10] = [
    ADDRESSES_ANNOTATION,
    SCOPE_ANNOTATION,
    SHARED_ADDRESS_ANNOTATION,
    KIND,
    PATH,
    EXPECTED_STATUS,
    INTERVAL,
    TIMEOUT,
    UNHEALTHY_THRESHOLD,
    HEALTHY_THRESHOLD,
];

const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
const THRESHOLDS: RangeInclusive<u32> = 1..=100;
/// The status codes that mean healthy, unless something else is said.
pub(super) const STATUSES: RangeInclusive<u16> = 200..=399;

/// How the endpoints of a service are probed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    /// Kind of probe.
    pub kind: HealthCheckKind,
    /// From the start of one probe to the start of the next.
    pub interval: Duration,
    /// A probe that takes longer has failed; at most `interval`.
    pub timeout: Duration,
    /// Failures in a row that make an endpoint unhealthy, ≥ 1.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy again, ≥ 1.
    pub healthy_threshold: u32,
    /// The DNS name that an HTTP, HTTPS or gRPC probe asks for, in TLS too; `None`: the probed address.
    pub host: Option<String>,
    /// The authorities, in PEM, one of which must have issued the certificate of an HTTPS probe's server;
    /// `None`: any certificate does.
    pub ca_certificate: Option<Arc<str>>,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: HealthCheckKind::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            host: None,
            ca_certificate: None,
        }
    }
}

/// Kind of probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HealthCheckKind {
    /// Not probed: Kubernetes' readiness alone decides.
    None,
    /// A TCP connection is accepted.
    Tcp,
    /// An HTTP GET is answered with an expected status.
    Http {
        /// Request target, begins with `/`.
        path: String,
        /// Status codes that mean healthy.
        expected_status: RangeInclusive<u16>,
    },
    /// The same over TLS.
    Https {
        /// Request target, begins with `/`.
        path: String,
        /// Status codes that mean healthy.
        expected_status: RangeInclusive<u16>,
    },
    /// A call of `grpc.health.v1.Health/Check`, over HTTP/2 without TLS, is answered with SERVING.
    Grpc {
        /// The service that is asked for; empty: the server as a whole.
        service: String,
    },
}

/// What the annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) check: HealthCheck,
    /// The kind was asked for by name, so that it applies to a Service without TCP ports as well.
    pub(super) explicit: bool,
    /// The pods' port to probe; `None`: the one that gets the connections.
    pub(super) port: Option<u16>,
}

/// Reads the annotations. A bad value is reported and the default used.
pub(super) fn parse(
    cluster: &str,
    name: &ObjectName,
    annotations: Option<&BTreeMap<String, String>>,
    problems: &mut Problems,
) -> Check {
    let Some(annotations) = annotations else { return Check::default() };
    let mut reader = Reader { cluster, object: problems::service(name), annotations, problems };
    reader.report_unknown();

    let mut check = HealthCheck::default();
    let kind = reader.read(KIND, parse_kind);
    let explicit = kind.is_some();
    check.kind = kind.unwrap_or(HealthCheckKind::Tcp);
    let path = reader.read(PATH, parse_path);
    let statuses = reader.read(EXPECTED_STATUS, parse_statuses);
    if let HealthCheckKind::Http { path: to, expected_status }
    | HealthCheckKind::Https { path: to, expected_status } = &mut check.kind
    {
        *to = path.unwrap_or_else(|| "/".to_owned());
        *expected_status = statuses.unwrap_or(STATUSES);
    } else if path.is_some() || statuses.is_some() {
        reader.report(format!("{PATH} and {EXPECTED_STATUS} mean nothing without {KIND}: http or https"));
    }

    check.interval = reader.read(INTERVAL, |text| duration(text, &INTERVALS)).unwrap_or(check.interval);
    match reader.read(TIMEOUT, |text| duration(text, &TIMEOUTS)) {
        Some(timeout) if timeout > check.interval => {
            let interval = format_duration(check.interval);
            reader.report(format!(
                "{TIMEOUT}: {} is longer than the interval; {interval} is used",
                format_duration(timeout)
            ));
            check.timeout = check.interval;
        }
        Some(timeout) => check.timeout = timeout,
        None => check.timeout = check.timeout.min(check.interval),
    }
    check.unhealthy_threshold =
        reader.read(UNHEALTHY_THRESHOLD, threshold).unwrap_or(check.unhealthy_threshold);
    check.healthy_threshold = reader.read(HEALTHY_THRESHOLD, threshold).unwrap_or(check.healthy_threshold);
    Check { check, explicit, port: None }
}

struct Reader<'a> {
    cluster: &'a str,
    object: String,
    annotations: &'a BTreeMap<String, String>,
    problems: &'a mut Problems,
}

impl Reader<'_> {
    fn read<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.annotations.get(key)?.trim()) {
            Ok(value) => Some(value),
            Err(what) => {
                self.report(format!("{key}: {what}; the default is used"));
                None
            }
        }
    }

    fn report_unknown(&mut self) {
        for key in self.annotations.keys() {
            if key.starts_with(OURS) && !KNOWN.contains(&key.as_str()) {
                self.report(format!("{key} is no annotation of Kanmon's; there are {}", KNOWN.join(", ")));
            }
        }
    }

    fn report(&mut self, message: String) {
        self.problems.warning(self.cluster, &self.object, Reason::InvalidAnnotation, message);
    }
}

fn parse_kind(text: &str) -> Result<HealthCheckKind, String> {
    match text {
        "none" => Ok(HealthCheckKind::None),
        "tcp" => Ok(HealthCheckKind::Tcp),
        "http" => Ok(HealthCheckKind::Http { path: String::new(), expected_status: STATUSES }),
        "https" => Ok(HealthCheckKind::Https { path: String::new(), expected_status: STATUSES }),
        "grpc" => Ok(HealthCheckKind::Grpc { service: String::new() }),
        _ => Err(format!("{text:?} is none of tcp, http, https, grpc and none")),
    }
}

fn parse_path(text: &str) -> Result<String, String> {
    // What may stand in a request target as it is (RFC 3986, section 3.3 and 3.4).
    let allowed = |c: char| c.is_ascii_graphic() && !"\"#<>\\^`{|}".contains(c);
    if text.starts_with('/') && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a path; it begins with / and is percent-encoded"))
    }
}

fn parse_statuses(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is not a range of HTTP statuses; write it like 200-399 or 204");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first: u16 = first.trim().parse().map_err(|_| wrong())?;
    let last: u16 = last.trim().parse().map_err(|_| wrong())?;
    if first < 100 || last > 599 || first > last { Err(wrong()) } else { Ok(first..=last) }
}

fn threshold(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| THRESHOLDS.contains(number));
    number.ok_or_else(|| {
        format!("{text:?} is not a number from {} to {}", THRESHOLDS.start(), THRESHOLDS.end())
    })
}

fn duration(text: &str, limits: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if limits.contains(&duration) {
        Ok(duration)
    } else {
        let (least, most) = (format_duration(*limits.start()), format_duration(*limits.end()));
        Err(format!("{text} is not within {least} to {most}"))
    }
}
