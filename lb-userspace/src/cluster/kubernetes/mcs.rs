//! Follows ServiceExports and ServiceImports. Which version of them a cluster serves, if any, may change while it is
//! connected: somebody installs their definitions, or removes them.

use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, select, unfold};
use hyper::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::{Client, Error};
use tokio::time::{Instant, sleep_until};

use super::fault::Fault;
use super::follow::{Selector, follow};
use super::objects::MemberEvent;
use super::publish::{Kind, service_export, service_import};
use crate::desired::mcs::{GROUP, VERSIONS};

/// How soon a question that was not answered is asked again: an API server that just started refuses it for a moment.
const AGAIN: Duration = Duration::from_millis(500);

/// Both kinds, in the version that is served. It is asked every `pause` which one that is.
pub(super) fn follow_mcs(
    client: Client,
    streaming: bool,
    pause: Duration,
) -> BoxStream<'static, MemberEvent> {
    let state = State { client, streaming, pause, known: None, watches: None, ask_at: Instant::now() };
    unfold(state, |mut state| async move {
        let event = state.next().await;
        Some((event, state))
    })
    .boxed()
}

struct State {
    client: Client,
    streaming: bool,
    pause: Duration,
    /// What was told last; `None`: nothing yet.
    known: Option<Option<&'static str>>,
    watches: Option<BoxStream<'static, MemberEvent>>,
    ask_at: Instant,
}

impl State {
    async fn next(&mut self) -> MemberEvent {
        loop {
            tokio::select! {
                () = sleep_until(self.ask_at) => {
                    let answer = served_version(&self.client).await;
                    let pause = if answer.is_ok() { self.pause } else { self.pause.min(AGAIN) };
                    self.ask_at = Instant::now() + pause;
                    match answer {
                        Ok(version) if self.known != Some(version) => {
                            self.known = Some(version);
                            self.watches = version.map(|version| self.open(version));
                            return MemberEvent::Mcs(version);
                        }
                        Ok(_) => {}
                        Err(error) => return MemberEvent::McsUnknown(Fault::of(&error)),
                    }
                }
                event = told(&mut self.watches) => return event,
            }
        }
    }

    fn open(&self, version: &'static str) -> BoxStream<'static, MemberEvent> {
        let watch = |kind: Kind| {
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource(kind));
            follow(api, Selector::default(), self.streaming)
        };
        let exports = watch(service_export(version)).map(MemberEvent::Export);
        select(exports.boxed(), watch(service_import(version)).map(MemberEvent::Import).boxed()).boxed()
    }
}

async fn told(watches: &mut Option<BoxStream<'static, MemberEvent>>) -> MemberEvent {
    if let Some(watches) = watches
        && let Some(event) = watches.next().await
    {
        return event;
    }
    std::future::pending().await
}

/// The version of `multicluster.x-k8s.io` that works and is served; `None`: none is. Whoever is refused an answer does
/// not know.
pub(super) async fn served_version(client: &Client) -> kube::Result<Option<&'static str>> {
    let request = Request::get(format!("/apis/{GROUP}")).body(Vec::new()).map_err(Error::HttpError)?;
    match client.request::<APIGroup>(request).await {
        Ok(group) => {
            let served = |version: &&str| group.versions.iter().any(|served| served.version == *version);
            Ok(VERSIONS.into_iter().find(served))
        }
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// A kind as kube addresses it.
pub(super) fn resource(kind: Kind) -> ApiResource {
    ApiResource {
        group: kind.group.to_owned(),
        version: kind.version.to_owned(),
        api_version: api_version(kind),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    }
}

/// As objects say it: `v1`, `multicluster.x-k8s.io/v1beta1`.
pub(super) fn api_version(kind: Kind) -> String {
    if kind.group.is_empty() { kind.version.to_owned() } else { format!("{}/{}", kind.group, kind.version) }
}
