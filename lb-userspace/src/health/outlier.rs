//! Outlier detection: a backend on which users' connections fail gets no new flows for a time. A state machine
//! without I/O and without a clock, with Envoy's meaning where the path shows what Envoy sees.
//!
//! Its driver says which services there are ([`Outliers::set_services`]), what the path saw
//! ([`Outliers::handle_observation`]) and when time has passed ([`Outliers::handle_timeout`], due at
//! [`Outliers::poll_timeout`]); then it asks [`Outliers::poll_decision`] until there is none.
//!
//! What differs from Envoy: an ejection ends at its own time, not at the next sweep, and no passing probe ends it
//! before, because a port that accepts probes and refuses users is what ejection is for.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::desired::{BackendId, OutlierDetection, Policy, Service, ServiceId};

/// How long the record of a backend that has gone is kept. It covers a list that is read anew or a Secret that is
/// replaced, and ends before networks usually give a dead pod's address to another (30 s and more).
const REMEMBERED: Duration = Duration::from_secs(30);

/// What the path saw of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The backend. What was seen of it counts in every service that uses it.
    pub backend: BackendId,
    /// The service whose connection it was.
    pub service: ServiceId,
    /// What was seen.
    pub sign: Sign,
}

/// What was seen of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// One connection was refused, or not answered.
    ConnectError,
    /// One connection was accepted.
    ConnectSuccess,
    /// The packet program's own count of connect errors since the last success. Reading the same number again
    /// says nothing new.
    ErrorsInARow(u32),
    /// The packet program's count has crossed its threshold, and it keeps new flows away until somebody decides.
    Tripped {
        /// The count.
        errors: u32,
    },
}

/// What was decided, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// New flows of the service should not go to the backend.
    Ejected {
        /// The service.
        service: ServiceId,
        /// The backend.
        backend: BackendId,
        /// For how long.
        ejection: Ejection,
    },
    /// It had enough errors, but as many endpoints of the service are ejected as may be. Its errors are counted
    /// from zero again. Told once within the policy's interval.
    Refused {
        /// The service.
        service: ServiceId,
        /// The backend.
        backend: BackendId,
        /// How many endpoints of the service may be ejected at once.
        limit: usize,
    },
    /// An ejection is over.
    Returned {
        /// The service.
        service: ServiceId,
        /// The backend.
        backend: BackendId,
        /// Why.
        why: Ending,
    },
    /// No service has the backend ejected: whatever keeps new flows away in the packet program should be reset,
    /// its count of errors included.
    Reset {
        /// The backend.
        backend: BackendId,
    },
}

/// Why an ejection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its time has come.
    Time,
    /// The service has no outlier detection any more.
    Policy,
    /// Fewer may be ejected than before, and this ejection would have been the first to end.
    Limit,
}

/// An ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// When it ends.
    pub until: Instant,
    /// The factor of its length: 1 for the first, one more for each that follows closely.
    pub number: u32,
}

/// Who is ejected at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ejections(BTreeMap<ServiceId, BTreeMap<BackendId, Ejection>>);

impl Ejections {
    /// The ejection of a service's backend.
    #[must_use]
    pub fn of(&self, service: &ServiceId, backend: &BackendId) -> Option<Ejection> {
        self.0.get(service)?.get(backend).copied()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (ServiceId, BackendId, Ejection)> {
        self.0.iter().flat_map(|(service, backends)| {
            backends.iter().map(move |(backend, ejection)| (*service, *backend, *ejection))
        })
    }
}

impl FromIterator<(ServiceId, BackendId, Ejection)> for Ejections {
    fn from_iter<I: IntoIterator<Item = (ServiceId, BackendId, Ejection)>>(ejections: I) -> Self {
        let mut all = Self::default();
        for (service, backend, ejection) in ejections {
            all.0.entry(service).or_default().insert(backend, ejection);
        }
        all
    }
}

/// The errors and ejections of all services with outlier detection.
#[derive(Debug, Default)]
pub struct Outliers {
    services: BTreeMap<ServiceId, Watched>,
    /// The services that watch a backend.
    watchers: HashMap<BackendId, Vec<ServiceId>>,
    records: BTreeMap<(ServiceId, BackendId), Record>,
    /// The packet program's counts as they were last told.
    told: HashMap<BackendId, u32>,
    decisions: VecDeque<Decision>,
}

#[derive(Debug)]
struct Watched {
    policy: OutlierDetection,
    /// Its endpoints; whether they take new flows.
    endpoints: BTreeMap<BackendId, bool>,
}

/// What is known of a backend in one service.
#[derive(Debug)]
struct Record {
    /// Errors in a row since the last success or decision.
    errors: u32,
    /// The latest ejection's factor, before its decay.
    number: u32,
    /// Since when it is ejected, or is not any more.
    since: Instant,
    /// Set while it is ejected.
    until: Option<Instant>,
    /// Set while the service has no such endpoint.
    gone: Option<Instant>,
    /// When it was last told that it may not be ejected.
    refused: Option<Instant>,
}

/// A [`Sign`], as it adds to the errors in a row.
#[derive(Clone, Copy)]
struct Errors {
    /// There was a success before them.
    anew: bool,
    more: u32,
    /// There were this many at least.
    at_least: u32,
}

impl Outliers {
    /// Replaces the services and their policies. Ejections follow a policy that changes; a backend that goes and
    /// comes back soon is not a new one.
    pub fn set_services<'a>(
        &mut self,
        now: Instant,
        services: impl IntoIterator<Item = (&'a Service, &'a Policy)>,
    ) {
        self.services.clear();
        let mut unwatched = BTreeSet::new();
        for (service, policy) in services {
            let Some(policy) = &policy.outlier_detection else {
                unwatched.insert(service.id);
                continue;
            };
            let endpoints = service.endpoints.iter();
            let endpoints =
                endpoints.map(|endpoint| (endpoint.backend, endpoint.takes_new_flows())).collect();
            self.services.insert(service.id, Watched { policy: policy.clone(), endpoints });
        }
        self.watchers.clear();
        for (id, watched) in &self.services {
            for backend in watched.endpoints.keys() {
                self.watchers.entry(*backend).or_default().push(*id);
            }
        }
        self.told.retain(|backend, _| self.watchers.contains_key(backend));
        self.end_all(|key, _| unwatched.contains(&key.0), Ending::Policy);
        self.records.retain(|key, _| !unwatched.contains(&key.0));
        self.keep_records(now);
        self.handle_timeout(now);
        self.keep_limits();
    }

    /// Learns what the path saw.
    pub fn handle_observation(&mut self, now: Instant, observation: &Observation) {
        // An error after an ejection's end counts, whoever notices the end first.
        self.handle_timeout(now);
        let Observation { backend, sign, .. } = *observation;
        let errors = self.errors(backend, sign);
        for service in self.watchers.get(&backend).cloned().unwrap_or_default() {
            self.judge(now, (service, backend), errors);
        }
        if matches!(sign, Sign::Tripped { .. }) && !self.is_ejected(&backend) {
            self.decisions.push_back(Decision::Reset { backend });
        }
    }

    /// When [`Self::handle_timeout`] has something to do next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.records.values().filter_map(|record| record.until).min()
    }

    /// Ends the ejections whose time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.end_all(|_, until| until <= now, Ending::Time);
    }

    /// The next decision to carry out or to tell, if there is one. Call it until there is none.
    pub fn poll_decision(&mut self) -> Option<Decision> {
        self.decisions.pop_front()
    }

    /// Who is ejected.
    #[must_use]
    pub fn ejections(&self) -> Ejections {
        let ejected = self.records.iter().filter(|(_, record)| record.gone.is_none());
        ejected
            .filter_map(|((service, backend), record)| {
                let ejection = Ejection { until: record.until?, number: record.number };
                Some((*service, *backend, ejection))
            })
            .collect()
    }

    fn errors(&mut self, backend: BackendId, sign: Sign) -> Errors {
        match sign {
            Sign::ConnectError => Errors { anew: false, more: 1, at_least: 0 },
            Sign::ConnectSuccess => Errors { anew: true, more: 0, at_least: 0 },
            Sign::ErrorsInARow(errors) => {
                let before = self.told.insert(backend, errors).unwrap_or_default();
                match errors.checked_sub(before) {
                    Some(more) => Errors { anew: errors == 0, more, at_least: 0 },
                    None => Errors { anew: true, more: errors, at_least: 0 },
                }
            }
            Sign::Tripped { errors } => {
                self.told.insert(backend, errors);
                Errors { anew: false, more: 1, at_least: errors }
            }
        }
    }

    fn judge(&mut self, now: Instant, key: (ServiceId, BackendId), errors: Errors) {
        let Some(watched) = self.services.get(&key.0) else { return };
        let policy = &watched.policy;
        let record = self.records.entry(key).or_insert_with(|| Record::new(now));
        // Connections that were on their way when it was ejected.
        if record.until.is_some() {
            return;
        }
        record.count(errors);
        if record.errors < policy.consecutive_errors.max(1) {
            if record.is_empty(now, policy) {
                self.records.remove(&key);
            }
            return;
        }
        record.errors = 0;
        let limit = watched.limit();
        let is_full = self.ejected(&key.0).count() >= limit;
        let Some(record) = self.records.get_mut(&key) else { return };
        let (service, backend) = key;
        if !is_full {
            let ejection = record.eject(now, policy);
            self.decisions.push_back(Decision::Ejected { service, backend, ejection });
        } else if record.refused.is_none_or(|last| now.saturating_duration_since(last) >= policy.interval) {
            record.refused = Some(now);
            self.decisions.push_back(Decision::Refused { service, backend, limit });
        }
    }

    /// Forgets who has long been gone, and lets a changed policy change ejections.
    fn keep_records(&mut self, now: Instant) {
        let services = &self.services;
        self.records.retain(|(service, backend), record| {
            let watched = services.get(service).filter(|watched| watched.endpoints.contains_key(backend));
            let forgotten = record.gone.is_some_and(|gone| now.saturating_duration_since(gone) >= REMEMBERED);
            if forgotten {
                return false;
            }
            let Some(Watched { policy, .. }) = watched else {
                record.gone.get_or_insert(now);
                return true;
            };
            record.gone = None;
            if record.until.is_some() {
                record.until = Some(record.since + length(record.number, policy));
            }
            !record.is_empty(now, policy)
        });
    }

    /// Ends ejections where there are more than may be.
    fn keep_limits(&mut self) {
        for service in self.services.keys().copied().collect::<Vec<_>>() {
            let limit = self.services[&service].limit();
            let mut ejected: Vec<_> = self.ejected(&service).collect();
            ejected.sort();
            let too_many = ejected.len().saturating_sub(limit);
            for (_, backend) in ejected.into_iter().take(too_many) {
                self.end_all(|key, _| *key == (service, backend), Ending::Limit);
            }
        }
    }

    /// A service's ejected endpoints that would get new flows otherwise, with the end of their ejection.
    fn ejected(&self, service: &ServiceId) -> impl Iterator<Item = (Instant, BackendId)> {
        let watched = self.services.get(service);
        let endpoints = watched.into_iter().flat_map(|watched| watched.endpoints.iter());
        let serving = endpoints.filter(|(_, takes_new_flows)| **takes_new_flows).map(|(backend, _)| *backend);
        let service = *service;
        serving.filter_map(move |backend| Some((self.records.get(&(service, backend))?.until?, backend)))
    }

    fn is_ejected(&self, backend: &BackendId) -> bool {
        let services = self.watchers.get(backend).into_iter().flatten();
        let mut records = services.filter_map(|service| self.records.get(&(*service, *backend)));
        records.any(|record| record.until.is_some())
    }

    /// Ends the ejections that `ends` tells by service, backend and end.
    fn end_all(&mut self, ends: impl Fn(&(ServiceId, BackendId), Instant) -> bool, why: Ending) {
        let mut returned = BTreeSet::new();
        for (key, record) in &mut self.records {
            let Some(until) = record.until.filter(|until| ends(key, *until)) else { continue };
            record.until = None;
            record.errors = 0;
            // Whatever the driver's delay is, the healthy time begins at the ejection's end.
            record.since = until;
            if record.gone.is_none() {
                let (service, backend) = *key;
                self.decisions.push_back(Decision::Returned { service, backend, why });
                returned.insert(backend);
            }
        }
        for backend in returned {
            if !self.is_ejected(&backend) {
                self.decisions.push_back(Decision::Reset { backend });
            }
        }
    }
}

impl Watched {
    /// How many endpoints may be ejected at once: of those that take new flows, wherever they are, the percentage,
    /// but one at least, and never all.
    fn limit(&self) -> usize {
        let endpoints = self.endpoints.values().filter(|takes_new_flows| **takes_new_flows).count();
        let percent = usize::try_from(self.policy.max_ejection_percent.min(100)).unwrap_or(100);
        endpoints.saturating_sub(1).min((endpoints * percent / 100).max(1))
    }
}

impl Record {
    fn new(now: Instant) -> Self {
        Self { errors: 0, number: 0, since: now, until: None, gone: None, refused: None }
    }

    fn count(&mut self, errors: Errors) {
        let before = if errors.anew { 0 } else { self.errors };
        self.errors = before.saturating_add(errors.more).max(errors.at_least);
    }

    fn eject(&mut self, now: Instant, policy: &OutlierDetection) -> Ejection {
        // Beyond what the longest ejection needs the factor would only delay its own decay.
        let highest =
            policy.max_ejection_time.as_nanos().div_ceil(policy.base_ejection_time.as_nanos().max(1));
        let highest = u32::try_from(highest).unwrap_or(u32::MAX).max(1);
        self.number = (self.decayed(now, policy) + 1).min(highest);
        let until = now + length(self.number, policy);
        self.since = now;
        self.until = Some(until);
        Ejection { until, number: self.number }
    }

    /// The factor, less one for each whole interval since the ejection's end.
    fn decayed(&self, now: Instant, policy: &OutlierDetection) -> u32 {
        let healthy = now.saturating_duration_since(self.since);
        let intervals = healthy.as_nanos() / policy.interval.as_nanos().max(1);
        self.number.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX))
    }

    /// Whether nothing would be lost with it.
    fn is_empty(&self, now: Instant, policy: &OutlierDetection) -> bool {
        let just_refused =
            self.refused.is_some_and(|last| now.saturating_duration_since(last) < policy.interval);
        self.until.is_none() && self.errors == 0 && self.decayed(now, policy) == 0 && !just_refused
    }
}

fn length(number: u32, policy: &OutlierDetection) -> Duration {
    policy.base_ejection_time.saturating_mul(number).min(policy.max_ejection_time)
}

#[cfg(test)]
#[path = "outlier_tests.rs"]
mod tests;
