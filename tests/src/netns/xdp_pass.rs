//! The XDP program that passes everything: two instructions, loaded by bpf(2) as they are.
//!
//! A veth takes frames from XDP_TX and redirects of its peer only where it has an XDP program itself.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_XDP: u32 = 6;
const XDP_PASS: u64 = 2;

/// `r0 = XDP_PASS; exit`, as `struct bpf_insn`: code in the lowest byte, the immediate in the upper half.
static PASS: [u64; 2] = [0xb7 | XDP_PASS << 32, 0x95];

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zeroes.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// Loads the program.
///
/// # Errors
/// Without `CAP_BPF` or root.
pub(super) fn load() -> Result<OwnedFd> {
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: PASS.len() as u32,
        insns: PASS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: attr is a valid prefix of union bpf_attr whose size is given; its pointers are to statics.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<ProgLoad>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("cannot load the passing XDP program");
    }
    // SAFETY: the call succeeded, so fd is a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(fd)?) };
    debug_assert!(fd.as_raw_fd() >= 0);
    Ok(fd)
}
