//! Two things that ethtool knows of an interface: its driver's name, and the offloads that hide VLAN tags.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`: the set of strings that names features.
const FEATURE_NAMES: u32 = 4;
/// Bytes of one name (`ETH_GSTRING_LEN`).
const NAME: usize = 32;
/// Words of `struct ethtool_get_features_block`.
const GET_BLOCK: usize = 4;
/// Words before the blocks in `struct ethtool_gfeatures` and `struct ethtool_sfeatures`.
const HEADER: usize = 2;

/// Features that take a VLAN tag out of the frame before XDP sees it (ethtool calls the first
/// `rx-vlan-offload`).
const TAG_HIDING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// Features that native XDP cannot have beside it: the card hands on packets that it merged.
const MERGING: [&str; 2] = ["rx-gro-hw", "rx-lro"];

/// What switching VLAN offload off came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VlanOffload {
    /// It was off.
    WasOff,
    /// It was on and is now off.
    SwitchedOff,
    /// These features stay on whatever one asks for.
    Fixed(Vec<&'static str>),
}

/// The driver's name.
pub(super) fn driver(interface: &str) -> io::Result<String> {
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct Info {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    let mut info = Info { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    ethtool(interface, (&raw mut info).cast())?;
    Ok(text(&info.driver))
}

/// Offloads that are on and in the way of XDP, by the kernel's names.
///
/// # Errors
/// The interface can't be asked.
pub fn offloads_in_the_way(interface: &str) -> io::Result<Vec<String>> {
    let names = match feature_names(interface) {
        Ok(names) => names,
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let wanted = TAG_HIDING.into_iter().chain(MERGING);
    let bits: Vec<(usize, &str)> =
        wanted.filter_map(|name| Some((names.iter().position(|known| known == name)?, name))).collect();
    let on = active(interface, names.len().div_ceil(32), &bits)?;
    Ok(on.into_iter().map(|(_, name)| name.to_owned()).collect())
}

/// Switches off what hides VLAN tags from XDP.
pub(super) fn switch_vlan_offload_off(interface: &str) -> io::Result<VlanOffload> {
    let names = match feature_names(interface) {
        Ok(names) => names,
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(VlanOffload::WasOff),
        Err(error) => return Err(error),
    };
    let bits: Vec<(usize, &str)> = TAG_HIDING
        .into_iter()
        .filter_map(|name| Some((names.iter().position(|known| known == name)?, name)))
        .collect();
    let blocks = names.len().div_ceil(32);
    let on = active(interface, blocks, &bits)?;
    if on.is_empty() {
        return Ok(VlanOffload::WasOff);
    }
    // One feature at a time: a driver that fixes one of them refuses the whole request.
    for (bit, _) in &on {
        let mut request = vec![0u32; HEADER + 2 * blocks];
        request[0] = ETHTOOL_SFEATURES;
        request[1] = blocks as u32;
        request[HEADER + 2 * (bit / 32)] = 1 << (bit % 32);
        let refused = ethtool(interface, request.as_mut_ptr().cast()).err();
        if let Some(error) = refused.filter(|error| error.raw_os_error() == Some(libc::EPERM)) {
            return Err(error);
        }
    }
    let left = active(interface, blocks, &bits)?;
    if left.is_empty() {
        Ok(VlanOffload::SwitchedOff)
    } else {
        Ok(VlanOffload::Fixed(left.into_iter().map(|(_, name)| name).collect()))
    }
}

/// Which of the features are on.
fn active(
    interface: &str,
    blocks: usize,
    bits: &[(usize, &'static str)],
) -> io::Result<Vec<(usize, &'static str)>> {
    let mut features = vec![0u32; HEADER + GET_BLOCK * blocks];
    features[0] = ETHTOOL_GFEATURES;
    features[1] = blocks as u32;
    ethtool(interface, features.as_mut_ptr().cast())?;
    // A block is: available, requested, active, never changed.
    let is_on = |bit: usize| features[HEADER + GET_BLOCK * (bit / 32) + 2] & (1 << (bit % 32)) != 0;
    Ok(bits.iter().copied().filter(|(bit, _)| is_on(*bit)).collect())
}

/// The names of all features, by bit.
fn feature_names(interface: &str) -> io::Result<Vec<String>> {
    /// `struct ethtool_sset_info` for one set.
    #[repr(C)]
    struct Sets {
        command: u32,
        reserved: u32,
        mask: u64,
        count: u32,
        pad: u32,
    }
    let mut sets =
        Sets { command: ETHTOOL_GSSET_INFO, reserved: 0, mask: 1 << FEATURE_NAMES, count: 0, pad: 0 };
    ethtool(interface, (&raw mut sets).cast())?;
    let count = sets.count as usize;
    // `struct ethtool_gstrings`: command, set, count, then the names.
    let mut request = vec![0u32; 3 + count * NAME / 4];
    request[0] = ETHTOOL_GSTRINGS;
    request[1] = FEATURE_NAMES;
    request[2] = sets.count;
    ethtool(interface, request.as_mut_ptr().cast())?;
    let names: &[u8] = bytemuck::cast_slice(&request[3..]);
    Ok(names.chunks_exact(NAME).map(text).collect())
}

/// `ioctl(SIOCETHTOOL)`. `data` must point to a structure that begins with its command and has room for what
/// the kernel answers.
fn ethtool(interface: &str, data: *mut libc::c_char) -> io::Result<()> {
    // SAFETY: plain arguments; the result is checked before use.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (target, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *target = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = data;
    // SAFETY: `request` is a valid `ifreq` with a terminated name, and the callers pass structures of the
    // size that their command needs.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Text up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
