//! Kernel and process.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{FsType, statfs};

use super::super::facts::Host;
use crate::bpf::host::{HostError, release, shortcomings};

/// `BPF_FS_MAGIC` (magic.h).
const BPF_FS: FsType = FsType(0xcafe_4a11);

pub(super) fn host(pin_dir: &Path) -> Host {
    let check = |error: &HostError| match error {
        HostError::Kernel { .. } | HostError::Btf => "kernel",
        HostError::Capabilities(_) | HostError::NoProc => "capabilities",
    };
    Host {
        release: release(),
        lacks: shortcomings().into_iter().map(|error| (check(&error), error.to_string())).collect(),
        // A network namespace of its own doesn't show it.
        jit: read("/proc/sys/net/core/bpf_jit_enable").map(|value| value != "0"),
        pins: (pin_dir.display().to_string(), file_system(pin_dir)),
        vendor: read("/sys/class/dmi/id/sys_vendor"),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// `bpf`, or that it is something else, of what a directory is in, which may not be there yet.
fn file_system(directory: &Path) -> Option<String> {
    let existing = directory.ancestors().find(|ancestor| ancestor.exists())?;
    let found = statfs(existing).ok()?.filesystem_type();
    Some(if found == BPF_FS { "bpf" } else { "other" }.to_owned())
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}
