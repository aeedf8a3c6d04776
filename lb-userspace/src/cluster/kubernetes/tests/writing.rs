//! What is written into clusters.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Duration, sleep, timeout};

use super::super::notices::{Notice, Notifier};
use super::super::writer::{self, Orders};
use super::fake::{FakeApi, Mode};
use super::{MEMBERS, PATIENCE};
use crate::desired::{MemberCluster, MemberClusterStatus};

const EVENTS: &str = "POST /apis/events.k8s.io/v1/namespaces/demo/events";

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no {what}"));
}

fn object(name: &str) -> MemberCluster {
    let json = json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
        "metadata": {"name": name, "uid": "u"}, "spec": {"source": {"local": {}}}});
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn memberclusters_are_made_their_status_is_written_and_what_is_to_go_is_deleted() {
    let api = FakeApi::start().await;
    let (orders, ordered) = watch::channel(Arc::default());
    tokio::spawn(writer::run(api.access(), ordered));
    orders.send_replace(Arc::new(Orders { create: vec![object("a"), object("b")], ..Orders::default() }));
    until("creation", || api.get(MEMBERS, "b").is_some()).await;
    let status = MemberClusterStatus { version: Some("v1".to_owned()), ..MemberClusterStatus::default() };
    orders.send_replace(Arc::new(Orders {
        delete: vec![object("b")],
        statuses: [("a".to_owned(), status), ("gone".to_owned(), MemberClusterStatus::default())].into(),
        ..Orders::default()
    }));
    until("a status", || api.get(MEMBERS, "a").is_some_and(|object| object["status"]["version"] == "v1"))
        .await;
    until("deletion", || api.get(MEMBERS, "b").is_none()).await;
}

#[tokio::test]
async fn what_cannot_be_written_now_is_written_later() {
    let api = FakeApi::start().await;
    api.answer(Mode::Refuse(500));
    let (orders, ordered) = watch::channel(Arc::default());
    tokio::spawn(writer::run(api.access(), ordered));
    orders.send_replace(Arc::new(Orders { create: vec![object("a")], ..Orders::default() }));
    until("a try", || api.requests("POST") > 0).await;
    api.answer(Mode::Serve);
    until("creation", || api.get(MEMBERS, "a").is_some()).await;
}

fn notice(name: &str) -> Notice {
    Notice {
        api_version: "v1",
        kind: "Service",
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
