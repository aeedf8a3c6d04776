//! The map ABI is what tests/fixtures/abi-v<ABI_VERSION>.txt says: sizes, alignments, offsets, bits of packed
//! words, hashes, and the maps of the built object. A gateway adopts the maps of the agent before it, so a
//! change of any of them needs another version.

mod abi {
    pub(crate) mod layout;
    pub(crate) mod words;
}

use std::{fmt::Write as _, fs, path::Path};

use lb_common::{abi::ABI_VERSION, host::Sizes};
use tests::kernel_run::{Clock, KernelProgram};

/// Sizes at which the maps are made for this test: those that the agent sets at load, all different.
const SIZES: Sizes = Sizes {
    flow_buckets: 2,
    reverse_v4_buckets: 4,
    reverse_v6_buckets: 8,
    services: 16,
    ring_pairs: 32,
    members: 64,
    backends: 128,
    snat_stride: 2,
    flow_stats: 4,
    cpus: 1,
};

#[test]
fn a_changed_layout_has_another_abi_version() {
    let mut found = String::new();
    abi::layout::describe(&mut found);
    abi::words::describe(&mut found);
    compare("layout", &found);
}

#[test]
fn changed_maps_have_another_abi_version() {
    let program = KernelProgram::load(&SIZES, Clock::Injected).expect("the kernel takes the packet program");
    let mut found = String::new();
    for (name, info) in program.maps() {
        let _ = writeln!(
            found,
            "map {name}: {:?}, key {}, value {}, entries {}, flags {:#x}",
            info.map_type().expect("a known type"),
            info.key_size(),
            info.value_size(),
            info.max_entries(),
            info.map_flags(),
        );
    }
    compare("maps", &found);
}

/// Compares with the stored description of this version, line by line.
fn compare(part: &str, found: &str) {
    let name = format!("abi-v{ABI_VERSION}-{part}.txt");
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(&name);
    let wanted = fs::read_to_string(&stored).unwrap_or_default();
    if wanted == found {
        return;
    }
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
    fs::write(&fresh, found).expect("the directory for temporary files is there");
    let mut difference = String::new();
    for line in wanted.lines().filter(|line| !found.lines().any(|other| other == *line)) {
        let _ = writeln!(difference, "- {line}");
    }
    for line in found.lines().filter(|line| !wanted.lines().any(|other| other == *line)) {
        let _ = writeln!(difference, "+ {line}");
    }
    panic!(
        "the map ABI is not what tests/fixtures/{name} says:\n{difference}Agents adopt the maps of the agent \
         before them, so raise ABI_VERSION in lb-common/src/abi/mod.rs, and store the new description, \
         {}, as the new version's.",
        fresh.display()
    );
}
