//! What the machine and the process must offer before anything is loaded.

use std::fmt::Write as _;
use std::path::Path;

use aya::util::KernelVersion;

/// The oldest kernel that everything here works on.
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(6, 1, 0);
/// Numbers of capabilities (capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The kernel is too old.
    #[error("Linux {found} is too old: Kanmon needs 6.1 or newer")]
    Kernel {
        /// The kernel's version.
        found: String,
    },
    /// The kernel has no type information of its own.
    #[error(
        "this kernel has no BTF (/sys/kernel/btf/vmlinux is missing): use one built with CONFIG_DEBUG_INFO_BTF"
    )]
    Btf,
    /// The process lacks capabilities.
    #[error(
        "this process lacks {}: run it as root, or give it these capabilities (systemd: AmbientCapabilities=, \
         Kubernetes: securityContext.capabilities.add)",
        .0.join(", ")
    )]
    Capabilities(Vec<&'static str>),
    /// The process's capabilities can't be read.
    #[error("can't read this process's capabilities from /proc/self/status: is /proc mounted?")]
    NoProc,
}

/// Checks the kernel and the process's capabilities.
///
/// # Errors
///
/// Names what is missing and how to get it.
pub fn check() -> Result<(), HostError> {
    shortcomings().into_iter().next().map_or(Ok(()), Err)
}

/// All that [`check`] could refuse, the kernel first.
#[must_use]
pub fn shortcomings() -> Vec<HostError> {
    let mut found = Vec::new();
    if KernelVersion::current().is_ok_and(|version| version < OLDEST_KERNEL) {
        found.push(HostError::Kernel { found: release() });
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        found.push(HostError::Btf);
    }
    let status = std::fs::read_to_string("/proc/self/status").ok();
    match status.as_deref().and_then(effective).map(missing_capabilities) {
        None => found.push(HostError::NoProc),
        Some(missing) if !missing.is_empty() => found.push(HostError::Capabilities(missing)),
        Some(_) => {}
    }
    found
}

/// The kernel's release, as `uname -r` says; empty where /proc doesn't tell.
#[must_use]
pub fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The interfaces that exist in this network namespace, as a list for people.
pub(super) fn interface_names() -> String {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else {
        return "unknown".to_owned();
    };
    let mut names = String::new();
    for interface in &interfaces {
        let separator = if names.is_empty() { "" } else { ", " };
        let _ = write!(names, "{separator}{}", interface.name().to_string_lossy());
    }
    if names.is_empty() { "none".to_owned() } else { names }
}

/// The effective capabilities in the text of `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Which of the capabilities needed are not there. CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON, as
/// in the kernel.
fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    let admin = has(CAP_SYS_ADMIN);
    [
        ("CAP_BPF", admin || has(CAP_BPF)),
        ("CAP_PERFMON", admin || has(CAP_PERFMON)),
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
    ]
    .into_iter()
    .filter_map(|(name, there)| (!there).then_some(name))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_capability_is_named() {
        assert_eq!(missing_capabilities(0), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(1 << CAP_BPF | 1 << CAP_PERFMON), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert!(missing_capabilities(1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN).is_empty());
        let message = HostError::Capabilities(missing_capabilities(1 << CAP_BPF)).to_string();
        assert!(message.contains("lacks CAP_PERFMON, CAP_NET_ADMIN:"), "{message}");
    }

    #[test]
    fn capabilities_are_read_from_the_status_text() {
        assert_eq!(
            effective("CapPrm:\t0000000000000001\nCapEff:\t000001ffffffffff\n"),
            Some(0x1ff_ffff_ffff)
        );
        assert_eq!(effective("Name:\tx\n"), None);
    }

    #[test]
    fn the_interfaces_of_this_namespace_are_listed() {
        assert!(interface_names().split(", ").any(|name| name == "lo"));
    }
}
