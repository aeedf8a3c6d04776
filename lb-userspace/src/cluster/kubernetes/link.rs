//! The connection to one API server: its heartbeat, and the watches that are begun anew after an outage.
//!
//! The heartbeat has a connection of its own and says within seconds what a watch would notice after minutes.
//! When a server answers again, the watches' connections may hang in TCP's retransmission timers, so they are
//! dropped and made anew: what has changed is known at once.

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, StreamExt};
use hyper::Request;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, ListParams};
use kube::core::PartialObjectMeta;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout};

use super::access::Access;
use super::fault::Fault;
use super::follow::SILENCE;
use super::health::{Health, Moment};

/// How often an API server is asked whether it is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From heartbeat to heartbeat.
    pub(super) interval: Duration,
    /// The same while it does not answer.
    pub(super) retry: Duration,
    /// A heartbeat that takes longer has failed.
    pub(super) timeout: Duration,
    /// How often it is asked which optional kinds are served.
    pub(super) discovery: Duration,
    /// How often a gateway shows the others that it is there.
    pub(super) renewal: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            interval: seconds(2),
            retry: seconds(1),
            timeout: seconds(2),
            discovery: seconds(10),
            renewal: seconds(10),
        }
    }
}

/// What happened on a link.
pub(super) enum Happening<E> {
    /// A watch told something.
    Event(E),
    /// A heartbeat was answered, or was not: the health may be another.
    Beat,
    /// The watches are new ones: each will tell a whole list.
    Opened,
}

/// Makes the watches on a fresh client.
pub(super) type Open<E> = Box<dyn Fn(Client, &Version) -> BoxStream<'static, E> + Send + Sync>;

/// The connection to one API server.
pub(super) struct Link<E> {
    access: Access,
    pace: Pace,
    open: Open<E>,
    pub(super) health: Health,
    pub(super) version: Version,
    watches: Option<BoxStream<'static, E>>,
    /// A new client with its watches, on its way.
    opening: Option<BoxFuture<'static, Result<Client, Fault>>>,
    beat: BoxFuture<'static, Beat>,
}

/// An answered or failed heartbeat, and the client for the next one.
struct Beat {
    began: Instant,
    outcome: Result<Version, Fault>,
    client: Option<Client>,
}

impl<E: Send + 'static> Link<E> {
    pub(super) fn new(access: Access, pace: Pace, open: Open<E>) -> Self {
        Self {
            beat: beat(access.clone(), pace, Instant::now(), None).boxed(),
            health: Health::new(Moment::now()),
            version: Version::default(),
            watches: None,
            opening: None,
            access,
            pace,
            open,
        }
    }

    /// Goes on with other credentials or other watches: everything is made anew.
    pub(super) fn change(&mut self, access: Access, open: Open<E>) {
        self.open = open;
        self.beat = beat(access.clone(), self.pace, Instant::now(), None).boxed();
        self.watches = None;
        self.opening = None;
        self.access = access;
    }

    /// Waits for the next thing to happen. May be dropped and called again at any time.
    pub(super) async fn next(&mut self) -> Happening<E> {
        loop {
            tokio::select! {
                beat = &mut self.beat => {
                    self.take_beat(beat);
                    return Happening::Beat;
                }
                client = wait(&mut self.opening) => {
                    self.opening = None;
                    match client {
                        Ok(client) => {
                            self.watches = Some((self.open)(client, &self.version));
                            return Happening::Opened;
                        }
                        Err(fault) => self.health.failed(fault, Moment::now()),
                    }
                }
                event = told(&mut self.watches) => return Happening::Event(event),
            }
        }
    }

    fn take_beat(&mut self, done: Beat) {
        let now = Moment::now();
        let pause = match done.outcome {
            Ok(version) => {
                self.version = version;
                let was_away = self.health.answered(now);
                if (was_away || self.watches.is_none()) && self.opening.is_none() {
                    let access = self.access.clone();
                    self.opening = Some(async move { access.client(SILENCE).await }.boxed());
                }
                self.pace.interval
            }
            Err(fault) => {
                self.health.failed(fault, now);
                self.pace.retry
            }
        };
        let at = (done.began + pause).max(Instant::now());
        self.beat = beat(self.access.clone(), self.pace, at, done.client).boxed();
    }
}

async fn wait<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn told<E>(watches: &mut Option<BoxStream<'static, E>>) -> E {
    if let Some(watches) = watches
        && let Some(event) = watches.next().await
    {
        return event;
    }
    std::future::pending().await
}

/// One heartbeat, at a time to come. A client that failed is not used again: its connection may be dead.
async fn beat(access: Access, pace: Pace, at: Instant, client: Option<Client>) -> Beat {
    sleep_until(at).await;
    let asked = async {
        let client = match client {
            Some(client) => client,
            None => access.client(pace.timeout).await?,
        };
        let version = ask(&client).await.map_err(|error| Fault::of(&error))?;
        Ok((version, client))
    };
    match timeout(pace.timeout, asked).await {
        Ok(Ok((version, client))) => Beat { began: at, outcome: Ok(version), client: Some(client) },
        Ok(Err(fault)) => Beat { began: at, outcome: Err(fault), client: None },
        Err(_) => Beat { began: at, outcome: Err(Fault::timeout(pace.timeout)), client: None },
    }
}

/// Asks for the version, and for one Service: anybody may read the version, so only the second tells that the
/// credentials still serve. (A watch is not asked again for its credentials while it lasts.)
async fn ask(client: &Client) -> kube::Result<Version> {
    let request = Request::get("/version").body(Vec::new()).map_err(kube::Error::HttpError)?;
    let version = client.request(request).await?;
    let services: Api<PartialObjectMeta<Service>> = Api::all(client.clone());
    services.list(&ListParams::default().limit(1)).await?;
    Ok(version)
}

/// What an API server says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Version {
    #[serde(default)]
    major: String,
    #[serde(default)]
    minor: String,
    /// As people write it: `v1.36.3`.
    #[serde(default, rename = "gitVersion")]
    pub(super) text: String,
}

impl Version {
    /// Whether a list may be asked for in the form of a watch: on by default since Kubernetes 1.34.
    pub(super) fn streams_lists(&self) -> bool {
        self.numbers().is_some_and(|numbers| numbers >= (1, 34))
    }

    /// Major and minor number; some servers put a `+` behind the latter.
    pub(super) fn numbers(&self) -> Option<(u32, u32)> {
        let number = |text: &str| {
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().ok()
        };
        Some((number(&self.major)?, number(&self.minor)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_streamed_from_1_34_on() {
        for (major, minor, expected) in
            [("1", "33", false), ("1", "34", true), ("1", "36+", true), ("2", "0", true), ("", "", false)]
        {
            let version = Version { major: major.to_owned(), minor: minor.to_owned(), text: String::new() };
            assert_eq!(version.streams_lists(), expected, "{major}.{minor}");
        }
    }
}
