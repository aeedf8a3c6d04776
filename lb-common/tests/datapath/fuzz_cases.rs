//! What the fuzz targets run (`cargo xtask fuzz`): on plenty of random bytes, and on what once failed.

use lb_common::{hash::finish, host::fuzzing};

/// Inputs of a target.
const INPUTS: u64 = 300;

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

/// It has no bit. In the kernel that of another flow's port was cleared in its stead.
#[test]
fn a_damaged_entry_of_a_port_beyond_the_range_gives_no_port_back() {
    let input = [
        0x00, 0xff, 0xff, 0x0e, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbd, 0xbd, 0xbd, 0xbd, 0xbd, 0xbd, 0xbd, 0xbd,
        0xbd, 0x06, 0x09, 0x09,
    ];
    fuzzing::tables(&input);
}
