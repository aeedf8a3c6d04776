//! A real directory, edited while it is followed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

use super::super::{LastGood, Snapshot, SourceError, watch};
use super::{member, service};
use crate::desired::Reason;

/// Below the interval of reads without events: what takes longer was not seen by events.
const SOON: Duration = Duration::from_secs(8);

const BROKEN: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: [}\n";

/// A directory with a file in it for each of these.
fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(&directory.path().join(name), text);
    }
    directory
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

async fn follow(directory: &TempDir) -> Receiver<Arc<Snapshot>> {
    watch(directory.path().to_owned(), None).await.unwrap()
}

/// `cluster/service` of everything there is, then `!file` of every problem.
fn contents(snapshot: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    for (cluster, objects) in &snapshot.clusters {
        found.push(format!("{cluster}/"));
        for service in &objects.services {
            found.push(format!("{cluster}/{}", service.metadata.name.as_deref().unwrap_or_default()));
        }
    }
    for member in &snapshot.gateway.members {
        found.push(format!("member {}", member.metadata.name.as_deref().unwrap_or_default()));
    }
    for problem in &snapshot.problems {
        let file = Path::new(&problem.object).file_name().unwrap_or_default().to_string_lossy();
        found.push(format!("!{file}"));
    }
    found
}

/// Waits until this is all there is.
async fn expect(receiver: &mut Receiver<Arc<Snapshot>>, expected: &[&str]) -> Arc<Snapshot> {
    let matches = |snapshot: &Arc<Snapshot>| contents(snapshot) == expected;
    let found = timeout(SOON, receiver.wait_for(matches)).await.map(|found| Arc::clone(&found.unwrap()));
    if let Ok(snapshot) = found {
        return snapshot;
    }
    panic!("expected {expected:?}, got {:?}", contents(&receiver.borrow()));
}

#[tokio::test]
async fn everything_is_there_from_the_start() {
    let directory = directory(&[
        ("members.yaml", &member("a")),
        ("a/web.yaml", &service("web")),
        ("a/api.yml", &service("api")),
        ("b/web.json", r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}"#),
        ("a/README.md", BROKEN),
        ("a/.web.yaml.swp.yaml", BROKEN),
        (".git/config.yaml", BROKEN),
    ]);
    let receiver = follow(&directory).await;
    let snapshot = receiver.borrow().clone();
    assert_eq!(contents(&snapshot), ["a/", "a/api", "a/web", "b/", "b/web", "member a"]);
}

#[tokio::test]
async fn edits_additions_and_removals_take_effect() {
    let directory = directory(&[("members.yaml", &member("a")), ("a/web.yaml", &service("web"))]);
    let mut receiver = follow(&directory).await;
    write(&directory.path().join("a/web.yaml"), &service("web2"));
    expect(&mut receiver, &["a/", "a/web2", "member a"]).await;
    write(&directory.path().join("a/api.yaml"), &service("api"));
    expect(&mut receiver, &["a/", "a/api", "a/web2", "member a"]).await;
    fs::remove_file(directory.path().join("a/web.yaml")).unwrap();
    expect(&mut receiver, &["a/", "a/api", "member a"]).await;
    write(&directory.path().join("members.yaml"), &member("z"));
    expect(&mut receiver, &["a/", "a/api", "member z"]).await;
}

#[tokio::test]
async fn clusters_come_and_go_with_their_directories() {
    let directory = directory(&[("a/web.yaml", &service("web"))]);
    let mut receiver = follow(&directory).await;
    write(&directory.path().join("b/web.yaml"), &service("web"));
    expect(&mut receiver, &["a/", "a/web", "b/", "b/web"]).await;
    // The new directory is followed as well.
    write(&directory.path().join("b/api.yaml"), &service("api"));
    expect(&mut receiver, &["a/", "a/web", "b/", "b/api", "b/web"]).await;
    fs::rename(directory.path().join("a"), directory.path().join("c")).unwrap();
    expect(&mut receiver, &["b/", "b/api", "b/web", "c/", "c/web"]).await;
    fs::remove_dir_all(directory.path().join("b")).unwrap();
    expect(&mut receiver, &["c/", "c/web"]).await;
}

#[tokio::test]
async fn a_file_that_breaks_later_changes_nothing_but_is_reported_with_its_place() {
    let directory = directory(&[("a/web.yaml", &service("web")), ("a/api.yaml", &service("api"))]);
    let mut receiver = follow(&directory).await;
    write(&directory.path().join("a/web.yaml"), BROKEN);
    let snapshot = expect(&mut receiver, &["a/", "a/api", "a/web", "!web.yaml"]).await;
    let problem = &snapshot.problems[0];
    assert_eq!((problem.cluster.as_str(), problem.reason), ("a", Reason::Unreadable));
    assert!(problem.message.starts_with("line 3, column "), "{problem}");
    assert!(problem.message.contains("last good state"), "{problem}");

    // While it is broken, this directory stands still and the others go on.
    fs::remove_file(directory.path().join("a/api.yaml")).unwrap();
    write(&directory.path().join("b/web.yaml"), &service("web"));
    expect(&mut receiver, &["a/", "a/api", "a/web", "b/", "b/web", "!web.yaml"]).await;
    write(&directory.path().join("a/web.yaml"), &service("fixed"));
    expect(&mut receiver, &["a/", "a/fixed", "b/", "b/web"]).await;
}

#[tokio::test]
async fn a_gateway_file_that_breaks_keeps_the_members() {
    let directory = directory(&[("members.yaml", &member("a")), ("a/web.yaml", &service("web"))]);
    let mut receiver = follow(&directory).await;
    write(&directory.path().join("members.yaml"), "kind: MemberCluster\n");
    expect(&mut receiver, &["a/", "a/web", "member a", "!members.yaml"]).await;
}

#[tokio::test]
async fn a_file_that_is_broken_from_the_start_leaves_its_directory_empty_until_it_is_mended() {
    let directory = directory(&[
        ("a/web.yaml", BROKEN),
        ("a/api.yaml", &service("api")),
        ("b/web.yaml", &service("web")),
    ]);
    let mut receiver = follow(&directory).await;
    expect(&mut receiver, &["a/", "b/", "b/web", "!web.yaml"]).await;
    write(&directory.path().join("a/web.yaml"), &service("web"));
    expect(&mut receiver, &["a/", "a/api", "a/web", "b/", "b/web"]).await;
}

#[tokio::test]
async fn every_broken_file_is_reported() {
    let directory = directory(&[("a/x.yaml", BROKEN), ("a/y.yaml", "kind: Service\n"), ("top.yaml", BROKEN)]);
    fs::write(directory.path().join("a/z.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let mut receiver = follow(&directory).await;
    expect(&mut receiver, &["a/", "!top.yaml", "!x.yaml", "!y.yaml", "!z.yaml"]).await;
}

#[tokio::test]
async fn an_editors_atomic_rename_is_an_edit() {
    let directory = directory(&[("a/web.yaml", &service("web"))]);
    let mut receiver = follow(&directory).await;
    for name in ["web2", "web3"] {
        let temporary = directory.path().join("a/.web.yaml.tmp");
        fs::write(&temporary, service(name)).unwrap();
        fs::rename(&temporary, directory.path().join("a/web.yaml")).unwrap();
        expect(&mut receiver, &["a/", &format!("a/{name}")]).await;
    }
}

/// Mounts a ConfigMap as the kubelet does: `..data` leads to a directory of one version.
fn mount(directory: &Path, version: &str, text: &str) -> PathBuf {
    let data = directory.join(version);
    write(&data.join("web.yaml"), text);
    let link = directory.join("..data_tmp");
    symlink(version, &link).unwrap();
    fs::rename(&link, directory.join("..data")).unwrap();
    data
}

#[tokio::test]
async fn a_config_map_that_is_swapped_is_an_edit() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = directory.path().join("a");
    let old = mount(&cluster, "..2024_01", &service("web"));
    symlink("..data/web.yaml", cluster.join("web.yaml")).unwrap();
    let mut receiver = follow(&directory).await;
    expect(&mut receiver, &["a/", "a/web"]).await;
    let newer = mount(&cluster, "..2024_02", &service("web2"));
    fs::remove_dir_all(old).unwrap();
    expect(&mut receiver, &["a/", "a/web2"]).await;
    mount(&cluster, "..2024_03", &service("web3"));
    fs::remove_dir_all(newer).unwrap();
    expect(&mut receiver, &["a/", "a/web3"]).await;
}

#[tokio::test]
async fn objects_in_the_wrong_place_are_reported_and_not_used() {
    let directory = directory(&[("web.yaml", &service("web")), ("a/members.yaml", &member("a"))]);
    let mut receiver = follow(&directory).await;
    let snapshot = expect(&mut receiver, &["a/", "!web.yaml", "!members.yaml"]).await;
    assert!(snapshot.problems[0].message.contains("Service web is not used here"));
    assert!(snapshot.problems[1].message.contains("move it to the top directory"));
}

#[tokio::test]
async fn nothing_is_sent_when_nothing_changed() {
    let directory = directory(&[("a/web.yaml", &service("web"))]);
    let mut receiver = follow(&directory).await;
    receiver.mark_unchanged();
    // The same content, then a change that must come first.
    write(&directory.path().join("a/web.yaml"), &service("web"));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!receiver.has_changed().unwrap());
    write(&directory.path().join("a/web.yaml"), &service("web2"));
    timeout(SOON, receiver.changed()).await.unwrap().unwrap();
    assert_eq!(contents(&receiver.borrow()), ["a/", "a/web2"]);
}

fn last_good() -> LastGood {
    let directory = directory(&[("members.yaml", &member("old")), ("a/web.yaml", &service("old"))]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let snapshot = runtime.block_on(async { follow(&directory).await.borrow().clone() });
    LastGood { gateway: snapshot.gateway.clone(), clusters: snapshot.clusters.clone(), ..LastGood::default() }
}

async fn last_good_state() -> LastGood {
    tokio::task::spawn_blocking(last_good).await.unwrap()
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_only_if_nothing_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    match watch(missing.clone(), None).await {
        Err(SourceError::Unreadable { path, .. }) => assert_eq!(path, missing),
        other => panic!("{other:?}"),
    }
    let receiver = watch(missing, Some(last_good_state().await)).await.unwrap();
    let snapshot = receiver.borrow().clone();
    assert_eq!(contents(&snapshot), ["a/", "a/old", "member old", "!missing"]);
}

#[tokio::test]
async fn the_last_good_state_serves_for_broken_directories_only() {
    let directory = directory(&[("a/web.yaml", BROKEN), ("b/web.yaml", &service("web"))]);
    let mut receiver = watch(directory.path().to_owned(), Some(last_good_state().await)).await.unwrap();
    // The top is readable and has no member: that is the truth now.
    expect(&mut receiver, &["a/", "a/old", "b/", "b/web", "!web.yaml"]).await;
    write(&directory.path().join("a/web.yaml"), &service("web"));
    expect(&mut receiver, &["a/", "a/web", "b/", "b/web"]).await;
}

#[tokio::test]
async fn a_directory_that_vanishes_later_keeps_everything() {
    let directory = directory(&[("dir/members.yaml", &member("a")), ("dir/a/web.yaml", &service("web"))]);
    let root = directory.path().join("dir");
    let mut receiver = watch(root.clone(), None).await.unwrap();
    let away = directory.path().join("away");
    fs::rename(&root, &away).unwrap();
    // Touch what is still followed, so that it is looked at before the next read without events.
    write(&away.join("touch.txt"), "");
    expect(&mut receiver, &["a/", "a/web", "member a", "!dir"]).await;
}

#[tokio::test]
async fn the_example_directory_of_the_repository_is_good() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let receiver = watch(root, None).await.unwrap();
    let snapshot = receiver.borrow().clone();
    assert_eq!(snapshot.problems, []);
    assert_eq!(snapshot.clusters.keys().collect::<Vec<_>>(), ["hangzhou", "shanghai"]);
    let desired = crate::desired::merge(
        &snapshot.clusters,
        &snapshot.gateway,
        &Default::default(),
        &Default::default(),
        &Default::default(),
    );
    assert_eq!(desired.problems, []);
    assert_eq!(desired.services.len(), 4);
}
