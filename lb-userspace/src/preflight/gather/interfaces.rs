//! Interfaces.

use std::fs;

use super::super::facts::{Interface, LinkFacts};
use crate::bpf::{offloads_in_the_way, refuse_foreign_programs};
use crate::config::Settings;
use crate::network::{Link, LinkKind};

pub(super) fn interfaces(settings: &Settings, links: &[Link]) -> Vec<Interface> {
    let existing: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
    let describe = |name: &String| {
        let link = links.iter().find(|link| link.name == *name);
        Interface {
            name: name.clone(),
            link: link.map(facts),
            foreign_program: link.and_then(|_| {
                let names = std::slice::from_ref(name);
                refuse_foreign_programs(&settings.pin_dir, names).err().map(|error| error.to_string())
            }),
            existing: existing.clone(),
        }
    };
    settings.interfaces.iter().map(describe).collect()
}

fn facts(link: &Link) -> LinkFacts {
    let queues = fs::read_dir(format!("/sys/class/net/{}/queues", link.name));
    let is_tx = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("tx-");
    LinkFacts {
        up: link.up,
        ethernet: link.kind == LinkKind::Ethernet,
        driver: link.driver.clone(),
        mtu: link.mtu,
        tx_queues: queues.map(|entries| entries.flatten().filter(is_tx).count()).unwrap_or_default(),
        offloads: offloads_in_the_way(&link.name).unwrap_or_default(),
        rp_filter: ["all", &link.name].iter().filter_map(|name| rp_filter(name)).max(),
    }
}

/// The kernel takes the larger of `all` and the interface's own (ip-sysctl).
fn rp_filter(name: &str) -> Option<u8> {
    fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).ok()?.trim().parse().ok()
}
