//! The XDP program that passes everything.
//!
//! A veth takes frames from XDP_TX and redirects of its peer only where it has an XDP program itself.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::kernel_run::load_xdp;

const XDP_PASS: u64 = 2;

/// `r0 = XDP_PASS; exit`, as `struct bpf_insn`: code in the lowest byte, the immediate in the upper half.
static PASS: [u64; 2] = [0xb7 | XDP_PASS << 32, 0x95];

/// Loads the program.
///
/// # Errors
/// Without `CAP_BPF` or root.
pub(super) fn load() -> Result<OwnedFd> {
    load_xdp(&PASS).context("cannot load the passing XDP program")
}
