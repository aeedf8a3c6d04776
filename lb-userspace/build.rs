//! Tells the crate where the eBPF object is that it embeds.

use std::env;
use std::path::{Path, PathBuf};
use std::process::exit;

fn main() {
    println!("cargo:rerun-if-env-changed=KANMON_EBPF_OBJECT");
    let object = match env::var_os("KANMON_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => {
            let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
            manifest.parent().unwrap_or(Path::new("..")).join("target/ebpf/kanmon.o")
        }
    };
    println!("cargo:rerun-if-changed={}", object.display());
    let Ok(object) = object.canonicalize() else {
        eprintln!(
            "The eBPF object {} is not there: run `cargo xtask build-ebpf` once (it also installs the \
             compiler for eBPF where that is missing), or name one in KANMON_EBPF_OBJECT.",
            object.display()
        );
        exit(1);
    };
    println!("cargo:rustc-env=KANMON_EBPF_OBJECT_PATH={}", object.display());
}
