//! One frame through the program, by `BPF_PROG_TEST_RUN`.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// `enum xdp_action`: an error in the program, or a redirect to an interface that `EGRESS` does not have.
pub const XDP_ABORTED: u32 = 0;
/// `enum xdp_action`.
pub const XDP_DROP: u32 = 1;
/// `enum xdp_action`.
pub const XDP_PASS: u32 = 2;
/// `enum xdp_action`.
pub const XDP_TX: u32 = 3;
/// `enum xdp_action`.
pub const XDP_REDIRECT: u32 = 4;

const BPF_PROG_TEST_RUN: libc::c_int = 10;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`: what the program returns is done with the frame.
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames that the kernel takes through the program before what becomes of them goes on.
const BATCH: u32 = 64;
/// Room that the kernel leaves before a frame (`XDP_PACKET_HEADROOM`), and what of it the kernel keeps for
/// itself (`struct xdp_frame`).
const HEAD_ROOM: usize = 256;
const KEPT_BY_KERNEL: usize = 40;
/// Bytes by which a frame's head can grow when a run is not asked for less.
pub const MAX_HEAD_ROOM: usize = HEAD_ROOM - KEPT_BY_KERNEL;
/// A frame with metadata, before and after the program; the kernel takes no larger one in a single buffer.
const BUFFER: usize = 4096;

/// What the program did to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// `enum xdp_action`.
    pub action: u32,
    /// The frame as it left the program, whatever the action.
    pub frame: &'a [u8],
}

/// Runs the program on one frame at a time.
#[derive(Debug)]
pub struct Runner {
    program: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// The part of `union bpf_attr` that the command reads.
#[repr(C)]
struct Attributes {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// `struct xdp_md`.
#[repr(C)]
pub(super) struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress: u32,
    queue: u32,
    egress: u32,
}

impl Context {
    /// Of a frame that ends at `end` and has so many bytes of metadata before it, from the loopback.
    pub(super) fn behind_metadata(metadata: usize, end: usize) -> Self {
        Self { data: metadata as u32, data_end: end as u32, data_meta: 0, ingress: 0, queue: 0, egress: 0 }
    }
}

/// What a test run says.
pub(super) struct TestRun {
    /// What the program returned; the last time.
    pub(super) action: u32,
    /// Bytes of metadata and frame afterwards.
    size: usize,
    /// How long a run took, on average.
    pub(super) nanoseconds: u32,
}

/// Runs an XDP program `repeat` times on what is in the buffer by then.
pub(super) fn test_run(
    program: &OwnedFd,
    input: &[u8],
    output: &mut [u8],
    context: &Context,
    repeat: u32,
) -> io::Result<TestRun> {
    run(program, input, output, context, repeat, (0, 0))
}

/// Sends so many frames into the network as an XDP program of the calling thread's network namespace makes them.
pub(super) fn live_run(
    program: &OwnedFd,
    input: &[u8],
    context: &Context,
    repeat: u32,
) -> io::Result<TestRun> {
    run(program, input, &mut [], context, repeat, (LIVE_FRAMES, BATCH))
}

fn run(
    program: &OwnedFd,
    input: &[u8],
    output: &mut [u8],
    context: &Context,
    repeat: u32,
    (flags, batch_size): (u32, u32),
) -> io::Result<TestRun> {
    let mut attributes = Attributes {
        program: program.as_raw_fd() as u32,
        result: 0,
        size_in: input.len() as u32,
        size_out: output.len() as u32,
        data_in: input.as_ptr() as u64,
        data_out: if output.is_empty() { 0 } else { output.as_mut_ptr() as u64 },
        repeat,
        duration: 0,
        context_size_in: size_of::<Context>() as u32,
        context_size_out: 0,
        context_in: (&raw const *context) as u64,
        context_out: 0,
        flags,
        cpu: 0,
        batch_size,
        pad: 0,
    };
    loop {
        // SAFETY: the command reads `attributes`, `input` and `context`, and writes `attributes` and `output`,
        // within the sizes given; all of them outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attributes,
                size_of::<Attributes>() as libc::c_uint,
            )
        };
        if result >= 0 {
            return Ok(TestRun {
                action: attributes.result,
                size: attributes.size_out as usize,
                nanoseconds: attributes.duration,
            });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

impl Runner {
    /// A runner of an XDP program.
    pub fn new(program: OwnedFd) -> Self {
        Self { program, input: Vec::with_capacity(BUFFER), output: vec![0; BUFFER] }
    }

    /// Runs the program on a frame of at least 14 bytes that came in on the interface `ingress` of the
    /// calling thread's network namespace. `head_room` is by how many bytes its head can grow: a multiple of 4,
    /// at most [`MAX_HEAD_ROOM`]. Much less than that needs a kernel that allows metadata of up to 252 bytes.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn run(&mut self, frame: &[u8], ingress: u32, head_room: usize) -> io::Result<Outcome<'_>> {
        // Metadata takes up the room.
        let metadata = MAX_HEAD_ROOM - head_room;
        self.input.clear();
        self.input.resize(metadata, 0);
        self.input.extend_from_slice(frame);
        let context = Context { ingress, ..Context::behind_metadata(metadata, self.input.len()) };
        let run = test_run(&self.program, &self.input, &mut self.output, &context, 1)?;
        Ok(Outcome { action: run.action, frame: &self.output[metadata..run.size] })
    }
}
