//! What packets see: which ring each Service has in the kernel's maps.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::maps::{Array, MapData};
use lb_common::abi::ServiceDescriptor;

use super::load::vip;
use crate::scene::maps;

/// How often we look: what is measured is some hundred times longer.
const LOOK: Duration = Duration::from_micros(100);
const DESCRIPTOR: usize = size_of::<ServiceDescriptor>();

/// The Services of an agent, in the maps that it pinned.
pub(super) struct Rings {
    descriptors: Array<MapData, [u8; DESCRIPTOR]>,
    /// Elements by VIP.
    indices: BTreeMap<Ipv4Addr, u32>,
}

impl Rings {
    /// Opens the maps; Services that come later are not known.
    pub(super) fn open(pins: &Path) -> Result<Rings> {
        let keys = maps::keys::<8>(pins, "SERVICES_V4")?;
        let index = |(key, index): ([u8; 8], u32)| (Ipv4Addr::new(key[0], key[1], key[2], key[3]), index);
        Ok(Rings {
            descriptors: maps::array(pins, "DESCRIPTORS")?,
            indices: keys.into_iter().map(index).collect(),
        })
    }

    /// How many Services there are.
    pub(super) fn len(&self) -> usize {
        self.indices.len()
    }

    /// The word that names a Service's ring: another one with each ring.
    pub(super) fn of(&self, service: u32) -> Result<u64> {
        let vip = vip(service);
        let index = self.indices.get(&vip).with_context(|| format!("{vip} is not in the maps"))?;
        let bytes = self.descriptors.get(index, 0).context("cannot read DESCRIPTORS")?;
        Ok(bytemuck::pod_read_unaligned::<ServiceDescriptor>(&bytes).ring)
    }

    /// Waits until a Service has another ring.
    pub(super) fn wait_for_change(&self, service: u32, before: u64, patience: Duration) -> Result<Instant> {
        self.wait_for_changes(&[(service, before)], patience)
    }

    /// Waits until all of these Services have other rings, and tells when the last one got it.
    pub(super) fn wait_for_changes(&self, before: &[(u32, u64)], patience: Duration) -> Result<Instant> {
        let deadline = Instant::now() + patience;
        let (mut waiting, mut last) = (before.to_vec(), Instant::now());
        loop {
            let count = waiting.len();
            let mut left = Vec::new();
            for (service, before) in waiting {
                if self.of(service)? == before {
                    left.push((service, before));
                }
            }
            waiting = left;
            let now = Instant::now();
            if waiting.len() < count {
                last = now;
            }
            if waiting.is_empty() {
                return Ok(last);
            }
            if now > deadline {
                bail!("after {patience:?} {} of {} rings are as they were", waiting.len(), before.len());
            }
            thread::sleep(LOOK);
        }
    }

    /// Waits until a Service's ring has not changed for `quiet`, having changed at least once; when it last did.
    pub(super) fn wait_until_settled(&self, service: u32, before: u64, quiet: Duration) -> Result<Instant> {
        let mut last = self.wait_for_change(service, before, 10 * quiet)?;
        let mut ring = self.of(service)?;
        while last.elapsed() < quiet {
            thread::sleep(LOOK);
            let now = self.of(service)?;
            if now != ring {
                (ring, last) = (now, Instant::now());
            }
        }
        Ok(last)
    }
}
