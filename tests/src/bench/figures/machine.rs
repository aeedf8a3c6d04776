//! What all of it ran on.

use std::{fs, thread};

use anyhow::Result;
use serde::Serialize;

use crate::output::kernel_release;

/// The CPU that measures.
pub(in crate::bench) const CPU: usize = 0;

/// The machine, and how busy it was.
#[derive(Clone, Debug, Serialize)]
pub(in crate::bench) struct Machine {
    pub(in crate::bench) cpu: String,
    pub(in crate::bench) cpus: usize,
    pub(in crate::bench) kernel: String,
    /// The CPU that everything timed was pinned to.
    pub(in crate::bench) pinned_to: usize,
    /// Processes that wanted a CPU in the minute before: more than 0 makes figures worse.
    pub(in crate::bench) load_before: Option<f64>,
    /// The last cache's size, as the kernel writes it.
    pub(in crate::bench) last_cache: Option<String>,
}

impl Machine {
    /// This one.
    pub(in crate::bench) fn here() -> Result<Machine> {
        let read = |path: &str| fs::read_to_string(path).ok();
        let model = read("/proc/cpuinfo").and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let load = read("/proc/loadavg").and_then(|text| text.split_whitespace().next()?.parse().ok());
        let cache = read("/sys/devices/system/cpu/cpu0/cache/index3/size").map(|text| text.trim().to_owned());
        Ok(Machine {
            cpu: model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: thread::available_parallelism().map_or(1, |cpus| cpus.get()),
            kernel: kernel_release()?,
            pinned_to: CPU,
            load_before: load,
            last_cache: cache,
        })
    }
}
