//! docs/datapath.md says what the program does.

use std::collections::BTreeMap;

use lb_common::abi::{Counter, Refusal};

/// The rows that name a counter: its name, and the cells before it.
fn rows() -> Vec<(String, Vec<String>)> {
    let page = include_str!("../../../docs/datapath.md");
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    page.lines()
        .filter(|line| line.starts_with('|') && line.ends_with("` |"))
        .map(|line| {
            let mut cells = cells(line);
            let counter = cells.pop().unwrap_or_default();
            (counter.trim_matches('`').to_owned(), cells)
        })
        .collect()
}

#[test]
fn each_counter_has_a_row_and_each_row_a_counter() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (counter, _) in rows() {
        *seen.entry(counter).or_default() += 1;
    }
    let all = Counter::ALL.iter().map(|counter| (counter.name().to_owned(), 1)).collect();
    assert_eq!(seen, all);
}

#[test]
fn each_drop_says_what_its_sender_hears() {
    for (name, cells) in rows() {
        let counter = Counter::ALL.iter().find(|counter| counter.name() == name).unwrap();
        let told = match Refusal::after(*counter) {
            None => "nothing",
            Some(Refusal::Port) => "port",
            Some(Refusal::Prohibited) => "prohibited",
            Some(Refusal::Protocol) => "protocol",
            Some(Refusal::TimeExceeded) => "time exceeded",
            Some(Refusal::TooBig) => "too big",
        };
        if name.starts_with("drop_") {
            assert_eq!(cells[1..], [told], "{name}");
        } else {
            assert_eq!(cells.len(), 1, "{name} is no drop: nobody is told of it");
        }
    }
}
