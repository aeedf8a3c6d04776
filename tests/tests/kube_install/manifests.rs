//! What is in `deploy/`, and into which cluster it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use tests::kube::{KubeBed, KubeCluster, KubeOptions};

/// The directory.
pub(crate) const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

/// The cluster that members are represented by.
const MEMBER: &str = "hangzhou";

/// Every file below a directory.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Which command brings a manifest into which cluster: the directory, and the cluster.
fn step(file: &Path) -> (PathBuf, &'static str) {
    let relative = file.strip_prefix(DEPLOY).unwrap();
    let parts: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
    match parts[..] {
        [_] | ["crds" | "gateway", _] => (DEPLOY.into(), "gateway"),
        ["member", _] => (Path::new(DEPLOY).join("member"), MEMBER),
        ["examples", story, "gateway", _] => (example(story, "gateway"), "gateway"),
        ["examples", story, "member", _] => (example(story, "member"), MEMBER),
        _ => panic!("nobody knows which cluster {} goes to", relative.display()),
    }
}

fn example(story: &str, place: &str) -> PathBuf {
    Path::new(DEPLOY).join("examples").join(story).join(place)
}

/// `kubectl apply` of a directory; what it says of each object: `service/httpbin` and `created`.
fn apply(cluster: &KubeCluster, directory: &Path) -> Vec<(String, String)> {
    let said = cluster.kubectl(&["apply", "-k", directory.to_str().unwrap()], "").unwrap();
    said.lines().map(|line| line.split_once(' ').unwrap()).map(|(a, b)| (a.into(), b.into())).collect()
}

/// The objects in a manifest, as [`apply`] names them.
fn objects(cluster: &KubeCluster, file: &Path) -> BTreeSet<String> {
    let create = ["create", "--dry-run=client", "-o", "name", "-f", file.to_str().unwrap()];
    cluster.kubectl(&create, "").unwrap().lines().map(str::to_owned).collect()
}

/// Waits until definitions are in force.
fn established(cluster: &KubeCluster) {
    let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    cluster.kubectl(&wait, "").unwrap();
}

#[test]
fn every_manifest_in_deploy_is_taken_and_taking_it_again_changes_nothing() {
    let clusters = vec!["gateway", MEMBER];
    let bed = KubeBed::start(KubeOptions { clusters, ..KubeOptions::default() }).unwrap();
    let manifests: Vec<PathBuf> = files(Path::new(DEPLOY))
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    assert!(manifests.len() > 20, "{manifests:?}");
    // Members have ServiceExports from whoever has them; here from the file.
    let mcs = Path::new(DEPLOY).join("crds/mcs-api.yaml");
    bed.cluster(MEMBER).unwrap().kubectl(&["apply", "-f", mcs.to_str().unwrap()], "").unwrap();
    established(bed.cluster(MEMBER).unwrap());

    // `deploy` itself comes first, for it has the definitions of what the examples are.
    let steps: BTreeSet<(PathBuf, &str)> = manifests.iter().map(|file| step(file)).collect();
    let mut applied = BTreeMap::new();
    for (directory, place) in &steps {
        let cluster = bed.cluster(place).unwrap();
        let first = apply(cluster, directory);
        established(cluster);
        let again = apply(cluster, directory);
        // What is in `stringData` kubectl never finds again.
        let changed =
            again.iter().filter(|(object, what)| what != "unchanged" && !object.starts_with("secret/"));
        let changed: Vec<_> = changed.collect();
        assert!(changed.is_empty(), "{}: {changed:?}", directory.display());
        assert_eq!(first.len(), again.len());
        applied.insert(directory, again);
    }
    for file in manifests.iter().filter(|file| !file.ends_with("kustomization.yaml")) {
        let (directory, place) = step(file);
        let objects = objects(bed.cluster(place).unwrap(), file);
        assert!(!objects.is_empty(), "there is nothing in {}", file.display());
        let named = applied[&directory].iter().map(|(object, _)| object).collect::<BTreeSet<_>>();
        let forgotten: Vec<_> = objects.iter().filter(|object| !named.contains(object)).collect();
        assert!(forgotten.is_empty(), "no kustomization has {forgotten:?} of {}", file.display());
    }
}
