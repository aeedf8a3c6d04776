//! Reads what Rust's test harness prints: its stable text form, line by line.

use std::collections::BTreeMap;

/// A test that wants to be skipped prints this and its reason, and passes.
pub(crate) const SKIP_MARK: &str = "KANMON-SKIP:";

/// How a test ended, as the harness says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// `ok`
    Ok,
    /// `FAILED`
    Failed,
    /// `ignored`
    Ignored,
}

/// Where in the output we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Place {
    /// In the list of tests.
    #[default]
    List,
    /// In what one test printed.
    OutputOf(String),
    /// In the closing list of names that ended so.
    Closing(Verdict),
}

/// What was read so far.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    verdicts: Vec<(String, Verdict)>,
    outputs: BTreeMap<String, String>,
    place: Place,
}

impl Parser {
    /// Takes one line, without its line break.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.place = Place::OutputOf(name.to_owned());
            return;
        }
        match line {
            "successes:" => self.place = Place::Closing(Verdict::Ok),
            "failures:" => self.place = Place::Closing(Verdict::Failed),
            _ => match &self.place {
                Place::List => self.list_line(line),
                Place::Closing(verdict) => self.closing_name(line, *verdict),
                Place::OutputOf(name) => {
                    let output = self.outputs.entry(name.clone()).or_default();
                    output.push_str(line);
                    output.push('\n');
                }
            },
        }
    }

    /// The tests that ended, in that order.
    pub(crate) fn verdicts(&self) -> &[(String, Verdict)] {
        &self.verdicts
    }

    /// What `name` printed, where the harness showed it.
    pub(crate) fn output(&self, name: &str) -> Option<&str> {
        self.outputs.get(name).map(|output| output.trim_end())
    }

    /// Why `name` asked to be skipped, if it did.
    pub(crate) fn skip_reason(&self, name: &str) -> Option<&str> {
        let output = self.outputs.get(name)?;
        output.lines().find_map(|line| Some(line.trim().strip_prefix(SKIP_MARK)?.trim()))
    }

    fn list_line(&mut self, line: &str) {
        let Some((name, rest)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) else {
            return;
        };
        if let Some(verdict) = verdict(rest) {
            // `#[should_panic]` tests carry a remark behind their name.
            self.verdicts.push((name.trim_end_matches(" - should panic").to_owned(), verdict));
        }
    }

    /// A name in one of the closing lists. Another process may have written into the middle of a test's
    /// own line; these lists make up for it.
    fn closing_name(&mut self, line: &str, verdict: Verdict) {
        if let Some(name) = line.strip_prefix("    ")
            && !self.verdicts.iter().any(|(known, _)| known == name)
        {
            self.verdicts.push((name.to_owned(), verdict));
        }
    }
}

/// The verdict at the start of what follows `... `.
fn verdict(text: &str) -> Option<Verdict> {
    match text.split([',', ' ']).next()? {
        "ok" => Some(Verdict::Ok),
        "FAILED" => Some(Verdict::Failed),
        "ignored" => Some(Verdict::Ignored),
        _ => None,
    }
}

/// The names in the output of `--list --format terse`.
pub(crate) fn listed(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Parser {
        let mut parser = Parser::default();
        text.lines().for_each(|line| parser.line(line));
        parser
    }

    const MIXED: &str = "
running 4 tests
test a::passes ... ok
test b::fails ... FAILED
test c::skips ... ok
test d::later ... ignored, needs hardware
test e::panics - should panic ... ok

successes:

---- c::skips stdout ----
KANMON-SKIP: there is no Go here


successes:
    a::passes
    c::skips

failures:

---- b::fails stdout ----

thread 'b::fails' panicked at src/lib.rs:3:5:
test x ... ok
left: 1, right: 2


failures:
    b::fails

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn verdicts_come_in_order() {
        let parser = parse(MIXED);
        let verdicts: Vec<_> = parser.verdicts().iter().map(|(name, v)| (name.as_str(), *v)).collect();
        assert_eq!(
            verdicts,
            [
                ("a::passes", Verdict::Ok),
                ("b::fails", Verdict::Failed),
                ("c::skips", Verdict::Ok),
                ("d::later", Verdict::Ignored),
                ("e::panics", Verdict::Ok),
            ]
        );
    }

    #[test]
    fn what_a_test_prints_is_no_verdict() {
        let parser = parse(MIXED);
        assert!(!parser.verdicts().iter().any(|(name, _)| name == "x"));
        let output = parser.output("b::fails").unwrap();
        assert!(output.contains("test x ... ok") && output.ends_with("left: 1, right: 2"), "{output}");
    }

    #[test]
    fn a_skip_carries_its_reason() {
        let parser = parse(MIXED);
        assert_eq!(parser.skip_reason("c::skips"), Some("there is no Go here"));
        assert_eq!(parser.skip_reason("a::passes"), None);
    }

    #[test]
    fn closing_lists_make_up_for_a_garbled_line() {
        let parser = parse(
            "test a ... noise from a child\nok\n\nsuccesses:\n\nsuccesses:\n    a\n\nfailures:\n    b\n",
        );
        assert_eq!(parser.verdicts(), [("a".to_owned(), Verdict::Ok), ("b".to_owned(), Verdict::Failed)]);
    }

    #[test]
    fn listing_names_tests_only() {
        assert_eq!(listed("a::b: test\nbench_c: benchmark\n\n1 test\n"), ["a::b"]);
    }
}
