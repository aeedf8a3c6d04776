//! The few instructions that a program written by hand needs, and bpf(2) to load it.

use std::{
    ffi::CStr,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// `enum bpf_attach_type`; an array of programs takes only those of one type.
const BPF_XDP: u32 = 37;
/// `BPF_FUNC_tail_call`.
const TAIL_CALL: i32 = 12;
/// `BPF_PSEUDO_MAP_FD`: what an immediate of 64 bits means.
const MAP: u8 = 1;

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zeroes.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}
/// Room for what the verifier says.
const LOG: usize = 1 << 16;

/// Loads an XDP program of instructions as `struct bpf_insn` has them.
///
/// # Errors
/// Without `CAP_BPF` or root, or when the verifier refuses: what it said is in the error.
pub(crate) fn load_xdp(instructions: &[u64]) -> Result<OwnedFd> {
    let mut log = vec![0_u8; LOG];
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log_buf: log.as_mut_ptr() as u64,
        kern_version: 0,
        prog_flags: 0,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type: BPF_XDP,
    };
    // SAFETY: attr is a valid prefix of union bpf_attr whose size is given; its pointers outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<ProgLoad>()) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        let said = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        return Err(error).with_context(|| format!("the kernel refuses a program of ours:\n{said}"));
    }
    // SAFETY: the call succeeded, so fd is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Puts a program together. Registers are 0 to 10, offsets in bytes.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    instructions: Vec<u64>,
    /// Jumps to the end.
    give_ups: Vec<usize>,
}

impl Assembler {
    /// Loads what was put together; a jump to the end returns 0 (`XDP_ABORTED`).
    ///
    /// # Errors
    /// As [`load_xdp`].
    pub(super) fn load_xdp(mut self) -> Result<OwnedFd> {
        let end = self.instructions.len();
        for at in std::mem::take(&mut self.give_ups) {
            self.instructions[at] |= ((end - at - 1) as u64) << 16;
        }
        self.exit_with(0);
        load_xdp(&self.instructions)
    }

    pub(super) fn move_register(&mut self, to: u8, from: u8) {
        self.push(0xbf, to, from, 0, 0);
    }

    pub(super) fn add(&mut self, to: u8, value: i32) {
        self.push(0x07, to, 0, 0, value);
    }

    /// Every bit the other way.
    pub(super) fn complement(&mut self, register: u8) {
        self.push(0xa7, register, 0, 0, -1);
    }

    pub(super) fn shift_right(&mut self, register: u8, bits: i32) {
        self.push(0x77, register, 0, 0, bits);
    }

    pub(super) fn load_word(&mut self, to: u8, from: u8, offset: i16) {
        self.push(0x61, to, from, offset, 0);
    }

    pub(super) fn load_double(&mut self, to: u8, from: u8, offset: i16) {
        self.push(0x79, to, from, offset, 0);
    }

    pub(super) fn store_double(&mut self, to: u8, offset: i16, from: u8) {
        self.push(0x7b, to, from, offset, 0);
    }

    pub(super) fn store_half(&mut self, to: u8, offset: i16, from: u8) {
        self.push(0x6b, to, from, offset, 0);
    }

    pub(super) fn store_half_immediate(&mut self, to: u8, offset: i16, value: u16) {
        self.push(0x6a, to, 0, offset, value.into());
    }

    pub(super) fn set_double(&mut self, to: u8, value: u64) {
        self.push_wide(to, 0, value);
    }

    /// Jumps to the end unless `length` bytes from `start` on lie before `end`; changes register 5.
    pub(super) fn give_up_unless_within(&mut self, start: u8, length: i32, end: u8) {
        self.move_register(5, start);
        self.add(5, length);
        self.give_ups.push(self.instructions.len());
        self.push(0x2d, 5, end, 0, 0);
    }

    /// Calls a program of an array and goes on behind it where there is none.
    pub(super) fn tail_call(&mut self, context: u8, programs: RawFd, index: i32) {
        self.move_register(1, context);
        self.push_wide(2, MAP, programs as u64);
        self.push(0xb7, 3, 0, 0, index);
        self.push(0x85, 0, 0, 0, TAIL_CALL);
    }

    pub(super) fn exit_with(&mut self, value: i32) {
        self.push(0xb7, 0, 0, 0, value);
        self.push(0x95, 0, 0, 0, 0);
    }

    fn push_wide(&mut self, to: u8, meaning: u8, value: u64) {
        self.push(0x18, to, meaning, 0, value as u32 as i32);
        self.push(0, 0, 0, 0, (value >> 32) as i32);
    }

    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        let registers = u64::from(to | from << 4) << 8;
        let offset = u64::from(offset as u16) << 16;
        self.instructions.push(u64::from(code) | registers | offset | u64::from(immediate as u32) << 32);
    }
}
