//! What comes in, before the kernel decides about it: a packet socket (packet(7)).

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

/// How long one look takes at most.
const LOOK: Duration = Duration::from_millis(50);

/// A packet socket on all interfaces, for packets of one family that come in.
pub(super) struct Tap {
    socket: OwnedFd,
    frame: Vec<u8>,
}

impl Tap {
    /// For packets of the address's family.
    pub(super) fn open(address: IpAddr) -> io::Result<Self> {
        let protocol = if address.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        // The kernel wants it in network order.
        let protocol = i32::from((protocol as u16).to_be());
        // SAFETY: plain arguments; the result is checked before use.
        let socket =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(0, LOOK.as_micros() as _))?;
        Ok(Self { socket, frame: vec![0; 2048] })
    }

    /// Whether a packet with these bytes in it comes in within a short while.
    pub(super) fn holds(&mut self, token: &[u8]) -> io::Result<bool> {
        match recv(self.socket.as_raw_fd(), &mut self.frame, MsgFlags::empty()).map_err(io::Error::from) {
            Ok(length) => Ok(self.frame[..length].windows(token.len()).any(|window| window == token)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
