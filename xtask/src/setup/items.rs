//! The table of what is needed, apart from the kernel.

use std::path::Path;
use std::process::Command;

use super::item::{Fix, Item, Need};
use super::kernel::parse_version;
use super::linker;
use super::route::{self, DEBIAN_LLVM, Route};
use crate::workspace::{self, find_program};

/// The oldest cargo that builds the workspace: `rust-version` in Cargo.toml.
const OLDEST_CARGO: (u32, u32) = (1, 90);

/// What every route needs.
pub(crate) fn common() -> Vec<Item> {
    vec![
        cargo(),
        style_tools(),
        program("cc", "C linker", &["gcc", "libc6-dev"], Need::Build),
        program("curl", "curl", &["curl", "ca-certificates"], Need::Run),
        program("bpftool", "bpftool", &["bpftool"], Need::Run),
        program("ip", "ip", &["iproute2"], Need::Run),
        // kube-proxy of the tests' clusters calls it.
        program("nft", "nft", &["nftables"], Need::Run),
        haproxy(),
    ]
}

/// What `route` needs on top.
pub(crate) fn of_route(route: Route) -> Vec<Item> {
    match route {
        Route::Rustup => vec![nightly(), bpf_linker(route), nightly_clippy()],
        Route::Debian => vec![debian_rustc(), bpf_linker(route), debian_clippy()],
    }
}

fn cargo() -> Item {
    let output = Command::new(workspace::cargo_path()).arg("--version").output();
    let text = output.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    let how = "install rustup from https://rustup.rs, then `rustup update stable`";
    let item = match text.strip_prefix("cargo ").and_then(parse_version) {
        Some(version) if version >= OLDEST_CARGO => Item::have("cargo", &text),
        Some(_) => Item::missing("cargo", &format!("{text} is too old"), how),
        None => Item::missing("cargo", "it does not start", how),
    };
    item.needed_to(Need::Build)
}

/// rustfmt and clippy beside the cargo that runs us.
fn style_tools() -> Item {
    let name = "rustfmt, clippy";
    let cargo = workspace::cargo_path();
    let beside = |tool: &str| {
        cargo.parent().is_some_and(|dir| workspace::is_executable(&dir.join(tool)))
            || (cargo.parent().is_none_or(|dir| dir.as_os_str().is_empty()) && find_program(tool).is_some())
    };
    if beside("cargo-fmt") && beside("cargo-clippy") {
        Item::have(name, "beside cargo").needed_to(Need::Ci)
    } else {
        Item::missing(name, "not beside cargo", "rustup component add rustfmt clippy")
            .needed_to(Need::Ci)
            .fixed_by(Fix::Components(vec!["rustfmt".into(), "clippy".into()]))
    }
}

fn program(program: &str, name: &str, packages: &[&str], need: Need) -> Item {
    match find_program(program) {
        Some(path) => Item::have(name, &path.display().to_string()).needed_to(need),
        None => {
            let how = format!("apt-get install {}, or what provides it elsewhere", packages.join(" "));
            let item = Item::missing(name, &format!("`{program}` is not in PATH"), &how).needed_to(need);
            with_packages(item, owned(packages))
        }
    }
}

/// What the benchmarks start by themselves, in their own network namespaces.
fn haproxy() -> Item {
    let name = "haproxy";
    let item = program(name, name, &[name], Need::Bench);
    match item.fix {
        Fix::Packages(_) => item.fixed_by(Fix::Service(name.to_owned())),
        _ => item,
    }
}

/// What fetches Go where there is none; most machines never need it.
pub(super) fn pip() -> Item {
    let name = "pip";
    let pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
    let item = match pip {
        Ok(output) if output.status.success() => Item::have(name, "python3 -m pip"),
        _ => {
            let how = "apt-get install python3-pip, or what provides it elsewhere";
            with_packages(
                Item::missing(name, "`python3 -m pip` does not start", how),
                owned(&["python3-pip"]),
            )
        }
    };
    item.needed_to(Need::Kubernetes)
}

fn nightly() -> Item {
    let name = "eBPF compiler";
    let item = if route::nightly_has_sources() {
        Item::have(name, "rustup's nightly with rust-src")
    } else {
        Item::missing(
            name,
            "rustup has no nightly with rust-src",
            "rustup toolchain install nightly --component rust-src",
        )
        .fixed_by(Fix::Nightly)
    };
    item.needed_to(Need::Build)
}

fn nightly_clippy() -> Item {
    let name = "eBPF clippy";
    let item = if workspace::is_executable(&route::nightly_sysroot().join("bin/clippy-driver")) {
        Item::have(name, "nightly's clippy")
    } else {
        let how = "rustup component add clippy --toolchain nightly";
        Item::missing(name, "nightly has no clippy", how).fixed_by(Fix::Nightly)
    };
    item.needed_to(Need::Ci)
}

fn debian_rustc() -> Item {
    let name = "eBPF compiler";
    let item = match route::debian_compiler() {
        Ok(version) => Item::have(name, &format!("{version} with its sources, LLVM {DEBIAN_LLVM}")),
        Err(lack) => {
            let mut packages = owned(&["rustc-web", "rust-web-src"]);
            packages.extend(llvm_packages());
            let how = format!("apt-get install {}", packages.join(" "));
            with_packages(Item::missing(name, &lack, &how), packages)
        }
    };
    item.needed_to(Need::Build)
}

fn debian_clippy() -> Item {
    let name = "eBPF clippy";
    let item = if workspace::is_executable(Path::new("/usr/bin/clippy-driver")) {
        Item::have(name, "/usr/bin/clippy-driver")
    } else {
        let item = Item::missing(
            name,
            "/usr/bin/clippy-driver is not there",
            "apt-get install --no-install-recommends rust-web-clippy",
        );
        with_packages(item, owned(&["rust-web-clippy"]))
    };
    item.needed_to(Need::Ci)
}

fn bpf_linker(route: Route) -> Item {
    let name = "bpf-linker";
    let path = linker::path(route);
    let item = if linker::present(route) {
        let version = linker::reported_version(&path).unwrap_or_default();
        let version = version.strip_prefix("bpf-linker ").unwrap_or(&version).to_owned();
        Item::have(name, &format!("{version}, {}", path.display()))
    } else {
        let how = "cargo xtask setup builds or downloads it";
        let lack = format!("no working {}", path.display());
        let packages = match route {
            Route::Rustup => Vec::new(),
            Route::Debian if linker::can_build() => Vec::new(),
            Route::Debian => llvm_packages(),
        };
        Item::missing(name, &lack, how).fixed_by(Fix::Linker(packages))
    };
    item.needed_to(Need::Build)
}

/// What bpf-linker is built on. clang brings the C++ library that LLVM is linked with.
fn llvm_packages() -> Vec<String> {
    vec![
        format!("llvm-{DEBIAN_LLVM}-dev"),
        format!("libpolly-{DEBIAN_LLVM}-dev"),
        format!("clang-{DEBIAN_LLVM}"),
    ]
}

fn with_packages(item: Item, packages: Vec<String>) -> Item {
    if find_program("apt-get").is_some() { item.fixed_by(Fix::Packages(packages)) } else { item }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
