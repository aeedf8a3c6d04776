//! The last good state on disk.

use std::fs;
use std::sync::Arc;

use super::super::{CacheError, LastGood, Object, load_last_good, parse, store_last_good};
use super::{member, policy, service};

fn state() -> LastGood {
    let mut state = LastGood::default();
    let text = format!("{}---\n{}---\n{}", service("web"), member("a"), policy("p"));
    for object in parse(&text).unwrap().objects {
        match object {
            Object::Service(service) => {
                let objects = state.clusters.entry("a".to_owned()).or_default();
                Arc::make_mut(objects).services.push(*service);
            }
            Object::Member(member) => state.gateway.members.push(*member),
            Object::Policy(policy) => state.gateway.policies.push(*policy),
            Object::Slice(_) | Object::Export(_) | Object::Pool(_) => unreachable!(),
        }
    }
    let name = "demo/web".to_owned().try_into().unwrap();
    state.allocations.insert(name, vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
    state
}

#[test]
fn what_is_stored_is_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("made/by/us");
    assert_eq!(load_last_good(&inside).unwrap(), None);
    store_last_good(&inside, &state()).unwrap();
    assert_eq!(load_last_good(&inside).unwrap(), Some(state()));
    store_last_good(&inside, &LastGood::default()).unwrap();
    assert_eq!(load_last_good(&inside).unwrap(), Some(LastGood::default()));
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_damaged_or_foreign_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    store_last_good(directory.path(), &state()).unwrap();
    let file = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&file).unwrap();
    for broken in [&text[..text.len() / 2], "", &text.replace("\"version\":1", "\"version\":2")] {
        fs::write(&file, broken).unwrap();
        match load_last_good(directory.path()) {
            Err(CacheError::Foreign { path, .. }) => assert_eq!(path, file),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let message = store_last_good(&file, &state()).unwrap_err().to_string();
    assert!(message.contains(&file.display().to_string()), "{message}");
}
