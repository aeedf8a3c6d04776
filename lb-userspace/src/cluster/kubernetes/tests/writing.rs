//! What is written into clusters.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;
use tokio::time::{Duration, sleep, timeout};

use super::super::lease::Lease;
use super::super::notices::{Notice, Notifier};
use super::super::publish::{Action, MEMBER_CLUSTERS, Write};
use super::super::writer::Writer;
use super::fake::{FakeApi, Mode};
use super::{MEMBERS, PATIENCE};

const EVENTS: &str = "POST /apis/events.k8s.io/v1/namespaces/demo/events";

pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no {what}"));
}

fn write(name: &str, action: Action) -> Write {
    Write { kind: MEMBER_CLUSTERS, namespace: String::new(), name: name.to_owned(), action }
}

fn creation(name: &str) -> Write {
    write(name, Action::Create(json!({"metadata": {"uid": "u"}, "spec": {"source": {"local": {}}}})))
}

fn status(name: &str, since: &str) -> Write {
    let condition = json!({"type": "Ready", "lastTransitionTime": since});
    write(name, Action::ApplyStatus(json!({"status": {"version": "v1", "conditions": [condition]}})))
}

fn writer(api: &FakeApi) -> Writer {
    Writer::start(api.access(), "kanmon.dev/gateway".to_owned(), Arc::new(Notify::new()))
}

#[tokio::test]
async fn what_is_missing_is_made_its_status_written_and_what_is_to_go_deleted() {
    let api = FakeApi::start().await;
    let writer = writer(&api);
    writer.order(vec![creation("a"), creation("b")]);
    until("creation", || api.get(MEMBERS, "b").is_some()).await;
    assert_eq!(api.get(MEMBERS, "b").unwrap()["kind"], "MemberCluster");
    let delete = |name| write(name, Action::Delete { uid: "u".to_owned(), resource_version: None });
    writer.order(vec![status("gone", "1"), delete("gone"), status("a", "1"), delete("b")]);
    until("a status", || api.get(MEMBERS, "a").is_some_and(|object| object["status"]["version"] == "v1"))
        .await;
    until("deletion", || api.get(MEMBERS, "b").is_none()).await;
}

#[tokio::test]
async fn what_cannot_be_written_now_is_written_later() {
    let api = FakeApi::start().await;
    api.answer(Mode::Refuse(429));
    let writer = writer(&api);
    writer.order(vec![creation("a")]);
    until("a try", || api.requests("POST") > 0).await;
    api.answer(Mode::Serve);
    until("creation", || api.get(MEMBERS, "a").is_some()).await;
}

#[tokio::test]
async fn what_was_written_is_not_written_again_while_the_watch_is_slow_and_one_refusal_holds_up_nobody() {
    let api = FakeApi::start().await;
    api.put(MEMBERS, json!({"metadata": {"name": "a"}}));
    api.answer(Mode::RefuseKind("memberclusters/bad", 422));
    let writer = writer(&api);
    writer.order(vec![status("bad", "1"), status("a", "1")]);
    until("a status", || api.requests("PATCH") == 2).await;
    // The same a moment later, and then something else.
    writer.order(vec![status("bad", "2"), status("a", "2")]);
    writer.order(vec![status("bad", "3"), status("a", "3"), creation("b")]);
    until("another write", || api.get(MEMBERS, "b").is_some()).await;
    assert_eq!(api.requests("PATCH"), 2);
}

#[tokio::test]
async fn a_write_that_the_server_fails_at_holds_up_no_other() {
    let api = FakeApi::start().await;
    api.put(MEMBERS, json!({"metadata": {"name": "a"}}));
    api.answer(Mode::RefuseKind("memberclusters/bad", 500));
    let writer = writer(&api);
    writer.order(vec![status("bad", "1"), status("a", "1")]);
    until("a status", || api.get(MEMBERS, "a").is_some_and(|object| object["status"]["version"] == "v1"))
        .await;
    assert_eq!(api.requests("memberclusters/bad"), 1, "it rests");
}

#[tokio::test]
async fn what_is_ordered_no_longer_is_not_written_though_it_was_begun() {
    let api = FakeApi::start().await;
    let writer = writer(&api);
    writer.order((0..100).map(|number| creation(&format!("old-{number}"))).collect());
    // Without a pause, so that it is seen while most of them are still to come.
    while api.requests("POST") == 0 {
        yield_now().await;
    }
    writer.order(vec![creation("new")]);
    until("what is ordered now", || api.get(MEMBERS, "new").is_some()).await;
    assert!(api.get(MEMBERS, "old-0").is_some() && api.get(MEMBERS, "old-99").is_none());
}

#[tokio::test]
async fn what_another_manager_owns_stays_and_is_told() {
    let api = FakeApi::start().await;
    api.put(MEMBERS, json!({"metadata": {"name": "a"}}));
    api.answer(Mode::RefuseKind("memberclusters/a/status", 409));
    let writer = writer(&api);
    writer.order(vec![status("a", "1"), creation("b")]);
    until("another write", || api.get(MEMBERS, "b").is_some()).await;
    until("word of it", || !writer.conflicts().is_empty()).await;
    let told = writer.conflicts();
    assert_eq!((told[0].reason.as_str(), told[0].name.as_str()), ("OwnedByOther", "a"));
    writer.order(vec![]);
    until("its end", || writer.conflicts().is_empty()).await;
}

#[tokio::test]
async fn of_two_that_try_for_a_lease_one_holds_it_and_the_other_follows() {
    let api = FakeApi::start().await;
    let hold = |identity: &str| {
        let changed = Arc::new(Notify::new());
        let (name, identity) = ("kanmon-set.publish".to_owned(), identity.to_owned());
        let (_, presence) = watch::channel(Arc::default());
        Lease::hold(api.access(), name, identity, "a cluster".to_owned(), changed, presence)
    };
    let first = hold("one");
    until("a holder", || first.is_held()).await;
    let second = hold("two");
    until("a second look", || api.requests("GET /apis/coordination.k8s.io") >= 4).await;
    assert!(first.is_held() && !second.is_held());
    drop(first);
    until("another holder", || second.is_held()).await;
    second.remove();
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kanmon-system/leases";
    until("the end of it", || api.get(leases, "kanmon-set.publish").is_none()).await;
}

fn notice(name: &str) -> Notice {
    Notice {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        namespace: "demo".to_owned(),
        name: name.to_owned(),
        uid: String::new(),
        reason: "Bad".to_owned(),
        message: "is bad".to_owned(),
    }
}

#[tokio::test]
async fn each_notice_is_an_event_once_for_as_long_as_it_holds() {
    let api = FakeApi::start().await;
    let notifier = Notifier::start(api.access(), "gw".to_owned());
    notifier.tell(vec![notice("a")]);
    until("an Event", || api.requests(EVENTS) == 1).await;
    notifier.tell(vec![notice("a"), notice("b")]);
    until("another Event", || api.requests(EVENTS) == 2).await;
    notifier.tell(vec![notice("b"), notice("c")]);
    until("a third Event", || api.requests(EVENTS) == 3).await;
}

#[tokio::test]
async fn an_event_that_is_refused_is_not_tried_again() {
    let api = FakeApi::start().await;
    api.answer(Mode::Refuse(403));
    let notifier = Notifier::start(api.access(), "gw".to_owned());
    notifier.tell(vec![notice("a")]);
    until("a refusal", || api.requests(EVENTS) == 1).await;
    api.answer(Mode::Serve);
    notifier.tell(vec![notice("a"), notice("b")]);
    until("an Event", || api.requests(EVENTS) == 2).await;
}
