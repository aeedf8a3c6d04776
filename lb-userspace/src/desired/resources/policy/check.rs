//! What a policy may not say. In a cluster an API server refuses it, by the CEL rules here and by the limits in the
//! schema; without one the same is looked at by [`LoadBalancingPolicySpec::errors`].

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{
    Distribute, Failover, HealthCheckSpec, HealthCheckType, LoadBalancingPolicySpec, LocalitySpec,
    OutlierDetectionSpec, TargetRef, WeightedPlace, ZonePreference,
};
use crate::config::parse_duration;
use crate::desired::resources::{LabelExpression, LabelOperator, LabelSelector};

/// A rule in both forms: CEL for API servers, and the message that both give.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Rule {
    cel: &'static str,
    message: &'static str,
}

impl Rule {
    const fn new(cel: &'static str, message: &'static str) -> Self {
        Self { cel, message }
    }

    /// As an item of `x-kubernetes-validations`.
    pub(in super::super) fn cel(self) -> serde_json::Value {
        super::super::rule(self.cel, self.message)
    }
}

/// The rules by what they are about.
pub(in super::super) mod rules {
    use super::Rule;

    pub(in super::super) const ZONES_OR_SHARES: Rule = Rule::new(
        "!has(self.zonePreference) || self.zonePreference == 'None' || !has(self.locality) || \
         !has(self.locality.distribute)",
        "zonePreference and locality.distribute exclude each other: the shares say what each zone gets",
    );
    pub(in super::super) const PREFIX_OF_LIMIT: Rule = Rule::new(
        "!has(self.newFlowLimitPrefix) || has(self.newFlowLimit)",
        "newFlowLimitPrefix needs newFlowLimit",
    );
    pub(in super::super) const ONLY_SERVICES: Rule = Rule::new(
        "(!has(self.group) || self.group == '') && self.kind == 'Service'",
        "only Services can be targets: say `group: \"\"` and `kind: Service`",
    );
    pub(in super::super) const ONE_WAY: Rule = Rule::new(
        "!(has(self.failover) && has(self.distribute))",
        "failover and distribute exclude each other; remove one of them",
    );
    pub(in super::super) const FAILOVER_ONCE: Rule = Rule::new(
        "self.all(entry, self.exists_one(other, other.from == entry.from))",
        "each `from` can be there once; put all of its places into one `to`",
    );
    pub(in super::super) const DISTRIBUTE_ONCE: Rule = FAILOVER_ONCE;
    pub(in super::super) const FROM_NOT_IN_TO: Rule = Rule::new(
        "!self.to.exists(place, place == self.from || place.startsWith(self.from + '/'))",
        "`from` and its zones must not be in `to`: what is there goes first by itself",
    );
    pub(in super::super) const WEIGHTS_SUM: Rule =
        Rule::new("self.map(place, place.weight).sum() == 100", "the weights must sum to 100");
    pub(in super::super) const NO_OVERLAP: Rule = Rule::new(
        "self.all(place, self.exists_one(other, other.region == place.region && \
         (!has(other.zone) || !has(place.zone) || other.zone == place.zone)))",
        "the places must not overlap: name each zone once, and a whole region only where none of its zones is named",
    );
    pub(in super::super) const HTTP_FIELDS: Rule = Rule::new(
        "(!has(self.path) && !has(self.expectedStatuses)) || (has(self.type) && self.type in ['HTTP', 'HTTPS'])",
        "path and expectedStatuses need type HTTP or HTTPS",
    );
    pub(in super::super) const HOST: Rule = Rule::new(
        "!has(self.host) || (has(self.type) && self.type in ['HTTP', 'HTTPS', 'GRPC'])",
        "host needs type HTTP, HTTPS or GRPC",
    );
    pub(in super::super) const CERTIFICATE: Rule = Rule::new(
        "!has(self.caCertificate) || (has(self.type) && self.type == 'HTTPS')",
        "caCertificate needs type HTTPS",
    );
    pub(in super::super) const GRPC_SERVICE: Rule =
        Rule::new("!has(self.service) || (has(self.type) && self.type == 'GRPC')", "service needs type GRPC");
    pub(in super::super) const TIMEOUT: Rule = Rule::new(
        "!has(self.timeout) || duration(self.timeout) <= duration(has(self.interval) ? self.interval : '5s')",
        "timeout must not be longer than interval, which is 5s unless said otherwise",
    );
    pub(in super::super) const STATUSES: Rule = Rule::new(
        "self.split('-').size() == 1 || int(self.split('-')[0]) <= int(self.split('-')[1])",
        "the range must begin with its lowest status",
    );
    pub(in super::super) const PEM: Rule = Rule::new(
        "self.contains('-----BEGIN CERTIFICATE-----') && self.contains('-----END CERTIFICATE-----')",
        "must be a certificate in PEM: -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----",
    );
    pub(in super::super) const EJECTION_TIMES: Rule = Rule::new(
        "!has(self.maxEjectionTime) || \
         duration(has(self.baseEjectionTime) ? self.baseEjectionTime : '30s') <= duration(self.maxEjectionTime)",
        "baseEjectionTime, which is 30s unless said otherwise, must not be longer than maxEjectionTime",
    );

    pub(in super::super) const DRAIN_TIMEOUT: Rule = DAY;
    pub(in super::super) const FAILBACK_DELAY: Rule = DAY;
    pub(in super::super) const SLOW_START: Rule = HOUR;
    pub(in super::super) const PROBE_INTERVAL: Rule = Rule::new(
        "duration(self) >= duration('100ms') && duration(self) <= duration('1h')",
        "must be 100ms to 1h",
    );
    pub(in super::super) const PROBE_TIMEOUT: Rule = Rule::new(
        "duration(self) >= duration('10ms') && duration(self) <= duration('1h')",
        "must be 10ms to 1h",
    );
    pub(in super::super) const SWEEP_INTERVAL: Rule = PROBE_INTERVAL;
    pub(in super::super) const EJECTION_TIME: Rule = Rule::new(
        "duration(self) >= duration('100ms') && duration(self) <= duration('24h')",
        "must be 100ms to 24h",
    );
    const HOUR: Rule = Rule::new("duration(self) <= duration('1h')", "must be 1h at most");
    const DAY: Rule = Rule::new("duration(self) <= duration('24h')", "must be 24h at most");
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const UP_TO_HOUR: RangeInclusive<Duration> = Duration::ZERO..=HOUR;
const UP_TO_DAY: RangeInclusive<Duration> = Duration::ZERO..=DAY;
const PROBE_INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=HOUR;
const PROBE_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=HOUR;
const EJECTION_TIMES: RangeInclusive<Duration> = Duration::from_millis(100)..=DAY;

impl LoadBalancingPolicySpec {
    /// What is wrong, each with the field that it is about; an API server refuses the same. Empty: nothing.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.check(&mut At { found: &mut found, path: "spec".to_owned() });
        found
    }

    fn check(&self, at: &mut At<'_>) {
        at.field("targetRefs").list(&self.target_refs, 1..=16, TargetRef::check);
        let targets = self.target_refs.iter().map(|target| (&target.group, &target.kind, &target.name));
        at.field("targetRefs").once(targets, "each target can be there once");
        if let Some(selector) = &self.cluster_selector {
            selector.check(&mut at.field("clusterSelector"));
        }
        let locality = self.locality.as_ref();
        if let Some(locality) = locality {
            locality.check(&mut at.field("locality"));
        }
        let zones = self.zone_preference.is_some_and(|preference| preference != ZonePreference::None);
        let shares = locality.is_some_and(|locality| !locality.distribute.is_empty());
        at.hold(rules::ZONES_OR_SHARES, !(zones && shares));
        if let Some(check) = &self.health_check {
            check.check(&mut at.field("healthCheck"));
        }
        if let Some(detection) = &self.outlier_detection {
            detection.check(&mut at.field("outlierDetection"));
        }
        at.field("drainTimeout").duration(self.drain_timeout.as_ref(), rules::DRAIN_TIMEOUT, &UP_TO_DAY);
        at.field("slowStart").duration(self.slow_start.as_ref(), rules::SLOW_START, &UP_TO_HOUR);
        let sample = self.flow_log.as_ref().and_then(|log| log.sample_one_in);
        at.field("flowLog.sampleOneIn").number(sample, 1..=1_000_000);
        at.field("newFlowLimit").number(self.new_flow_limit, 1..=100_000_000);
        if let Some(prefix) = &self.new_flow_limit_prefix {
            at.field("newFlowLimitPrefix.ipv4").number(prefix.ipv4, 1..=32);
            at.field("newFlowLimitPrefix.ipv6").number(prefix.ipv6, 1..=128);
        }
        at.hold(
            rules::PREFIX_OF_LIMIT,
            self.new_flow_limit_prefix.is_none() || self.new_flow_limit.is_some(),
        );
    }
}

impl TargetRef {
    fn check(&self, at: &mut At<'_>) {
        at.hold(rules::ONLY_SERVICES, self.group.is_empty() && self.kind == "Service");
        let is_label = !self.name.is_empty()
            && self.name.len() <= 63
            && self.name.starts_with(|c: char| c.is_ascii_lowercase())
            && !self.name.ends_with('-')
            && self.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        at.field("name").text(is_label, &self.name, "the name of a Service");
    }
}

impl LabelSelector {
    fn check(&self, at: &mut At<'_>) {
        at.field("matchLabels").count(self.match_labels.len(), 0..=16);
        at.field("matchExpressions").list(&self.match_expressions, 0..=16, LabelExpression::check);
    }
}

impl LabelExpression {
    fn check(&self, at: &mut At<'_>) {
        let needs_values = matches!(self.operator, LabelOperator::In | LabelOperator::NotIn);
        at.claim(needs_values != self.values.is_empty(), LabelExpression::VALUES_MESSAGE);
    }
}

impl LocalitySpec {
    fn check(&self, at: &mut At<'_>) {
        at.hold(rules::ONE_WAY, self.failover.is_empty() || self.distribute.is_empty());
        at.field("failover").list(&self.failover, 0..=16, Failover::check);
        at.field("failover")
            .once(self.failover.iter().map(|entry| &entry.from), rules::FAILOVER_ONCE.message);
        at.field("distribute").list(&self.distribute, 0..=16, Distribute::check);
        let from = self.distribute.iter().map(|entry| &entry.from);
        at.field("distribute").once(from, rules::DISTRIBUTE_ONCE.message);
        at.field("overprovisioningPercent").number(self.overprovisioning_percent, 100..=1000);
        at.field("failbackDelay").duration(self.failback_delay.as_ref(), rules::FAILBACK_DELAY, &UP_TO_DAY);
    }
}

impl Failover {
    fn check(&self, at: &mut At<'_>) {
        at.field("from").place(&self.from);
        at.field("to").list(&self.to, 1..=16, |place, at| at.place(place));
        at.field("to").once(self.to.iter(), "each place can be there once");
        let is_within = |place: &String| {
            place
                .strip_prefix(&self.from)
                .is_some_and(|rest| matches!(rest.bytes().next(), None | Some(b'/')))
        };
        at.hold(rules::FROM_NOT_IN_TO, !self.to.iter().any(is_within));
    }
}

impl Distribute {
    fn check(&self, at: &mut At<'_>) {
        at.field("from").place(&self.from);
        let mut to = at.field("to");
        to.list(&self.to, 1..=32, WeightedPlace::check);
        let sum = self.to.iter().map(|place| u64::from(place.weight)).sum::<u64>();
        to.hold(rules::WEIGHTS_SUM, sum == 100);
        let overlap = |(index, place): (usize, &WeightedPlace)| {
            self.to[..index].iter().any(|other| {
                other.region == place.region
                    && (other.zone.is_none() || place.zone.is_none() || other.zone == place.zone)
            })
        };
        to.hold(rules::NO_OVERLAP, !self.to.iter().enumerate().any(overlap));
    }
}

impl WeightedPlace {
    fn check(&self, at: &mut At<'_>) {
        at.field("region").text(is_name(&self.region), &self.region, "a region");
        if let Some(zone) = &self.zone {
            at.field("zone").text(is_name(zone), zone, "a zone");
        }
        at.field("weight").number(Some(self.weight), 1..=100);
    }
}

impl HealthCheckSpec {
    fn check(&self, at: &mut At<'_>) {
        let is = |kinds: &[HealthCheckType]| kinds.contains(&self.kind);
        let (http, https, grpc) = (HealthCheckType::Http, HealthCheckType::Https, HealthCheckType::Grpc);
        let has_http_fields = self.path.is_some() || self.expected_statuses.is_some();
        at.hold(rules::HTTP_FIELDS, !has_http_fields || is(&[http, https]));
        at.hold(rules::HOST, self.host.is_none() || is(&[http, https, grpc]));
        at.hold(rules::CERTIFICATE, self.ca_certificate.is_none() || is(&[https]));
        at.hold(rules::GRPC_SERVICE, self.service.is_none() || is(&[grpc]));
        let interval =
            at.field("interval").duration(self.interval.as_ref(), rules::PROBE_INTERVAL, &PROBE_INTERVALS);
        let timeout =
            at.field("timeout").duration(self.timeout.as_ref(), rules::PROBE_TIMEOUT, &PROBE_TIMEOUTS);
        let longest = interval.unwrap_or(Duration::from_secs(5));
        at.hold(rules::TIMEOUT, timeout.is_none_or(|timeout| timeout <= longest));
        at.field("unhealthyThreshold").number(self.unhealthy_threshold, 1..=100);
        at.field("healthyThreshold").number(self.healthy_threshold, 1..=100);
        at.field("port").number(self.port.map(u32::from), 1..=65535);
        if let Some(path) = &self.path {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?%".contains(c);
            let is_path = path.starts_with('/') && path.len() <= 1024 && path.chars().all(allowed);
            at.field("path").text(is_path, path, "a path; it begins with / and is percent-encoded");
        }
        if let Some(host) = &self.host {
            at.field("host").text(is_word(host) && host.len() <= 253, host, "a DNS name");
        }
        if let Some(statuses) = &self.expected_statuses {
            let range = parse_statuses(statuses);
            let what = "a range of HTTP statuses; write it like 200-399 or \"204\"";
            at.field("expectedStatuses").text(range.is_some(), statuses, what);
            let rises = range.is_none_or(|(first, last)| first <= last);
            at.field("expectedStatuses").hold(rules::STATUSES, rises);
        }
        if let Some(pem) = &self.ca_certificate {
            let has = |mark: &str| pem.contains(&format!("-----{mark} CERTIFICATE-----"));
            at.field("caCertificate").hold(rules::PEM, has("BEGIN") && has("END") && pem.len() <= 32_768);
        }
        if let Some(service) = &self.service {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            let is_service = !service.is_empty() && service.len() <= 253 && service.chars().all(allowed);
            at.field("service").text(is_service, service, "the name of a gRPC service");
        }
    }
}

impl OutlierDetectionSpec {
    fn check(&self, at: &mut At<'_>) {
        at.field("consecutiveErrors").number(self.consecutive_errors, 1..=1000);
        at.field("interval").duration(self.interval.as_ref(), rules::SWEEP_INTERVAL, &PROBE_INTERVALS);
        let base = self.base_ejection_time.as_ref();
        let base = at.field("baseEjectionTime").duration(base, rules::EJECTION_TIME, &EJECTION_TIMES);
        let most = self.max_ejection_time.as_ref();
        let most = at.field("maxEjectionTime").duration(most, rules::EJECTION_TIME, &EJECTION_TIMES);
        let base = base.unwrap_or(Duration::from_secs(30));
        at.hold(rules::EJECTION_TIMES, most.is_none_or(|most| base <= most));
        at.field("maxEjectionPercent").number(self.max_ejection_percent, 0..=100);
    }
}

/// The first and last of the status codes that mean healthy; `None`: that is no such text.
pub(in crate::desired) fn parse_statuses(text: &str) -> Option<(u16, u16)> {
    let status = |text: &str| -> Option<u16> {
        let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|status| digits && (100..=599).contains(status))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((status(first)?, status(last)?))
}

/// A duration as the schema's pattern has it.
fn read_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let unit = &rest[digits..];
        let length = ["ms", "h", "m", "s"].into_iter().find(|name| unit.starts_with(name))?.len();
        if !(1..=5).contains(&digits) {
            return None;
        }
        rest = &unit[length..];
        if rest.is_empty() {
            return parse_duration(text).ok();
        }
    }
    None
}

/// The value of a node's label.
fn is_name(text: &str) -> bool {
    text.len() <= 63 && is_word(text)
}

/// Letters and digits, with something between them.
fn is_word(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    is_outer(text.chars().next()) && is_outer(text.chars().next_back()) && text.chars().all(inner)
}

/// A field that is looked at.
struct At<'a> {
    /// What was found to be wrong.
    found: &'a mut Vec<String>,
    path: String,
}

impl At<'_> {
    fn field(&mut self, name: &str) -> At<'_> {
        At { path: format!("{}.{name}", self.path), found: self.found }
    }

    fn claim(&mut self, holds: bool, message: &str) {
        if !holds {
            self.found.push(format!("{}: {message}", self.path));
        }
    }

    fn hold(&mut self, rule: Rule, holds: bool) {
        self.claim(holds, rule.message);
    }

    fn count(&mut self, count: usize, limits: RangeInclusive<usize>) {
        let message = format!("must have {} to {} items", limits.start(), limits.end());
        self.claim(limits.contains(&count), &message);
    }

    fn list<T>(&mut self, items: &[T], limits: RangeInclusive<usize>, check: impl Fn(&T, &mut At<'_>)) {
        self.count(items.len(), limits);
        for (index, item) in items.iter().enumerate() {
            check(item, &mut At { path: format!("{}[{index}]", self.path), found: self.found });
        }
    }

    fn once<T: Ord>(&mut self, items: impl Iterator<Item = T>, message: &str) {
        let mut seen = BTreeSet::new();
        let mut items = items;
        self.claim(items.all(|item| seen.insert(item)), message);
    }

    fn number(&mut self, number: Option<u32>, limits: RangeInclusive<u32>) {
        let message = format!("must be {} to {}", limits.start(), limits.end());
        self.claim(number.is_none_or(|number| limits.contains(&number)), &message);
    }

    /// The duration, where it is one that may be.
    fn duration(
        &mut self,
        text: Option<&String>,
        rule: Rule,
        limits: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let text = text?;
        let duration = read_duration(text);
        self.text(duration.is_some(), text, "a duration; write it like 500ms, 10s or 1m30s");
        self.hold(rule, duration.is_none_or(|duration| limits.contains(&duration)));
        duration.filter(|duration| limits.contains(duration))
    }

    fn place(&mut self, text: &str) {
        let (region, zone) = text.split_once('/').map_or((text, None), |(region, zone)| (region, Some(zone)));
        let is_place = is_name(region) && zone.is_none_or(is_name);
        self.text(is_place, text, "a place; write a region, or region/zone");
    }

    fn text(&mut self, holds: bool, text: &str, what: &str) {
        self.claim(holds, &format!("{text:?} is not {what}"));
    }
}
