//! What a watch has told so far. Pure.
//!
//! A list that is read again (after a compaction, or on a new connection) is gathered beside what is known and
//! takes its place when it is complete: nothing is ever missing in between.

use std::collections::BTreeMap;

use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// Namespace and name.
pub(super) type Key = (String, String);

/// The objects of one kind, as far as they are kept.
#[derive(Debug)]
pub(super) struct Store<V> {
    objects: BTreeMap<Key, V>,
    /// The list that is being read.
    gathering: Option<BTreeMap<Key, V>>,
    synced: bool,
}

impl<V> Default for Store<V> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), gathering: None, synced: false }
    }
}

impl<V: PartialEq> Store<V> {
    /// Begins with what an earlier run knew; it has not been read until a whole list has.
    pub(super) fn recalling(objects: impl IntoIterator<Item = V>) -> Self
    where
        V: ResourceExt,
    {
        let objects = objects.into_iter().map(|object| (key(&object), object)).collect();
        Self { objects, ..Self::default() }
    }

    /// Takes an event in; `keep` gives what is kept of an object, or `None` for one that is of no use. Whether
    /// anything that can be seen from outside is another now.
    pub(super) fn apply<K: ResourceExt>(&mut self, event: Event<K>, keep: impl Fn(K) -> Option<V>) -> bool {
        match event {
            Event::Init => {
                self.gathering = Some(BTreeMap::new());
                false
            }
            Event::InitApply(object) => {
                let key = key(&object);
                if let (Some(gathering), Some(value)) = (&mut self.gathering, keep(object)) {
                    gathering.insert(key, value);
                }
                false
            }
            Event::InitDone => {
                let Some(gathered) = self.gathering.take() else { return false };
                let changed = !self.synced || self.objects != gathered;
                self.objects = gathered;
                self.synced = true;
                changed
            }
            Event::Apply(object) => {
                let key = key(&object);
                match keep(object) {
                    Some(value) if self.objects.get(&key) == Some(&value) => false,
                    Some(value) => {
                        self.objects.insert(key, value);
                        true
                    }
                    None => self.objects.remove(&key).is_some(),
                }
            }
            Event::Delete(object) => self.objects.remove(&key(&object)).is_some(),
        }
    }

    /// Whether a whole list has been read, since [`Self::expect_list`] if that was called.
    pub(super) const fn is_synced(&self) -> bool {
        self.synced
    }

    /// What is known stays, but counts as old until a whole list has been read again.
    pub(super) fn expect_list(&mut self) {
        self.synced = false;
        self.gathering = None;
    }

    /// There is nothing to be read: such objects do not exist there, or may not be read.
    pub(super) fn give_up(&mut self) -> bool {
        !std::mem::replace(&mut self.synced, true)
    }

    /// There are none: such objects do not exist there any more.
    pub(super) fn clear(&mut self) {
        *self = Self { synced: true, ..Self::default() };
    }

    /// One of them.
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&V> {
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// All of them, by namespace and name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &V)> {
        self.objects.iter()
    }

    /// Copies of all of them.
    pub(super) fn values(&self) -> Vec<V>
    where
        V: Clone,
    {
        self.objects.values().cloned().collect()
    }
}

/// Namespace, empty where it has none, and name.
pub(super) fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::core::ObjectMeta;

    use super::*;

    fn service(name: &str, version: &str) -> Service {
        let metadata = ObjectMeta {
            namespace: Some("demo".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        Service { metadata, ..Service::default() }
    }

    /// What the store shows: `name=version`.
    fn shown(store: &Store<Service>) -> Vec<String> {
        store.iter().map(|((_, name), object)| format!("{name}={}", object.uid().unwrap())).collect()
    }

    fn apply(store: &mut Store<Service>, event: Event<Service>) -> bool {
        store.apply(event, Some)
    }

    fn listed(names: &[&str]) -> Store<Service> {
        let mut store = Store::default();
        apply(&mut store, Event::Init);
        for name in names {
            apply(&mut store, Event::InitApply(service(name, "1")));
        }
        apply(&mut store, Event::InitDone);
        store
    }

    #[test]
    fn nothing_is_shown_before_the_first_list_is_complete() {
        let mut store = Store::default();
        assert!(!apply(&mut store, Event::Init));
        assert!(!apply(&mut store, Event::InitApply(service("a", "1"))));
        assert!(shown(&store).is_empty() && !store.is_synced());
        assert!(apply(&mut store, Event::InitDone));
        assert!(store.is_synced());
        assert_eq!(shown(&store), ["a=1"]);
    }

    #[test]
    fn a_relist_takes_the_place_of_what_is_known_at_once_and_only_when_it_is_complete() {
        let mut store = listed(&["a", "b"]);
        apply(&mut store, Event::Init);
        apply(&mut store, Event::InitApply(service("b", "2")));
        apply(&mut store, Event::InitApply(service("c", "1")));
        assert_eq!(shown(&store), ["a=1", "b=1"]);
        // It breaks off and begins again.
        apply(&mut store, Event::Init);
        apply(&mut store, Event::InitApply(service("c", "1")));
        assert_eq!(shown(&store), ["a=1", "b=1"]);
        assert!(apply(&mut store, Event::InitDone));
        assert_eq!(shown(&store), ["c=1"]);
    }

    #[test]
    fn a_relist_of_the_same_objects_is_no_change() {
        let mut store = listed(&["a"]);
        for event in [Event::Init, Event::InitApply(service("a", "1")), Event::InitDone] {
            assert!(!apply(&mut store, event));
        }
    }

    #[test]
    fn events_after_the_list_change_one_object() {
        let mut store = listed(&["a", "b"]);
        assert!(apply(&mut store, Event::Apply(service("a", "2"))));
        assert!(!apply(&mut store, Event::Apply(service("a", "2"))), "only what nobody keeps has changed");
        assert!(apply(&mut store, Event::Delete(service("b", "1"))));
        assert!(!apply(&mut store, Event::Delete(service("b", "1"))));
        assert_eq!(shown(&store), ["a=2"]);
    }

    #[test]
    fn an_object_that_is_no_longer_of_use_goes() {
        let mut store = listed(&["a"]);
        assert!(store.apply(Event::Apply(service("a", "2")), |_| None));
        assert!(shown(&store).is_empty());
    }

    #[test]
    fn what_is_known_stays_while_a_new_connection_reads_its_first_list() {
        let mut store = listed(&["a"]);
        store.expect_list();
        assert!(!store.is_synced());
        assert_eq!(shown(&store), ["a=1"]);
        for event in [Event::Init, Event::InitApply(service("a", "1"))] {
            assert!(!apply(&mut store, event));
        }
        assert!(apply(&mut store, Event::InitDone), "that it is synced again can be seen");
    }
}
