//! The few instructions that a program written by hand needs, and bpf(2) to load it.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// `BPF_F_XDP_HAS_FRAGS`; an array of programs takes only those that agree on it.
const HAS_FRAGS: u32 = 1 << 5;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// `enum bpf_attach_type`; an array of programs takes only those of one type.
const BPF_XDP: u32 = 37;
/// `BPF_FUNC_tail_call`.
const TAIL_CALL: i32 = 12;
/// `BPF_FUNC_redirect`.
const REDIRECT: i32 = 23;
/// `BPF_FUNC_xdp_adjust_head`.
const ADJUST_HEAD: i32 = 44;
/// `BPF_FUNC_xdp_get_buff_len`.
const LENGTH: i32 = 188;
/// `BPF_PSEUDO_MAP_FD`: what an immediate of 64 bits means.
const MAP: u8 = 1;
/// `BPF_PSEUDO_MAP_VALUE`: an array's first element.
const MAP_VALUE: u8 = 2;

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
/// The head of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// Of `union bpf_attr` for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct MapUpdate {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// Room for what the verifier says.
const LOG: usize = 1 << 16;

/// Loads an XDP program of instructions as `struct bpf_insn` has them.
///
/// # Errors
/// Without `CAP_BPF` or root, or when the verifier refuses: what it said is in the error.
pub(crate) fn load_xdp(instructions: &[u64]) -> Result<OwnedFd> {
    load(instructions, BPF_XDP, 0)
}

fn load(instructions: &[u64], expected_attach_type: u32, prog_flags: u32) -> Result<OwnedFd> {
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
        prog_flags,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type,
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

/// Makes an array of one element of so many bytes, which can be mapped.
///
/// # Errors
/// Without root, or memory.
pub(super) fn mappable_array(value_size: u32) -> Result<OwnedFd> {
    create(&MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries: 1,
        map_flags: BPF_F_MMAPABLE,
    })
}

/// Makes an array of one program.
///
/// # Errors
/// Without root, or when the kernel does not call such a program by its array.
pub(super) fn array_of(program: BorrowedFd<'_>) -> Result<OwnedFd> {
    let array = create(&MapCreate {
        map_type: BPF_MAP_TYPE_PROG_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
    })?;
    let (key, value) = (0_u32, program.as_raw_fd() as u32);
    let attr = MapUpdate {
        map: array.as_raw_fd() as u64,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: as in `load`; key and value outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const attr, size_of::<MapUpdate>()) };
    if done < 0 {
        return Err(io::Error::last_os_error()).context("the kernel does not take the program into an array");
    }
    Ok(array)
}

fn create(attr: &MapCreate) -> Result<OwnedFd> {
    // SAFETY: as in `load`.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const *attr, size_of::<MapCreate>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("the kernel makes no map (root is needed)");
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
    pub(super) fn load_xdp(self) -> Result<OwnedFd> {
        load_xdp(&self.finish())
    }

    /// The same, for a program that calls others: it must agree with them on what they were loaded for.
    ///
    /// # Errors
    /// As [`load_xdp`].
    pub(super) fn load_xdp_like_callee(self) -> Result<OwnedFd> {
        let instructions = self.finish();
        let ways = [(BPF_XDP, 0), (BPF_XDP, HAS_FRAGS), (0, 0), (0, HAS_FRAGS)];
        let mut loaded = ways.iter().map(|(attach, flags)| load(&instructions, *attach, *flags));
        let first = loaded.next().context("there are ways")?;
        first.or_else(|error| loaded.find_map(Result::ok).ok_or(error))
    }

    fn finish(mut self) -> Vec<u64> {
        let jumps = !self.give_ups.is_empty();
        let end = self.instructions.len();
        for at in std::mem::take(&mut self.give_ups) {
            self.instructions[at] |= ((end - at - 1) as u64) << 16;
        }
        if jumps {
            self.exit_with(0);
        }
        self.instructions
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

    pub(super) fn add_register(&mut self, to: u8, from: u8) {
        self.push(0x0f, to, from, 0, 0);
    }

    pub(super) fn and(&mut self, register: u8, value: i32) {
        self.push(0x57, register, 0, 0, value);
    }

    pub(super) fn multiply(&mut self, register: u8, value: i32) {
        self.push(0x27, register, 0, 0, value);
    }

    /// Stores 1, 2, 4 or 8 bytes.
    pub(super) fn store(&mut self, width: usize, to: u8, offset: i16, from: u8) {
        let code = match width {
            1 => 0x73,
            2 => 0x6b,
            4 => 0x63,
            _ => 0x7b,
        };
        self.push(code, to, from, offset, 0);
    }

    /// Loads 1, 2, 4 or 8 bytes.
    pub(super) fn load(&mut self, width: usize, to: u8, from: u8, offset: i16) {
        let code = match width {
            1 => 0x71,
            2 => 0x69,
            4 => 0x61,
            _ => 0x79,
        };
        self.push(code, to, from, offset, 0);
    }

    /// Runs what `chosen` puts together where a register has a value.
    pub(super) fn when(&mut self, register: u8, value: i32, chosen: impl FnOnce(&mut Self)) {
        self.push(0x55, register, 0, 0, value);
        self.skip_over(chosen);
    }

    /// Ends by sending the frame out of an interface.
    pub(super) fn exit_to(&mut self, interface: u32) {
        self.set(1, interface as i32);
        self.set(2, 0);
        self.push(0x85, 0, 0, 0, REDIRECT);
        self.push(0x95, 0, 0, 0, 0);
    }

    /// Adds a register to 8 bytes of memory, in one that no other comes between: on x86-64 a full barrier.
    pub(super) fn add_atomically(&mut self, to: u8, offset: i16, value: u8) {
        self.push(0xdb, to, value, offset, 0);
    }

    /// Runs what `skipped` puts together unless both registers are equal.
    pub(super) fn unless_equal(&mut self, one: u8, other: u8, skipped: impl FnOnce(&mut Self)) {
        self.push(0x1d, one, other, 0, 0);
        self.skip_over(skipped);
    }

    /// Runs what `skipped` puts together unless one register is less than the other.
    pub(super) fn unless_less(&mut self, one: u8, other: u8, skipped: impl FnOnce(&mut Self)) {
        self.push(0xad, one, other, 0, 0);
        self.skip_over(skipped);
    }

    /// Gives the jump that was put last its distance.
    fn skip_over(&mut self, skipped: impl FnOnce(&mut Self)) {
        let at = self.instructions.len();
        skipped(self);
        self.instructions[at - 1] |= ((self.instructions.len() - at) as u64) << 16;
    }

    /// Takes bytes from the frame's head, or gives it some, until it is `length` bytes long; changes registers 0 to 5.
    pub(super) fn make_length(&mut self, context: u8, length: i32) {
        self.move_register(1, context);
        self.push(0x85, 0, 0, 0, LENGTH);
        self.add(0, -length);
        self.move_register(1, context);
        self.move_register(2, 0);
        self.push(0x85, 0, 0, 0, ADJUST_HEAD);
    }

    /// The address of an array's first element.
    pub(super) fn set_address(&mut self, to: u8, array: RawFd) {
        self.push_wide(to, MAP_VALUE, array as u64);
    }

    pub(super) fn set(&mut self, to: u8, value: i32) {
        self.push(0xb7, to, 0, 0, value);
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
