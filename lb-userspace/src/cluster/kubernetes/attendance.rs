//! Which gateways are there, as their Leases show. Pure: time comes in.
//!
//! Clocks of machines differ: a gateway is gone when we have seen its Lease unchanged for as long as that is good for,
//! by our own clock, and only while we could look.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;

/// On the Lease of a gateway: its name, as in the allocations' status.
pub(super) const GATEWAY_ANNOTATION: &str = "kanmon.dev/gateway";
/// How long a renewal of a gateway's Lease is good for.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(40);
/// A gateway that has been silent for so long is gone for good…
pub(super) const FORGOTTEN: Duration = Duration::from_secs(600);
/// …and one that never had a Lease after this: perhaps an older agent, which has none and would say it all again.
const NEVER_SEEN: Duration = Duration::from_secs(24 * 3600);
/// After a longer pause between two looks everybody has the whole time again: while we could not look, others could not
/// renew.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// The gateways that are not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Absences {
    /// Those that are gone, by name.
    pub(super) gone: BTreeMap<String, Absence>,
    /// Those that we have not seen renewing yet, nor for long enough to call them gone.
    pub(super) unsure: BTreeSet<String>,
}

/// A gateway that is not there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Absence {
    /// Whether it took everything away when it ended, or has been silent for [`FORGOTTEN`].
    pub(super) for_good: bool,
    /// Its Lease, as it is now; `None`: there is none.
    pub(super) lease: Option<ObjectMeta>,
}

/// The Lease of a gateway.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    gateway: String,
    metadata: ObjectMeta,
    renewed: Option<Timestamp>,
    good_for: Duration,
}

impl Seen {
    /// `None`: it is no gateway's own.
    pub(super) fn of(lease: Lease) -> Option<Self> {
        let gateway = lease.metadata.annotations.as_ref()?.get(GATEWAY_ANNOTATION)?.clone();
        let spec = lease.spec.unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let ObjectMeta { name, namespace, uid, resource_version, .. } = lease.metadata;
        Some(Self {
            gateway,
            metadata: ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() },
            renewed: spec.renew_time.map(|time| time.0),
            good_for: seconds.map_or(GOOD_FOR, Duration::from_secs),
        })
    }
}

/// What was seen of all gateways but our own, look by look.
#[derive(Debug)]
pub(super) struct Attendance {
    own: String,
    looked: Option<Instant>,
    records: BTreeMap<String, Record>,
}

#[derive(Debug, Default)]
struct Record {
    lease: Option<Seen>,
    /// How long it has been as it is, or missing.
    silent: Duration,
    /// Whether it was there and was deleted.
    left: bool,
    /// Whether we have seen it renewing.
    renewing: bool,
}

impl Record {
    /// What follows a look `passed` after the one that this is from; `None`: after a pause.
    fn next(self, lease: Option<Seen>, passed: Option<Duration>) -> Self {
        let silent = match passed {
            Some(passed) => self.silent + passed,
            None if self.absence().is_some() => self.silent,
            None => Duration::ZERO,
        };
        let Self { lease: before, left, renewing, .. } = self;
        match lease {
            Some(lease) if before.as_ref().is_some_and(|before| before.renewed == lease.renewed) => {
                Self { lease: Some(lease), silent, left: false, renewing }
            }
            Some(lease) => Self { lease: Some(lease), silent: Duration::ZERO, left: false, renewing: true },
            None => Self { left: left || before.is_some(), lease: None, silent, renewing: false },
        }
    }

    fn absence(&self) -> Option<Absence> {
        let good_for = self.lease.as_ref().map_or(GOOD_FOR, |lease| lease.good_for);
        let forgotten = if self.lease.is_some() { FORGOTTEN } else { NEVER_SEEN };
        (self.left || self.silent >= good_for).then(|| Absence {
            for_good: self.left || self.silent >= forgotten,
            lease: self.lease.as_ref().map(|lease| lease.metadata.clone()),
        })
    }
}

impl Attendance {
    /// Nothing has been seen. `own` is this gateway, which is there.
    pub(super) const fn new(own: String) -> Self {
        Self { own, looked: None, records: BTreeMap::new() }
    }

    /// Takes in the Leases that there are now. `expected` are the gateways that said something: they should have one.
    pub(super) fn look(&mut self, leases: Vec<Seen>, expected: &BTreeSet<String>, now: Instant) -> Absences {
        let passed = self.looked.map_or(Duration::ZERO, |last| now.duration_since(last));
        let passed = (passed <= LONGEST_PAUSE).then_some(passed);
        self.looked = Some(now);
        let mut leases: BTreeMap<String, Seen> =
            leases.into_iter().map(|lease| (lease.gateway.clone(), lease)).collect();
        let names: BTreeSet<String> = leases.keys().chain(expected).cloned().collect();
        let mut before = std::mem::take(&mut self.records);
        for name in names.into_iter().filter(|name| *name != self.own) {
            let lease = leases.remove(&name);
            let record = match before.remove(&name) {
                Some(record) => record.next(lease, passed),
                None => Record { lease, ..Record::default() },
            };
            self.records.insert(name, record);
        }
        let mut absences = Absences::default();
        for (name, record) in &self.records {
            if let Some(absence) = record.absence() {
                absences.gone.insert(name.clone(), absence);
            } else if !record.renewing {
                absences.unsure.insert(name.clone());
            }
        }
        absences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every ten seconds.
    struct Bed {
        attendance: Attendance,
        expected: BTreeSet<String>,
        now: Instant,
    }

    impl Bed {
        fn expecting(names: &[&str]) -> Self {
            Self {
                attendance: Attendance::new("own".to_owned()),
                expected: names.iter().map(|&name| name.to_owned()).collect(),
                now: Instant::now(),
            }
        }

        /// The last look of so many, with these Leases (gateway, second of the renewal) in all of them; gives
        /// `gateway` of those that are gone, with `!` for good.
        fn looks(&mut self, count: u32, leases: &[(&str, i64)]) -> Vec<String> {
            let mut absences = Absences::default();
            for _ in 0..count {
                self.now += Duration::from_secs(10);
                let leases = leases.iter().map(|&(gateway, second)| lease(gateway, second)).collect();
                absences = self.attendance.look(leases, &self.expected, self.now);
            }
            let mark = |absence: &Absence| if absence.for_good { "!" } else { "" };
            absences.gone.iter().map(|(name, absence)| format!("{name}{}", mark(absence))).collect()
        }
    }

    fn lease(gateway: &str, second: i64) -> Seen {
        let lease = serde_json::json!({
            "metadata": {"name": gateway, "annotations": {GATEWAY_ANNOTATION: gateway}},
            "spec": {"leaseDurationSeconds": 40,
                "renewTime": Timestamp::from_second(second).unwrap().to_string()}
        });
        Seen::of(serde_json::from_value(lease).unwrap()).unwrap()
    }

    #[test]
    fn a_gateway_is_gone_when_its_lease_was_seen_unchanged_for_long_whatever_time_is_in_it() {
        let mut bed = Bed::expecting(&["a"]);
        assert_eq!(bed.looks(4, &[("a", 9_000_000_000)]), [""; 0]);
        assert_eq!(bed.looks(1, &[("a", 9_000_000_000)]), ["a"]);
        assert_eq!(bed.looks(1, &[("a", 1)]), [""; 0], "it is back, by a clock that is late");
        assert_eq!(bed.looks(60, &[("a", 1)]), ["a!"], "nothing for ten minutes");
    }

    #[test]
    fn one_that_takes_everything_away_is_gone_for_good_at_once_and_may_come_back() {
        let mut bed = Bed::expecting(&["a", "b"]);
        bed.looks(1, &[("a", 1), ("b", 1)]);
        assert_eq!(bed.looks(1, &[("b", 2)]), ["a!"]);
        assert_eq!(bed.looks(1, &[("a", 2), ("b", 3)]), [""; 0]);
        bed.expected.remove("a");
        assert_eq!(bed.looks(1, &[("b", 4)]), ["a!"; 0], "nobody asks for it any more");
    }

    #[test]
    fn one_that_never_had_a_lease_is_waited_for_as_one_whose_lease_ran_out() {
        let mut bed = Bed::expecting(&["a", "own"]);
        assert_eq!(bed.looks(4, &[]), [""; 0]);
        assert_eq!(bed.looks(1, &[]), ["a"]);
        assert_eq!(bed.looks(600, &[]), ["a"], "an older agent has none, and serves");
        assert_eq!(bed.looks(9000, &[]), ["a!"]);
    }

    #[test]
    fn while_nobody_could_look_nobody_is_silent_and_then_everybody_has_the_whole_time_again() {
        let mut bed = Bed::expecting(&["a", "dead"]);
        bed.looks(4, &[("a", 1), ("dead", 1)]);
        assert_eq!(bed.looks(1, &[("a", 2), ("dead", 1)]), ["dead"]);
        bed.looks(3, &[("a", 2), ("dead", 1)]);
        bed.now += Duration::from_secs(3600);
        assert_eq!(bed.looks(4, &[("a", 2), ("dead", 1)]), ["dead"], "who was gone before stays gone");
        assert_eq!(bed.looks(1, &[("a", 2), ("dead", 1)]), ["a", "dead"]);
    }

    #[test]
    fn who_has_not_been_seen_renewing_may_be_gone() {
        let mut bed = Bed::expecting(&["a", "b"]);
        let unsure = |bed: &mut Bed, leases: &[(&str, i64)]| {
            bed.now += Duration::from_secs(10);
            let leases = leases.iter().map(|&(gateway, second)| lease(gateway, second)).collect();
            bed.attendance.look(leases, &bed.expected, bed.now).unsure.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(unsure(&mut bed, &[("a", 1)]), ["a", "b"]);
        assert_eq!(unsure(&mut bed, &[("a", 2)]), ["b"]);
        assert_eq!(unsure(&mut bed, &[("a", 2)]), ["b"]);
        bed.looks(1, &[("a", 2)]);
        assert_eq!(unsure(&mut bed, &[("a", 2)]), [""; 0], "b is gone");
    }
}
