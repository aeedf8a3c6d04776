//! Events on objects: what is wrong with them, told where `kubectl describe` shows it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::watch;
use tokio::time::sleep;

use super::access::Access;
use super::fault::{Fault, FaultKind};
use super::follow::SILENCE;

/// At most one Event in this time, so that a thousand broken objects are no flood.
const PAUSE: Duration = Duration::from_millis(200);
/// After a failure it is tried again no sooner than this.
const RETRY: Duration = Duration::from_secs(10);
/// The longest note that an API server takes, in bytes.
const LONGEST: usize = 1024;

/// Something to tell about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Notice {
    pub(super) api_version: String,
    pub(super) kind: String,
    /// Empty for what is cluster-scoped.
    pub(super) namespace: String,
    pub(super) name: String,
    /// Empty if it is not known.
    pub(super) uid: String,
    /// One word.
    pub(super) reason: String,
    pub(super) message: String,
}

/// The notices that hold now.
pub(super) type Notices = Arc<Vec<Notice>>;

/// The task that writes them into one cluster; it ends with this.
pub(super) struct Notifier {
    notices: watch::Sender<Notices>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Notifier {
    /// Begins with nothing to tell; `instance` is who tells.
    pub(super) fn start(access: Access, instance: String) -> Self {
        let (notices, told) = watch::channel(Notices::default());
        Self { task: tokio::spawn(run(access, instance, told)), notices }
    }

    /// Tells these: each once for as long as it holds.
    pub(super) fn tell(&self, notices: Vec<Notice>) {
        self.notices.send_if_modified(|present| {
            let differs = **present != notices;
            if differs {
                *present = Arc::new(notices);
            }
            differs
        });
    }
}

async fn run(access: Access, instance: String, mut told: watch::Receiver<Notices>) {
    let mut done: HashSet<Notice> = HashSet::new();
    let mut recorder: Option<Recorder> = None;
    loop {
        let notices = told.borrow_and_update().clone();
        done.retain(|notice| notices.contains(notice));
        let Some(notice) = notices.iter().find(|notice| !done.contains(*notice)) else {
            if told.changed().await.is_err() {
                return;
            }
            continue;
        };
        match write(&access, &mut recorder, &instance, notice).await {
            Ok(()) => {
                done.insert(notice.clone());
                sleep(PAUSE).await;
            }
            // A refusal stays one: of a namespace on its way out, for example.
            Err(fault)
                if matches!(fault.kind, FaultKind::Forbidden | FaultKind::NotFound | FaultKind::Other) =>
            {
                tracing::debug!("no Event for {} {}: {}", notice.kind, notice.name, fault.message);
                done.insert(notice.clone());
                sleep(PAUSE).await;
            }
            Err(fault) => {
                tracing::debug!("cannot write Events: {}", fault.message);
                recorder = None;
                sleep(RETRY).await;
            }
        }
    }
}

async fn write(
    access: &Access,
    recorder: &mut Option<Recorder>,
    instance: &str,
    notice: &Notice,
) -> Result<(), Fault> {
    if let Some(known) = recorder {
        match publish(known, notice).await {
            // The Event that this one repeats is gone, with its namespace perhaps: a new one is made.
            Err(fault) if fault.kind == FaultKind::NotFound => *recorder = None,
            outcome => return outcome,
        }
    }
    let reporter =
        Reporter { controller: "kanmon.dev/gateway".to_owned(), instance: Some(instance.to_owned()) };
    publish(recorder.insert(Recorder::new(access.client(SILENCE).await?, reporter)), notice).await
}

/// Makes an Event, or counts on in the one that says the same of the object.
async fn publish(recorder: &Recorder, notice: &Notice) -> Result<(), Fault> {
    let reference = ObjectReference {
        api_version: Some(notice.api_version.clone()),
        kind: Some(notice.kind.clone()),
        namespace: Some(notice.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: Some(notice.name.clone()),
        uid: Some(notice.uid.clone()).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: notice.reason.clone(),
        note: Some(shorten(&notice.message).to_owned()),
        action: "Refuse".to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &reference).await.map_err(|error| Fault::of(&error))
}

/// As much of a text as an API server takes.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shorten("short"), "short");
        let long = format!("{}é", "x".repeat(LONGEST - 1));
        assert_eq!(shorten(&long).len(), LONGEST - 1);
    }
}
