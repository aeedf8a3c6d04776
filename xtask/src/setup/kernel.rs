//! What the kernel must offer. None of it can be installed, so a lack is named and that is all.

use std::fs;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::item::Item;
use crate::privilege::Privilege;

/// The oldest kernel that serves.
const OLDEST: (u32, u32) = (6, 1);
/// The capabilities that loading, attaching and making namespaces take, with their bits.
const CAPABILITIES: [(&str, u32); 4] =
    [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// All of the kernel's items.
pub(crate) fn items(privilege: Privilege) -> Vec<Item> {
    vec![version(), btf(), bpffs(), namespaces(privilege), capabilities(privilege)]
}

fn version() -> Item {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let wanted = format!("boot a kernel of version {}.{} or later", OLDEST.0, OLDEST.1);
    match parse_version(release) {
        Some(found) if found >= OLDEST => Item::have("kernel", release),
        Some(_) => Item::missing("kernel", &format!("{release} is too old"), &wanted),
        None => Item::missing("kernel", &format!("version {release:?} can't be read"), &wanted),
    }
}

/// The first two numbers of a kernel's version.
pub(crate) fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn btf() -> Item {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        Item::have("kernel BTF", path)
    } else {
        Item::missing(
            "kernel BTF",
            &format!("{path} is not there"),
            "mount /sys, or boot a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        )
    }
}

fn bpffs() -> Item {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        Item::have("bpffs", "the kernel can mount it")
    } else {
        Item::missing(
            "bpffs",
            "no `bpf` in /proc/filesystems",
            "mount /proc, or boot a kernel built with CONFIG_BPF_SYSCALL=y",
        )
    }
}

fn namespaces(privilege: Privilege) -> Item {
    let name = "network namespaces";
    let how = "boot a kernel built with CONFIG_NET_NS=y, and allow unshare(2) where a container forbids it";
    if !Path::new("/proc/self/ns/net").exists() {
        return Item::missing(name, "/proc/self/ns/net is not there", how);
    }
    if privilege != Privilege::Root {
        return Item::have(name, "the kernel has them");
    }
    // Unsharing concerns the calling thread only: this one ends and takes the namespace with it.
    match thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join() {
        Ok(Ok(())) => Item::have(name, "one was made and dropped"),
        Ok(Err(error)) => Item::missing(name, &format!("unshare(CLONE_NEWNET): {error}"), how),
        Err(_) => Item::missing(name, "the try panicked", how),
    }
}

fn capabilities(privilege: Privilege) -> Item {
    let name = "privilege";
    match privilege {
        Privilege::Sudo => Item::have(name, "sudo, for the parts that need root"),
        Privilege::None => Item::missing(name, "neither root nor sudo", "run as root, or install sudo"),
        Privilege::Root => {
            let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
            let lacking = lacking_capabilities(&status);
            if lacking.is_empty() {
                Item::have(name, "root with all capabilities needed")
            } else {
                Item::missing(
                    name,
                    &format!("root without {}", lacking.join(", ")),
                    "give the container these capabilities (docker run --cap-add …)",
                )
            }
        }
    }
}

/// Which of the needed capabilities `/proc/self/status` does not show as effective.
fn lacking_capabilities(status: &str) -> Vec<&'static str> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES.iter().filter(|(_, bit)| mask & (1 << bit) == 0).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse_version("6.1.0-18-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(parse_version("5.15.167.4-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(parse_version("6.6+"), Some((6, 6)));
        assert_eq!(parse_version("linux"), None);
        assert!(parse_version("6.18.0") >= Some(OLDEST));
        assert!(parse_version("5.19.0") < Some(OLDEST));
        assert!(parse_version("10.0.1") >= Some(OLDEST));
    }

    #[test]
    fn lacking_capabilities_are_named() {
        assert!(lacking_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n").is_empty());
        // What docker gives without further arguments.
        assert_eq!(
            lacking_capabilities("CapEff:\t00000000a80425fb\n"),
            ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"]
        );
        assert_eq!(lacking_capabilities(""), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
    }
}
