//! A cluster that is published to: the Lease that says who does, and the tasks that write.

use std::sync::Arc;

use tokio::sync::Notify;

use super::access::Access;
use super::lease::{self, Lease, Presence};
use super::notices::{Notice, Notifier};
use super::publish::{Write, field_manager};
use super::writer::Writer;

/// Who publishes.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    /// In whose name.
    pub(super) cluster_set_id: String,
    /// This agent among others.
    pub(super) instance: String,
    /// The gateway: its Node, or host.
    pub(super) gateway: String,
    /// Notified when there is something to decide anew.
    pub(super) changed: Arc<Notify>,
    /// Held until all Leases were let go of.
    pub(super) presence: Presence,
}

/// One cluster; nothing is written after this.
pub(super) struct Target {
    access: Access,
    lease: Lease,
    writer: Writer,
    notifier: Notifier,
    /// Whether it is being cleaned, so that its Lease goes too.
    pub(super) ending: bool,
}

impl Target {
    /// Begins to try for the Lease. `place` is the cluster, for people.
    pub(super) fn start(access: &Access, place: &str, publisher: &Publisher) -> Self {
        let Publisher { cluster_set_id, instance, changed, presence, .. } = publisher;
        let name = lease::publishing_name(cluster_set_id);
        Self {
            lease: Lease::hold(
                access.clone(),
                name,
                instance.clone(),
                place.to_owned(),
                changed.clone(),
                presence.clone(),
            ),
            writer: Writer::start(access.clone(), field_manager(cluster_set_id), changed.clone()),
            notifier: Notifier::start(access.clone(), instance.clone()),
            access: access.clone(),
            ending: false,
        }
    }

    /// Whether it is reached by these credentials.
    pub(super) fn uses(&self, access: &Access) -> bool {
        self.access == *access
    }

    /// Whether this agent is the one that writes.
    pub(super) fn leads(&self) -> bool {
        self.lease.is_held()
    }

    /// What is missing there, and what is to be told.
    pub(super) fn order(&self, writes: Vec<Write>, notices: Vec<Notice>) {
        self.writer.order(writes);
        self.notifier.tell(notices);
    }

    /// What could not be written because another manager owns it.
    pub(super) fn conflicts(&self) -> Arc<Vec<Notice>> {
        self.writer.conflicts()
    }

    /// Ends; a cluster that was cleaned loses its Lease.
    pub(super) fn end(self) {
        if self.ending {
            self.lease.remove();
        }
    }
}
