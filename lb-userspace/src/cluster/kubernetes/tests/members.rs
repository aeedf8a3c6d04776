//! One member, and everything that an API server can do to it.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::super::access::Access;
use super::super::kubeconfig::{self, Policy};
use super::super::member::{Follow, Member, Order, View};
use super::fake::{FakeApi, Mode};
use super::writing::until;
use super::{PATIENCE, SERVICES, SLICES, pace, service};

struct Connected {
    member: Member,
    changed: Arc<Notify>,
}

impl Connected {
    fn to(access: Access) -> Self {
        let changed = Arc::new(Notify::new());
        let order = Order { access, follow: Follow::Everything };
        Self { member: Member::start(order, "set", pace(), changed.clone()), changed }
    }

    /// Waits for a view like this; each view on the way has to be `always` so.
    async fn until_always(
        &self,
        what: &str,
        always: impl Fn(&View) -> bool,
        wanted: impl Fn(&View) -> bool,
    ) -> View {
        let found = timeout(PATIENCE, async {
            loop {
                let view = self.member.view();
                assert!(always(&view), "waiting for {what}: {view:?}");
                if wanted(&view) {
                    return view;
                }
                self.changed.notified().await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("no {what}: {:?}", self.member.view()))
    }

    async fn until(&self, what: &str, wanted: impl Fn(&View) -> bool) -> View {
        self.until_always(what, |_| true, wanted).await
    }
}

fn services(view: &View) -> Vec<String> {
    let objects = view.objects.iter().flat_map(|objects| &objects.services);
    objects.map(|service| service.metadata.name.clone().unwrap()).collect()
}

fn reason(view: &View) -> Option<&'static str> {
    (view.health.connected == Some(false)).then(|| view.health.fault.as_ref().unwrap().kind.name())
}

/// A server with a Service, and a member that knows it.
async fn synced() -> (FakeApi, Connected) {
    let api = FakeApi::start().await;
    api.put(SERVICES, service("web"));
    let member = Connected::to(api.access());
    let view = member.until("sync", |view| view.synced).await;
    assert_eq!((services(&view), view.health.connected), (vec!["web".to_owned()], Some(true)));
    (api, member)
}

#[tokio::test]
async fn a_member_is_read_and_followed() {
    let (api, member) = synced().await;
    let view = member.until("rights", |view| view.missing.is_some()).await;
    assert_eq!((view.uid.as_deref(), view.version.as_str()), (Some("a-cluster"), "v1.33.0"));
    assert_eq!(view.missing, Some(vec![]));
    api.put(SERVICES, service("api"));
    member.until("an addition", |view| services(view) == ["api", "web"]).await;
    api.remove(SERVICES, "web");
    member.until("a removal", |view| services(view) == ["api"]).await;
}

#[tokio::test]
async fn whatever_an_api_server_answers_endpoints_stay_and_it_is_caught_up_with_afterwards() {
    for (code, word) in [
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (429, "TooManyRequests"),
        (500, "ServerError"),
        (503, "ServerError"),
    ] {
        let (api, member) = synced().await;
        api.answer(Mode::Refuse(code));
        let stays = |view: &View| services(view).contains(&"web".to_owned());
        let view = member.until_always("an outage", stays, |view| reason(view).is_some()).await;
        assert_eq!(reason(&view), Some(word));
        api.put(SERVICES, service("later"));
        api.answer(Mode::Serve);
        let back =
            |view: &View| view.health.connected == Some(true) && view.synced && services(view).len() == 2;
        member.until_always("recovery", stays, back).await;
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_is_noticed_and_caught_up_with() {
    let (api, member) = synced().await;
    api.answer(Mode::Hang);
    let stays = |view: &View| services(view).contains(&"web".to_owned());
    let view = member.until_always("an outage", stays, |view| reason(view).is_some()).await;
    assert_eq!(reason(&view), Some("Timeout"));
    api.put(SERVICES, service("later"));
    api.answer(Mode::Serve);
    member.until_always("recovery", stays, |view| reason(view).is_none() && services(view).len() == 2).await;
}

#[tokio::test]
async fn a_server_that_is_gone_and_comes_back_with_other_objects_is_caught_up_with() {
    let (mut api, member) = synced().await;
    api.stop();
    let view = member.until("an outage", |view| reason(view).is_some()).await;
    assert_eq!((reason(&view), services(&view)), (Some("Unreachable"), vec!["web".to_owned()]));
    api.remove(SERVICES, "web");
    api.put(SERVICES, service("api"));
    api.restart().await;
    member.until_always("recovery", |view| services(view).len() == 1, |view| services(view) == ["api"]).await;
}

#[tokio::test]
async fn an_outage_is_not_forgotten_by_a_server_that_never_answered() {
    let mut api = FakeApi::start().await;
    api.put(SERVICES, service("web"));
    api.stop();
    let member = Connected::to(api.access());
    let view = member.until("an outage", |view| reason(view).is_some()).await;
    assert_eq!((view.objects, view.synced), (None, false));
    api.restart().await;
    member.until("sync", |view| view.synced && services(view) == ["web"]).await;
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_told_as_such() {
    let api = FakeApi::start().await;
    let text = format!(
        "contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"https://{}\"}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n",
        api.address()
    );
    let access = kubeconfig::check(&text, Policy::default()).unwrap();
    let access = Access::Member { kubeconfig: Box::new(access.kubeconfig), hash: access.content_hash };
    let member = Connected::to(access);
    let view = member.until("an outage", |view| reason(view).is_some()).await;
    assert_eq!(reason(&view), Some("TLS"), "{:?}", view.health);
}

#[tokio::test]
async fn a_compaction_is_caught_up_with_by_a_new_list_and_nothing_is_missing_meanwhile() {
    let (api, member) = synced().await;
    api.expire(SERVICES, |objects| {
        objects.insert("unseen".to_owned(), service("unseen"));
    });
    let stays = |view: &View| services(view).contains(&"web".to_owned()) && reason(view).is_none();
    member.until_always("a relist", stays, |view| services(view).len() == 2).await;
}

#[tokio::test]
async fn rights_that_are_taken_away_are_an_outage_though_watches_go_on() {
    let (api, member) = synced().await;
    api.answer(Mode::RefuseKind("services", 403));
    let view = member.until("an outage", |view| reason(view).is_some()).await;
    assert_eq!((reason(&view), services(&view).len()), (Some("Forbidden"), 1));
}

#[tokio::test]
async fn a_watch_that_is_refused_is_an_outage_with_its_reason() {
    let api = FakeApi::start().await;
    api.put(SERVICES, service("web"));
    api.answer(Mode::RefuseKind("endpointslices", 429));
    let member = Connected::to(api.access());
    let view = member.until("an outage", |view| reason(view).is_some()).await;
    assert_eq!((reason(&view), view.objects), (Some("TooManyRequests"), None), "half of it is not told");
    api.answer(Mode::Serve);
    member.until("sync", |view| view.synced && reason(view).is_none()).await;
}

#[tokio::test]
async fn nodes_that_may_not_be_read_are_done_without() {
    let api = FakeApi::start().await;
    api.put(SERVICES, service("web"));
    api.answer(Mode::RefuseKind("/nodes", 403));
    let member = Connected::to(api.access());
    let view = member.until("sync", |view| view.synced).await;
    assert_eq!((services(&view).len(), reason(&view)), (1, None));
}

#[tokio::test]
async fn a_server_that_refuses_to_stream_lists_is_asked_in_the_old_way() {
    let api = FakeApi::of_version("36").await;
    api.put(SERVICES, service("web"));
    let member = Connected::to(api.access());
    let view = member.until("sync", |view| view.synced).await;
    assert_eq!((services(&view).len(), view.version.as_str()), (1, "v1.36.0"));
    assert!(api.requests("services?&watch=true") + api.requests("sendInitialEvents=true") > 0);
    assert_eq!(reason(&view), None);
}

#[tokio::test]
async fn other_credentials_take_over_without_losing_endpoints() {
    let (old, member) = synced().await;
    let new = FakeApi::start().await;
    new.put(SERVICES, service("web"));
    new.put(
        SLICES,
        serde_json::json!({"metadata": {"namespace": "demo", "name": "web-1"},
        "addressType": "IPv4", "endpoints": []}),
    );
    member.member.order(Order { access: new.access(), follow: Follow::Everything });
    let stays = |view: &View| services(view) == ["web"];
    let slices = |view: &View| view.objects.as_ref().is_some_and(|objects| objects.slices.len() == 1);
    member.until_always("the new server", stays, |view| slices(view) && view.synced).await;
    drop(old);
}

#[tokio::test]
async fn a_member_that_is_not_followed_only_tells_who_it_is() {
    let (api, member) = synced().await;
    member.member.order(Order { access: api.access(), follow: Follow::Identity });
    let view = member.until("the end", |view| view.objects.is_none() && view.uid.is_some()).await;
    assert_eq!(view.health.connected, Some(true));
    member.member.order(Order { access: api.access(), follow: Follow::Everything });
    member.until("sync", |view| view.synced && services(view) == ["web"]).await;
}

#[tokio::test]
async fn nodes_and_namespaces_that_an_api_server_is_too_busy_for_hold_no_service_back() {
    for kind in ["/api/v1/nodes", "/api/v1/namespaces?"] {
        let api = FakeApi::start().await;
        api.put(SERVICES, service("web"));
        api.answer(Mode::RefuseKind(kind, 429));
        let member = Connected::to(api.access());
        let view = member.until("sync", |view| view.synced).await;
        assert_eq!((services(&view), view.health.connected), (vec!["web".to_owned()], Some(true)), "{kind}");
    }
}

#[tokio::test]
async fn exports_that_cannot_be_asked_for_stay_and_hold_no_endpoint_back() {
    const EXPORTS: &str = "/apis/multicluster.x-k8s.io/v1beta1/serviceexports";
    for (what, code) in
        [("serviceexports", 500), ("multicluster.x-k8s.io", 403), ("multicluster.x-k8s.io", 500)]
    {
        let mut api = FakeApi::start().await;
        api.put(SERVICES, service("web"));
        api.serve_mcs(Some("v1beta1"));
        api.put(EXPORTS, json!({"metadata": {"namespace": "demo", "name": "web", "uid": "e"}}));
        let member = Connected::to(api.access());
        let exports = |view: &View| view.objects.as_ref().map(|objects| objects.exports.len());
        member.until("the export", |view| exports(view) == Some(1)).await;
        let stays = |view: &View| exports(view) == Some(1);
        api.answer(Mode::RefuseKind(what, code));
        let asked = || api.requests("GET /apis/multicluster.x-k8s.io");
        let before = asked();
        until("another question", || asked() > before + 2).await;
        api.stop();
        member.until_always("an outage", stays, |view| reason(view).is_some()).await;
        api.put(SERVICES, service("new"));
        api.restart().await;
        let caught_up = |view: &View| view.synced && services(view).len() == 2;
        let view = member.until_always("what is new", stays, caught_up).await;
        assert_eq!(view.present, None, "nothing is written by what may be old: {what} {code}");
        api.answer(Mode::Serve);
        member.until_always("recovery", stays, |view| view.present.is_some()).await;
    }
}
