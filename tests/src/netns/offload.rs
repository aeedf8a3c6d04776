//! Offloads of a link, by the `SIOCETHTOOL` ioctl.
//!
//! A veth hands frames over with their checksum not computed yet and with several segments in one, unless
//! it is told not to. An XDP program that updates checksums incrementally breaks both.

use std::{net::UdpSocket, os::fd::AsRawFd};

use anyhow::{Context, Result, ensure};

use super::Netns;

/// The `ETHTOOL_G…` command of each offload, from `linux/ethtool.h`; `ETHTOOL_S…` is the number behind it.
const SWITCHES: [(u32, &str); 4] = [
    (0x16, "TX checksum"),
    (0x1e, "TCP segmentation"),
    (0x23, "generic segmentation"),
    (0x2b, "generic receive"),
];

/// `struct ethtool_value` of `linux/ethtool.h`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Switches TX checksum, TSO, GSO and GRO of `link` off, in namespace `ns`, and checks that they are.
///
/// # Errors
/// When there is no such link or its driver refuses.
pub(super) fn switch_off(ns: &Netns, link: &str) -> Result<()> {
    ns.run(|| {
        // Any socket carries the ioctl; its namespace decides which link is meant.
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        SWITCHES.iter().try_for_each(|&(get, what)| {
            let off = || -> Result<bool> {
                ethtool(&socket, link, get + 1, 0)?;
                Ok(ethtool(&socket, link, get, 0)? == 0)
            };
            let off = off()
                .with_context(|| format!("cannot switch {what} offload of {link} in {} off", ns.name()))?;
            ensure!(off, "{what} offload of {link} in {} stays on: its driver has it fixed", ns.name());
            Ok(())
        })
    })
}

/// Runs an ethtool command that takes and gives one number.
fn ethtool(socket: &UdpSocket, link: &str, command: u32, data: u32) -> Result<u32> {
    ensure!(link.len() < libc::IFNAMSIZ, "{link} is too long for a link's name");
    let mut value = EthtoolValue { command, data };
    // SAFETY: ifreq is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the descriptor is open, request is an ifreq whose name is terminated and whose data points to
    // an ethtool_value that outlives the call, as SIOCETHTOOL wants it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(value.data) }
}
