#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lb_common::host::fuzzing::tables(data));
