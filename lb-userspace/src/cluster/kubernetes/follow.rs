//! Follows one kind of objects of an API server, for as long as somebody listens.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::stream::{BoxStream, Stream, StreamExt, unfold};
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use super::fault::{Fault, refuses_streaming};

/// Pauses between tries: from this…
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// …to this, each with as much again at random at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A watch is begun anew after this many seconds, so that a connection that died in silence is noticed by the
/// watch itself too.
const WATCH_SECONDS: u32 = 30;
/// A server that says nothing for so long is not listened to any longer: a little more than a watch's length.
pub(super) const SILENCE: Duration = Duration::from_secs(40);

/// What a watch tells.
pub(super) type Told<K> = Result<Event<K>, Fault>;

/// Follows the objects of `api` that the selector (labels, then fields) chooses. Failures are told and followed
/// by a pause; the stream has no end.
///
/// `streaming` asks for the first list in the form of a watch, which costs the server least (Kubernetes ≥ 1.34);
/// one that refuses is asked in the old way.
pub(super) fn follow<K>(
    api: Api<K>,
    selector: Selector,
    streaming: bool,
) -> impl Stream<Item = Told<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let follower = Follower {
        watch: open(&api, &selector, streaming),
        api,
        selector,
        streaming,
        pauses: pauses(),
        pause: None,
    };
    unfold(follower, |mut follower| async move {
        let told = follower.next().await;
        Some((told, follower))
    })
}

/// Which objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

type Watch<K> = Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>;

struct Follower<K> {
    api: Api<K>,
    selector: Selector,
    streaming: bool,
    watch: Watch<K>,
    pauses: ExponentialBackoff,
    /// How long to wait before the next try.
    pause: Option<Duration>,
}

impl<K> Follower<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    async fn next(&mut self) -> Told<K> {
        loop {
            if let Some(pause) = self.pause.take() {
                tokio::time::sleep(pause).await;
            }
            match self.watch.next().await {
                // That it begins says nothing yet.
                Some(Ok(Event::Init)) => return Ok(Event::Init),
                Some(Ok(event)) => {
                    self.pauses = pauses();
                    return Ok(event);
                }
                Some(Err(error)) if self.streaming && refuses_streaming(&error) => {
                    self.streaming = false;
                    self.watch = open(&self.api, &self.selector, false);
                }
                Some(Err(error)) => {
                    self.pause = self.pauses.next();
                    return Err(Fault::of_watch(&error));
                }
                None => self.watch = open(&self.api, &self.selector, self.streaming),
            }
        }
    }
}

fn open<K>(api: &Api<K>, selector: &Selector, streaming: bool) -> Watch<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut config = Config::default().timeout(WATCH_SECONDS);
    config.label_selector.clone_from(&selector.labels);
    config.field_selector.clone_from(&selector.fields);
    let config = if streaming { config.streaming_lists() } else { config };
    watcher(api.clone(), config).boxed()
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Asks again and again until there is an answer; then the stream waits for ever.
pub(super) fn once<T, F>(ask: impl Fn() -> F + Send + 'static) -> BoxStream<'static, T>
where
    T: Send + 'static,
    F: Future<Output = Option<T>> + Send,
{
    let answer = async move {
        let mut pauses = pauses();
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        }
    };
    futures::stream::once(answer).boxed()
}
