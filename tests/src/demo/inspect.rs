//! The kernel's view: the services map, as bpftool prints it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{report::StepReport, stage::Stage};
use crate::{client::Tally, topology::VIP};

/// The services maps, IPv4's first.
const MAPS: [&str; 2] = ["SERVICES_V4", "SERVICES_V6"];

/// `bpftool map dump` of the services maps has field names and the VIPs in it.
pub(super) fn inspect(stage: &mut Stage) -> Result<StepReport> {
    let pins = service_maps(&stage.bed.bpffs());
    let mut report = StepReport::of(&Tally::default());
    let vips: [Vec<u8>; 2] = [VIP.v4.octets().into(), VIP.v6.octets().into()];
    for (name, vip) in MAPS.into_iter().zip(vips) {
        let pin = pins.iter().find(|pin| pin.ends_with(name));
        let pin =
            pin.with_context(|| format!("no map {name} is pinned in {}", stage.bed.bpffs().display()))?;
        let keys = keys(&dump(pin)?);
        stage.screen.say(&format!("  $ bpftool map dump pinned {}", pin.display()));
        for key in &keys {
            stage.screen.say(&format!("  {key}"));
        }
        let named = |key: &&Value| ["vip", "port", "protocol"].iter().all(|field| key.get(field).is_some());
        report.expect(!keys.is_empty() && keys.iter().all(|key| named(&key)), || {
            format!("{name} has keys without the fields vip, port and protocol")
        });
        report.expect(keys.iter().any(|key| bytes(&key["vip"]) == vip), || {
            format!("{name} has no key with the VIP {vip:?}")
        });
        report.detail(if name == MAPS[0] { "entries_v4" } else { "entries_v6" }, keys.len());
    }
    Ok(report)
}

/// Where the services maps are pinned, below `dir`.
pub(super) fn service_maps(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if MAPS.iter().any(|name| path.ends_with(name)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn dump(pin: &Path) -> Result<Value> {
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["--json", "map", "dump", "pinned"]).arg(pin);
    let output = bpftool.output().context("cannot run bpftool: `cargo xtask setup` installs it")?;
    ensure!(
        output.status.success(),
        "bpftool cannot dump {}: {}{}",
        pin.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("bpftool printed no JSON")
}

/// The keys of a dump, with names where bpftool knows them.
fn keys(dump: &Value) -> Vec<Value> {
    let entries = dump.as_array().into_iter().flatten();
    entries.map(|entry| entry.get("formatted").unwrap_or(entry)["key"].clone()).collect()
}

/// An array of bytes, which bpftool prints as numbers, signed or not.
fn bytes(value: &Value) -> Vec<u8> {
    let numbers = value.as_array().into_iter().flatten().filter_map(Value::as_i64);
    numbers.filter_map(|n| u8::try_from(n & 0xff).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_read_by_name_and_bytes_without_their_sign() {
        let dump = json!([{
            "key": ["0xc0"], "value": ["0x00"],
            "formatted": {"key": {"vip": [-64, 168, 100, 10], "port": 20480, "protocol": 6}, "value": 0}
        }]);
        let keys = keys(&dump);
        assert_eq!(keys.len(), 1);
        assert_eq!(bytes(&keys[0]["vip"]), [192, 168, 100, 10]);
        assert_eq!(bytes(&json!("nothing")), [0u8; 0]);
    }
}
