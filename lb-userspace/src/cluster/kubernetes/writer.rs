//! Writes into one cluster, by one field manager: whatever is ordered and is not there yet.
//!
//! Orders are what is missing now; the watch shows when something has been written, and then it is ordered no longer.
//! What has been written is therefore not written again while the watch is slow, and what is refused rests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Error};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::access::Access;
use super::fault::{Fault, FaultKind};
use super::follow::SILENCE;
use super::mcs::{api_version, resource};
use super::notices::Notice;
use super::publish::{Action, Kind, Write};

/// How long the watch may take to show what has been written, before it is written again.
const SHOWN: Duration = Duration::from_secs(5);
/// What is refused is tried again after this…
const REFUSED: Duration = Duration::from_secs(15);
/// …and what a namespace on its way out refuses, after this: it is gone before.
const ENDING: Duration = Duration::from_secs(600);
/// A cluster that cannot be written to is tried again after this…
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// …then after twice as long, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The task that writes; it ends with this.
pub(super) struct Writer {
    orders: watch::Sender<Arc<Vec<Write>>>,
    conflicts: watch::Receiver<Arc<Vec<Notice>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Writer {
    /// Begins with nothing to write. `changed` is notified when there are other conflicts to tell.
    pub(super) fn start(access: Access, manager: String, changed: Arc<Notify>) -> Self {
        let (orders, ordered) = watch::channel(Arc::default());
        let (told, conflicts) = watch::channel(Arc::default());
        let state = State {
            access,
            client: None,
            manager,
            records: BTreeMap::new(),
            paused: None,
            pause: FIRST_PAUSE,
            told,
            changed,
        };
        Self { orders, conflicts, task: tokio::spawn(state.run(ordered)) }
    }

    /// Orders what is missing now, instead of what was missing before.
    pub(super) fn order(&self, writes: Vec<Write>) {
        self.orders.send_if_modified(|present| {
            let differs = **present != writes;
            if differs {
                *present = Arc::new(writes);
            }
            differs
        });
    }

    /// What was refused because another manager owns it, for Events.
    pub(super) fn conflicts(&self) -> Arc<Vec<Notice>> {
        self.conflicts.borrow().clone()
    }
}

/// An object and what is done to it.
type Key = (Kind, String, String, &'static str);

/// What came of a write.
struct Record {
    /// What was sent, without times.
    sent: Action,
    /// Whether it succeeded, so that only something else is sent before `until`.
    done: bool,
    until: Instant,
    conflict: Option<Notice>,
}

struct State {
    access: Access,
    client: Option<Client>,
    manager: String,
    records: BTreeMap<Key, Record>,
    /// The cluster is not asked for anything before this.
    paused: Option<Instant>,
    pause: Duration,
    told: watch::Sender<Arc<Vec<Notice>>>,
    changed: Arc<Notify>,
}

impl State {
    async fn run(mut self, mut ordered: watch::Receiver<Arc<Vec<Write>>>) {
        loop {
            let writes = ordered.borrow_and_update().clone();
            self.forget(&writes);
            let next = self.write_all(&writes, &ordered).await;
            self.tell();
            tokio::select! {
                changed = ordered.changed() => if changed.is_err() { return },
                () = until(next) => {}
            }
        }
    }

    /// What is ordered no longer has been shown, or is wanted no longer.
    fn forget(&mut self, writes: &[Write]) {
        let keys: BTreeSet<Key> = writes.iter().map(key_of).collect();
        self.records.retain(|key, _| keys.contains(key));
    }

    /// Writes what may be written now, until something else is ordered. When to try again.
    async fn write_all(
        &mut self,
        writes: &[Write],
        ordered: &watch::Receiver<Arc<Vec<Write>>>,
    ) -> Option<Instant> {
        if writes.is_empty() {
            return None;
        }
        if let Some(until) = self.paused.filter(|until| *until > Instant::now()) {
            return Some(until);
        }
        let mut next: Option<Instant> = None;
        for write in writes {
            // The rest may be wanted no longer, or be another's to write by now.
            if ordered.has_changed().unwrap_or(true) {
                break;
            }
            let until = match self.resting(write) {
                Some(until) => until,
                None => match self.write(write).await {
                    Ok(until) => until,
                    Err(fault) => return Some(self.rest(&fault)),
                },
            };
            next = next.into_iter().chain([until]).min();
        }
        self.paused = None;
        self.pause = FIRST_PAUSE;
        next
    }

    /// Until when a write waits for the watch, or for the end of what refuses it; `None`: it may be tried.
    fn resting(&self, write: &Write) -> Option<Instant> {
        let record = self.records.get(&key_of(write))?;
        let holds = record.until > Instant::now() && (!record.done || record.sent == timeless(&write.action));
        holds.then_some(record.until)
    }

    /// The whole cluster rests: it does not answer, or not as it should.
    fn rest(&mut self, fault: &Fault) -> Instant {
        if self.paused.is_none() {
            tracing::warn!("cannot write as {}, trying again: {}", self.manager, fault.message);
        }
        self.client = None;
        let until = Instant::now() + self.pause;
        self.paused = Some(until);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        until
    }

    /// Writes one thing. Until when it rests; an error where the next one would fare no better.
    async fn write(&mut self, write: &Write) -> Result<Instant, Fault> {
        let client = match &self.client {
            Some(client) => client,
            None => self.client.insert(self.access.client(SILENCE).await?),
        };
        let outcome = execute(client, write, &self.manager).await;
        let known = self.records.get(&key_of(write)).map(|record| record.done);
        let (pause, done, conflict) = match outcome {
            Ok(Outcome::Done | Outcome::Overtaken) => (SHOWN, true, None),
            Ok(Outcome::Owned(message)) => (REFUSED, false, Some(conflict(write, message))),
            Ok(Outcome::Ending) => (ENDING, false, None),
            Err(fault) if is_of_the_write(fault.kind) => {
                if known != Some(false) {
                    tracing::warn!("cannot {}: {}", describe(write), fault.message);
                }
                (REFUSED, false, None)
            }
            Err(fault) => return Err(fault),
        };
        let until = Instant::now() + pause;
        let record = Record { sent: timeless(&write.action), done, until, conflict };
        self.records.insert(key_of(write), record);
        Ok(until)
    }

    fn tell(&self) {
        let conflicts: Vec<Notice> =
            self.records.values().filter_map(|record| record.conflict.clone()).collect();
        let told = self.told.send_if_modified(|present| {
            let differs = **present != conflicts;
            if differs {
                *present = Arc::new(conflicts);
            }
            differs
        });
        if told {
            self.changed.notify_one();
        }
    }
}

/// What became of a write that the server took, or did not take for a reason that is no failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// The object is another than the one that was seen, or is gone: the watch will show.
    Overtaken,
    /// Another manager owns what was to be applied.
    Owned(String),
    /// Its namespace is on its way out.
    Ending,
}

/// Does one write.
pub(super) async fn execute(client: &Client, write: &Write, manager: &str) -> Result<Outcome, Fault> {
    let kind = resource(write.kind);
    let api: Api<DynamicObject> = if write.namespace.is_empty() {
        Api::all_with(client.clone(), &kind)
    } else {
        Api::namespaced_with(client.clone(), &write.namespace, &kind)
    };
    let post = PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() };
    let apply = PatchParams::apply(manager);
    let name = write.name.as_str();
    let done = match &write.action {
        Action::Create(value) => api.create(&post, &object(write, value)?).await.map(drop),
        Action::Replace(value) => api.replace(name, &post, &object(write, value)?).await.map(drop),
        Action::ApplyStatus(value) => {
            api.patch_status(name, &apply, &Patch::Apply(whole(write, value))).await.map(drop)
        }
        Action::Merge(value) => {
            let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
            api.patch(name, &params, &Patch::Merge(value)).await.map(drop)
        }
        Action::Delete { uid, resource_version } => {
            let uid = Some(uid.clone()).filter(|uid| !uid.is_empty());
            let preconditions = Preconditions { uid, resource_version: resource_version.clone() };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            api.delete(name, &params).await.map(drop)
        }
    };
    match done {
        Ok(()) => {
            tracing::debug!("did {}", describe(write));
            Ok(Outcome::Done)
        }
        Err(Error::Api(status)) if status.code == 409 => Ok(match &write.action {
            Action::ApplyStatus(_) => Outcome::Owned(status.message.clone()),
            _ => Outcome::Overtaken,
        }),
        Err(Error::Api(status)) if status.code == 404 && !matches!(write.action, Action::Create(_)) => {
            Ok(Outcome::Overtaken)
        }
        Err(Error::Api(status)) if status.code == 403 && is_ending(&status) => Ok(Outcome::Ending),
        Err(error) => Err(Fault::of(&error)),
    }
}

/// Whether a refusal says that the namespace is on its way out.
fn is_ending(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
        || status.message.contains("because it is being terminated")
}

/// Whether a fault is about what was written, and not about the cluster as a whole. With 5xx a server answers too when
/// a webhook for just these objects is broken, or when their namespace's quota cannot be counted.
const fn is_of_the_write(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::Forbidden | FaultKind::NotFound | FaultKind::ServerError | FaultKind::Other)
}

fn object(write: &Write, value: &Value) -> Result<DynamicObject, Fault> {
    serde_json::from_value(whole(write, value)).map_err(|error| Fault {
        kind: FaultKind::Other,
        message: format!("what is to be written is no object: {error}"),
    })
}

/// With kind, name and namespace.
fn whole(write: &Write, value: &Value) -> Value {
    let mut value = value.clone();
    value["apiVersion"] = api_version(write.kind).into();
    value["kind"] = write.kind.kind.into();
    value["metadata"]["name"] = write.name.clone().into();
    if !write.namespace.is_empty() {
        value["metadata"]["namespace"] = write.namespace.clone().into();
    }
    value
}

fn key_of(write: &Write) -> Key {
    (write.kind, write.namespace.clone(), write.name.clone(), write.action.verb())
}

/// A write for people.
pub(super) fn describe(write: &Write) -> String {
    let place = if write.namespace.is_empty() { String::new() } else { format!("{}/", write.namespace) };
    format!("{} {} {place}{}", write.action.verb(), write.kind.kind, write.name)
}

fn conflict(write: &Write, message: String) -> Notice {
    Notice {
        api_version: api_version(write.kind),
        kind: write.kind.kind.to_owned(),
        namespace: write.namespace.clone(),
        name: write.name.clone(),
        uid: String::new(),
        reason: "OwnedByOther".to_owned(),
        message: format!(
            "Kanmon does not write here, because another manager owns what it would write; let that one stop, or \
             remove its fields: {message}"
        ),
    }
}

/// What is written, without the times in it, which are new whenever it is decided anew.
fn timeless(action: &Action) -> Action {
    let bare = |value: &Value| {
        let mut value = value.clone();
        drop_times(&mut value);
        value
    };
    match action {
        Action::Create(value) => Action::Create(bare(value)),
        Action::Replace(value) => Action::Replace(bare(value)),
        Action::ApplyStatus(value) => Action::ApplyStatus(bare(value)),
        Action::Merge(value) => Action::Merge(bare(value)),
        Action::Delete { .. } => action.clone(),
    }
}

fn drop_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("lastTransitionTime");
            fields.remove("since");
            fields.values_mut().for_each(drop_times);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_times),
        _ => {}
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
