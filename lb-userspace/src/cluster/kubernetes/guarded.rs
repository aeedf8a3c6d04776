//! Objects of our own kinds that this agent does not understand: it may be older than the CRDs. Such an object
//! keeps what it said before, and the others are read all the same. Pure.

use std::collections::BTreeMap;

use kube::Resource;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;

use super::store::{Key, Store, key};
use crate::desired::{Problem, Reason, Severity};

/// What is wrong with the objects of one kind that cannot be read, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Unreadable(BTreeMap<Key, String>);

impl Unreadable {
    /// The event as the store takes it: with what the object said before where it cannot be read now. `None`:
    /// it changes nothing.
    pub(super) fn sort_out<K>(
        &mut self,
        event: Event<DeserializeGuard<K>>,
        known: &Store<K>,
    ) -> Option<Event<K>>
    where
        K: Resource<DynamicType = ()> + Clone + PartialEq,
    {
        match event {
            Event::Init => {
                self.0.clear();
                Some(Event::Init)
            }
            Event::InitApply(object) => self.read(object, known).map(Event::InitApply),
            Event::InitDone => Some(Event::InitDone),
            Event::Apply(object) => self.read(object, known).map(Event::Apply),
            Event::Delete(object) => {
                let key = key(&object);
                self.0.remove(&key);
                object.0.ok().or_else(|| known.get(&key.0, &key.1).cloned()).map(Event::Delete)
            }
        }
    }

    /// The object, or what it said before.
    fn read<K>(&mut self, object: DeserializeGuard<K>, known: &Store<K>) -> Option<K>
    where
        K: Resource<DynamicType = ()> + Clone + PartialEq,
    {
        let key = key(&object);
        match object.0 {
            Ok(object) => {
                self.0.remove(&key);
                Some(object)
            }
            Err(invalid) => {
                let before = known.get(&key.0, &key.1).cloned();
                self.0.insert(key, invalid.error);
                before
            }
        }
    }

    /// A problem for each.
    pub(super) fn problems(&self, kind: &str) -> impl Iterator<Item = Problem> {
        self.0.iter().map(move |((namespace, name), error)| Problem {
            cluster: String::new(),
            object: match namespace.is_empty() {
                true => format!("{kind} {name}"),
                false => format!("{kind} {namespace}/{name}"),
            },
            reason: Reason::Unreadable,
            severity: Severity::Error,
            message: format!(
                "cannot be read, what it said before stays: {error}; where this agent is older than the \
                 installed CRDs, update it"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::desired::AddressPool;

    fn pool(name: &str, spec: serde_json::Value) -> DeserializeGuard<AddressPool> {
        serde_json::from_value(json!({
            "apiVersion": "kanmon.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": name}, "spec": spec,
        }))
        .unwrap()
    }

    fn good(name: &str, cidr: &str) -> DeserializeGuard<AddressPool> {
        pool(name, json!({"cidrs": [cidr]}))
    }

    fn newer(name: &str) -> DeserializeGuard<AddressPool> {
        pool(name, json!({"cidrs": ["192.0.2.0/24"], "flavour": "of tomorrow"}))
    }

    #[derive(Default)]
    struct Read {
        unreadable: Unreadable,
        store: Store<AddressPool>,
    }

    impl Read {
        fn tell(&mut self, event: Event<DeserializeGuard<AddressPool>>) {
            if let Some(event) = self.unreadable.sort_out(event, &self.store) {
                self.store.apply(event, Some);
            }
        }

        fn list(&mut self, objects: Vec<DeserializeGuard<AddressPool>>) {
            self.tell(Event::Init);
            objects.into_iter().for_each(|object| self.tell(Event::InitApply(object)));
            self.tell(Event::InitDone);
        }

        /// `name=first network`.
        fn known(&self) -> Vec<String> {
            self.store.iter().map(|((_, name), pool)| format!("{name}={}", pool.spec.cidrs[0])).collect()
        }

        fn troubled(&self) -> Vec<String> {
            self.unreadable.problems("AddressPool").map(|problem| problem.object).collect()
        }
    }

    #[test]
    fn an_object_of_a_newer_form_hides_no_other_and_keeps_what_it_said_before() {
        let mut read = Read::default();
        read.list(vec![good("a", "10.0.0.0/24"), newer("b")]);
        assert_eq!(
            (read.known(), read.troubled()),
            (vec!["a=10.0.0.0/24".into()], vec!["AddressPool b".into()])
        );
        read.tell(Event::Apply(newer("a")));
        assert_eq!(read.known(), ["a=10.0.0.0/24"]);
        read.list(vec![newer("a"), good("b", "10.0.1.0/24")]);
        assert_eq!(read.known(), ["a=10.0.0.0/24", "b=10.0.1.0/24"], "a list read anew changes nothing");
        assert_eq!(read.troubled(), ["AddressPool a"]);
        assert!(read.unreadable.problems("AddressPool").all(|problem| problem.message.contains("flavour")));
    }

    #[test]
    fn an_object_that_can_be_read_again_or_is_gone_is_no_problem() {
        let mut read = Read::default();
        read.list(vec![good("a", "10.0.0.0/24"), good("b", "10.0.1.0/24")]);
        read.tell(Event::Apply(newer("a")));
        read.tell(Event::Apply(newer("b")));
        read.tell(Event::Apply(good("a", "10.0.2.0/24")));
        read.tell(Event::Delete(newer("b")));
        assert_eq!((read.known(), read.troubled()), (vec!["a=10.0.2.0/24".into()], vec![]));
    }
}
