//! What the fuzz targets run (`cargo xtask fuzz`): on plenty of random bytes, and on what once failed.

use lb_common::{hash::finish, host::fuzzing};

/// Inputs of a target.
const INPUTS: u64 = 100;

/// Random bytes, most of them few.
fn input(seed: u64) -> Vec<u8> {
    let length = finish(seed) % 200;
    (0..length).map(|n| finish(seed << 16 | n) as u8).collect()
}

#[test]
fn frames_like_those_of_live_flows_leave_the_tables_in_agreement() {
    (0..INPUTS).for_each(|seed| fuzzing::frames(&input(seed)));
}

#[test]
fn messages_about_packets_of_live_flows_leave_the_tables_in_agreement() {
    (0..INPUTS).for_each(|seed| fuzzing::messages(&input(seed)));
}

#[test]
fn no_content_of_the_tables_makes_the_program_fail() {
    (0..INPUTS).for_each(|seed| fuzzing::tables(&input(seed)));
}
