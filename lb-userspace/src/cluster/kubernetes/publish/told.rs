//! Which members have told what they have, so that what is not there now is gone. Pure: time comes in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::desired::Knowledge;

/// How long the merge may take to make desired state of what a member told. It runs by itself: what is decided
/// meanwhile is decided by what it made before.
const MERGED: Duration = Duration::from_secs(5);

/// Who has told, and for how long that has been known.
#[derive(Debug, Default)]
pub(in super::super) struct Told {
    since: BTreeMap<String, Instant>,
    members: BTreeSet<String>,
    complete: bool,
}

impl Told {
    /// Takes in whose objects are known now. When to look again.
    pub(in super::super) fn take_in<'a>(
        &mut self,
        knowledge: Knowledge,
        known: impl Iterator<Item = &'a String>,
        now: Instant,
    ) -> Option<Instant> {
        self.since = known.map(|name| (name.clone(), self.since.get(name).copied().unwrap_or(now))).collect();
        let is_merged = |since: &Instant| now >= *since + MERGED;
        let merged = self.since.iter().filter(|(_, since)| is_merged(since));
        self.members = merged.map(|(name, _)| name.clone()).collect();
        self.complete = knowledge > Knowledge::Partial && self.members.len() == self.since.len();
        self.since.values().filter(|since| !is_merged(since)).map(|since| *since + MERGED).min()
    }

    /// Those that desired state is made of.
    pub(in super::super) const fn members(&self) -> &BTreeSet<String> {
        &self.members
    }

    /// Whether these are all that are served.
    pub(in super::super) const fn is_complete(&self) -> bool {
        self.complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whose objects are known; gives who has told, and whether that is all.
    fn at(told: &mut Told, knowledge: Knowledge, known: &[&str], now: Instant) -> (Vec<String>, bool) {
        let known: Vec<String> = known.iter().map(|&name| name.to_owned()).collect();
        told.take_in(knowledge, known.iter(), now);
        (told.members().iter().cloned().collect(), told.is_complete())
    }

    #[test]
    fn all_have_told_only_when_no_member_is_unread_however_long_it_takes() {
        let (mut told, began) = (Told::default(), Instant::now());
        at(&mut told, Knowledge::Partial, &["a"], began);
        let later = began + Duration::from_secs(600);
        assert_eq!(at(&mut told, Knowledge::Partial, &["a"], later), (vec!["a".to_owned()], false));
        assert_eq!(at(&mut told, Knowledge::Known, &["a"], later), (vec!["a".to_owned()], true));
    }

    #[test]
    fn a_member_that_is_read_at_last_has_told_when_the_merge_has_taken_it_in() {
        let (mut told, began) = (Told::default(), Instant::now());
        at(&mut told, Knowledge::Partial, &["a"], began);
        let read = began + Duration::from_secs(100);
        assert_eq!(at(&mut told, Knowledge::Known, &["a", "b"], read), (vec!["a".to_owned()], false));
        let known = ["a".to_owned(), "b".to_owned()];
        let next = told.take_in(Knowledge::Known, known.iter(), read);
        assert_eq!(next, Some(read + MERGED), "it is looked at again then");
        let both = (known.to_vec(), true);
        assert_eq!(at(&mut told, Knowledge::Known, &["a", "b"], read + MERGED), both);
        assert_eq!(told.take_in(Knowledge::Known, known.iter(), read + MERGED), None);
    }
}
