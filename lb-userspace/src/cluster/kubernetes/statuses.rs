//! Which statuses of MemberClusters are written when. Pure: time comes in.
//!
//! Gateways with different selectors have different Leases, and where their selectors overlap both write the status
//! of a member. What they find may differ, and then the one must not write for no other reason than that the other
//! has: they would go on without end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::desired::{MemberCluster, MemberClusterStatus};

/// What somebody else wrote over ours stays for this long.
const AGAIN: Duration = Duration::from_secs(300);

/// What this gateway last wrote, by name of the MemberCluster.
#[derive(Debug, Default)]
pub(super) struct Statuses(BTreeMap<String, Written>);

#[derive(Debug)]
struct Written {
    /// Of the object.
    uid: Option<String>,
    status: MemberClusterStatus,
    /// Whether it has been there since.
    seen: bool,
    /// When it was last there or, before that, when it was first to be written.
    at: Instant,
    /// Whether something else is there now.
    differs: bool,
}

impl Statuses {
    /// What is to be written into this object, if anything; `status` is what it should say. What is to be written
    /// stays the same until it is there.
    pub(super) fn judge(
        &mut self,
        object: &MemberCluster,
        status: MemberClusterStatus,
        now: Instant,
    ) -> Option<MemberClusterStatus> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let is_there = object.status.as_ref() == Some(&status);
        let before = self.0.get_mut(&name).filter(|written| {
            written.uid == object.metadata.uid && without_times(&written.status) == without_times(&status)
        });
        match before {
            Some(written) if !is_there && now < written.at + AGAIN => {
                written.differs = true;
                (!written.seen).then(|| written.status.clone())
            }
            _ => {
                let ordered = (!is_there).then(|| status.clone());
                let uid = object.metadata.uid.clone();
                self.0.insert(name, Written { uid, status, seen: is_there, at: now, differs: !is_there });
                ordered
            }
        }
    }

    /// Keeps what is known of these objects only: those that are judged.
    pub(super) fn forget_others(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| exists(name));
    }

    /// When something is to be written that was written over.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter(|written| written.differs).map(|written| written.at + AGAIN).min()
    }
}

/// What a status says, whenever it began to.
fn without_times(status: &MemberClusterStatus) -> MemberClusterStatus {
    let mut status = status.clone();
    for condition in &mut status.conditions {
        condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A status with one condition, since a second.
    fn status(reason: &str, since: i64) -> MemberClusterStatus {
        let time = Timestamp::from_second(since).unwrap();
        serde_json::from_value(
            json!({"conditions": [{"type": "Connected", "status": "True", "reason": reason,
            "message": "", "lastTransitionTime": time.to_string()}]}),
        )
        .unwrap()
    }

    fn object(uid: &str, status: Option<MemberClusterStatus>) -> MemberCluster {
        let json = json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
            "metadata": {"name": "a", "uid": uid}, "spec": {"source": {"local": {}}}});
        MemberCluster { status, ..serde_json::from_value(json).unwrap() }
    }

    /// A gateway cluster with one MemberCluster, and gateways that write its status.
    struct World {
        object: MemberCluster,
        start: Instant,
        writes: usize,
    }

    impl World {
        fn new() -> Self {
            Self { object: object("u", None), start: Instant::now(), writes: 0 }
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        /// A gateway that finds this looks at the object, and its order is carried out.
        fn look(&mut self, statuses: &mut Statuses, reason: &str, second: u64) {
            let now = self.at(second);
            let since = self
                .object
                .status
                .as_ref()
                .map_or(1, |status| status.conditions[0].last_transition_time.0.as_second());
            if let Some(ordered) = statuses.judge(&self.object, status(reason, since), now) {
                self.object.status = Some(ordered);
                self.writes += 1;
            }
        }
    }

    #[test]
    fn two_gateways_that_find_different_things_do_not_write_over_each_other_without_end() {
        let mut world = World::new();
        let (mut one, mut other) = (Statuses::default(), Statuses::default());
        for second in 0..200 {
            world.look(&mut one, "Connected", second);
            world.look(&mut one, "Connected", second);
            world.look(&mut other, "Timeout", second);
            world.look(&mut other, "Timeout", second);
        }
        assert_eq!(world.writes, 2);
        assert_eq!(one.next(), Some(world.at(300)));
        world.look(&mut one, "Connected", 300);
        assert_eq!(
            world.object.status,
            Some(status("Connected", 1)),
            "what was written over is written again"
        );
    }

    #[test]
    fn what_a_gateway_finds_anew_it_writes_at_once() {
        let mut world = World::new();
        let mut statuses = Statuses::default();
        for (second, reason) in
            [(0, "Connected"), (1, "Connected"), (2, "Timeout"), (3, "Timeout"), (4, "Connected")]
        {
            world.look(&mut statuses, reason, second);
        }
        assert_eq!(world.writes, 3);
        assert_eq!(world.object.status, Some(status("Connected", 1)));
    }

    #[test]
    fn an_order_stays_the_same_until_it_is_carried_out_and_an_object_made_anew_needs_another() {
        let mut statuses = Statuses::default();
        let start = Instant::now();
        let first = statuses.judge(&object("u", None), status("Connected", 7), start);
        assert_eq!(first, Some(status("Connected", 7)));
        let again =
            statuses.judge(&object("u", None), status("Connected", 9), start + Duration::from_secs(2));
        assert_eq!(again, first, "its time is not another each time");
        let there = object("u", first);
        assert_eq!(statuses.judge(&there, status("Connected", 7), start + Duration::from_secs(3)), None);
        assert_eq!(statuses.next(), None);
        let anew = statuses.judge(&object("v", None), status("Connected", 9), start + Duration::from_secs(4));
        assert_eq!(anew, Some(status("Connected", 9)));
        statuses.forget_others(|_| false);
        assert_eq!(statuses.next(), None);
    }
}
