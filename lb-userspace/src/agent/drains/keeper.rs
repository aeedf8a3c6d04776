//! Who changes what is drained by hand: one change at a time, kept before it is in force.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Drains, Name, answer, store};
use crate::agent::published::Published;
use crate::agent::sweep::Pass;
use crate::desired::Desired;
use crate::status::protocol::Change;
use crate::status::view;

/// How long whoever drains something waits until packets go by it: a few grace periods, and a busy machine.
const IN_FORCE: Duration = Duration::from_secs(5);

/// The way for others than the loop to what is drained.
pub(in crate::agent) struct Keeper {
    directory: PathBuf,
    /// Held during a change.
    turn: Mutex<()>,
    drains: watch::Sender<Arc<Drains>>,
    /// What packets go by.
    in_force: watch::Receiver<Arc<Drains>>,
}

/// What became of a change.
pub(super) struct Done {
    pub(super) names: BTreeSet<Name>,
    pub(super) drained: bool,
    /// Whether it was otherwise before.
    pub(super) changed: bool,
    /// All that is drained since.
    wanted: Arc<Drains>,
}

impl Keeper {
    pub(in crate::agent) fn new(
        directory: PathBuf,
        drains: watch::Sender<Arc<Drains>>,
        in_force: watch::Receiver<Arc<Drains>>,
    ) -> Self {
        Self { directory, turn: Mutex::default(), drains, in_force }
    }

    /// Does as it is told, and waits until packets go by it. To be called within the runtime, on a thread that may
    /// block.
    ///
    /// # Errors
    /// As of [`Self::change`].
    pub(in crate::agent) fn carry_out(
        &self,
        change: &Change,
        published: &watch::Receiver<Arc<Published>>,
        passes: &watch::Receiver<Arc<Pass>>,
    ) -> Result<view::Drained, String> {
        let (drained, what) = match change {
            Change::Drain(named) => (true, &named.what),
            Change::Undrain(named) => (false, &named.what),
        };
        let before = published.borrow().clone();
        let endpoints = before.desired.services.values().flat_map(|service| &service.endpoints);
        let clusters = before.clusters.keys().chain(endpoints.map(|endpoint| &endpoint.cluster));
        let clusters = clusters.map(String::as_str).collect();
        let done = self.change(what, drained, &before.desired, &clusters)?;
        let in_force = self.wait(&done, IN_FORCE);
        let after = published.borrow().clone();
        Ok(answer(&done, in_force, &after, &passes.borrow()))
    }

    /// Drains or undrains what a person named. `clusters` are the names of all that are known.
    ///
    /// # Errors
    /// There is no such thing, or it cannot be kept over a restart. Nothing has changed then.
    pub(super) fn change(
        &self,
        what: &str,
        drained: bool,
        desired: &Desired,
        clusters: &BTreeSet<&str>,
    ) -> Result<Done, String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut drains = Drains::clone(&self.drains.borrow());
        let named = drains.find(what, desired, clusters)?;
        let changed = if drained {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            drains.drain(&named, &now)
        } else {
            drains.undrain(&named)
        };
        if changed {
            store::store(&self.directory, &drains).map_err(|error| {
                format!("it could not be kept over a restart, so nothing changes: {error:#}")
            })?;
            for name in named.keys() {
                tracing::info!("{name} is {} by hand", if drained { "drained" } else { "undrained" });
            }
        }
        let wanted = Arc::new(drains);
        if changed {
            self.drains.send_replace(wanted.clone());
        }
        Ok(Done { names: named.into_keys().collect(), drained, changed, wanted })
    }

    /// Waits until packets go by a change; whether they do in time.
    pub(super) fn wait(&self, done: &Done, patience: Duration) -> bool {
        let mut in_force = self.in_force.clone();
        let goes_by =
            |drains: &Arc<Drains>| done.names.iter().all(|name| drains.get(name) == done.wanted.get(name));
        let wait = timeout(patience, in_force.wait_for(goes_by));
        matches!(Handle::current().block_on(wait), Ok(Ok(_)))
    }
}
