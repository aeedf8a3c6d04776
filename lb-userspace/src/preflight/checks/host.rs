//! Kernel, process, and the fabric that the machine is in.

use super::super::facts::Host;
use super::super::finding::Finding;

/// What `statfs` calls the BPF file system.
const BPFFS: &str = "bpf";

/// `kernel`, `capabilities`, `jit`, `pins`.
pub(in super::super) fn check(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (check, good) in [
        ("kernel", format!("Linux {}, with BTF", host.release)),
        ("capabilities", "this process may load and attach programs".to_owned()),
    ] {
        let lacks = host.lacks.iter().filter(|(of, _)| *of == check);
        let before = findings.len();
        findings.extend(lacks.map(|(check, sentence)| {
            let (what, fix) = sentence.split_once(": ").unwrap_or((sentence, "see above"));
            Finding::failed(check, "this machine", what, fix)
        }));
        if findings.len() == before {
            findings.push(Finding::ok(check, "this machine", good));
        }
    }
    // Another network namespace than the first does not show it.
    findings.extend(host.jit.map(|jit| match jit {
        true => Finding::ok("jit", "this machine", "programs are compiled"),
        false => Finding::failed(
            "jit",
            "this machine",
            "net.core.bpf_jit_enable is 0: programs are interpreted, at many times the cost, and some are refused",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
    }));
    let (directory, kind) = &host.pins;
    findings.push(match kind.as_deref() {
        Some(BPFFS) => Finding::ok("pins", directory, "is in a BPF file system"),
        _ => Finding::failed(
            "pins",
            directory,
            "is not in a BPF file system, and nothing can be pinned there",
            "mount -t bpf bpf /sys/fs/bpf, or name another directory with --pin-dir",
        ),
    });
    findings
}

/// `source-check`: whether the fabric takes packets from addresses that are not the machine's own. Only the fabric
/// knows; which one it is can be seen.
pub(in super::super) fn check_fabric(vendor: Option<&str>) -> Vec<Finding> {
    const CLOUDS: [(&str, &str); 4] = [
        ("Amazon EC2", "aws ec2 modify-instance-attribute --no-source-dest-check --instance-id ID"),
        (
            "Alibaba Cloud",
            "point the VPC route table's entry for the VIPs at this instance's ENI, and switch the ENI's source/\
             destination check off",
        ),
        ("Microsoft Corporation", "az network nic update --ip-forwarding true for this machine's NIC"),
        ("Google", "make the instance with --can-ip-forward"),
    ];
    let known = vendor.and_then(|vendor| CLOUDS.iter().find(|(name, _)| vendor.contains(name)));
    let finding = match known {
        Some((name, fix)) => Finding::warning(
            "source-check",
            "the fabric",
            format!(
                "{name} drops what this machine sends from a VIP, unless told otherwise; it can't be seen from here"
            ),
            *fix,
        ),
        None => Finding::ok("source-check", "the fabric", "no cloud that is known to check source addresses"),
    };
    vec![finding]
}
