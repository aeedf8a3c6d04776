//! The few `bpf(2)` commands on links that aya does not offer as they are needed here: aya's own attach falls
//! back to netlink without a word, and such an attachment cannot be pinned.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;
/// `enum bpf_attach_type`.
const BPF_XDP: u32 = 37;
/// `enum bpf_link_type`.
const BPF_LINK_TYPE_XDP: u32 = 6;

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct XdpLinkInfo {
    /// The program that it runs.
    pub(super) program: u32,
    /// The interface that it is attached to; 0 once that interface is gone.
    pub(super) ifindex: u32,
}

/// Attaches an XDP program to an interface. `flags` are those of `XDP_FLAGS_…`.
pub(super) fn link_create(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        rest: [u64; 4],
    }
    let mut attributes = Attributes {
        program: program.as_raw_fd() as u32,
        target: ifindex,
        attach_type: BPF_XDP,
        flags,
        ..Attributes::default()
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attributes)?;
    // SAFETY: the command succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets a link run another program, from one packet to the next.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let mut attributes = Attributes {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Detaches a link whoever still holds it.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: u32,
    }
    bpf(BPF_LINK_DETACH, &mut Attributes { link: link.as_raw_fd() as u32 }).map(drop)
}

/// Asks about a link; fails with `InvalidInput` when it is not one of XDP.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<XdpLinkInfo> {
    /// `struct bpf_link_info` with the union's member `xdp`, and room for the larger ones.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        ifindex: u32,
        rest: [u32; 27],
    }
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = Info::default();
    let mut attributes = Attributes {
        fd: link.as_raw_fd() as u32,
        length: size_of::<Info>() as u32,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    if info.kind != BPF_LINK_TYPE_XDP {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a link of an XDP program"));
    }
    Ok(XdpLinkInfo { program: info.program, ifindex: info.ifindex })
}

/// Pins an object (link, map or program) at a path on a BPF file system.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    object_command(BPF_OBJ_PIN, path, object.as_raw_fd() as u32).map(drop)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let fd = object_command(BPF_OBJ_GET, path, 0)?;
    // SAFETY: the command succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn object_command(command: libc::c_int, path: &Path, fd: u32) -> io::Result<libc::c_int> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(command, &mut Attributes { path: path.as_ptr() as u64, fd, flags: 0 })
}

/// `bpf(2)`. `T` must be the beginning of the command's part of `union bpf_attr`.
fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `attributes` (what lies beyond counts as zero);
    // pointers inside it are to memory that the callers above keep alive and large enough.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
