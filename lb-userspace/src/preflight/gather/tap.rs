//! What comes in, before the kernel decides about it: a packet socket (packet(7)).

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

/// How long one look takes at most.
const LOOK: Duration = Duration::from_millis(50);

/// A packet socket on all interfaces, for packets to one address that come in.
pub(super) struct Tap {
    socket: OwnedFd,
    address: IpAddr,
    frame: Vec<u8>,
}

impl Tap {
    /// For packets to this address.
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
        Ok(Self { socket, address, frame: vec![0; 2048] })
    }

    /// Whether a packet to the address with these bytes in it comes in within a short while.
    pub(super) fn holds(&mut self, token: &[u8]) -> io::Result<bool> {
        match recv(self.socket.as_raw_fd(), &mut self.frame, MsgFlags::empty()).map_err(io::Error::from) {
            Ok(length) => Ok(carries(&self.frame[..length], self.address, token)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether an IP packet is to an address and has these bytes in it. A router that refuses a packet sends an error to its
/// sender that quotes it: that has the bytes too, and is no sign of a way.
fn carries(packet: &[u8], address: IpAddr, token: &[u8]) -> bool {
    let is_to = match address {
        IpAddr::V4(address) => packet.get(16..20) == Some(&address.octets()[..]),
        IpAddr::V6(address) => packet.get(24..40) == Some(&address.octets()[..]),
    };
    is_to && packet.windows(token.len()).any(|window| window == token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_quotes_a_packet_is_not_that_packet() {
        let token = [7; 16];
        let sent = [&[0; 16][..], &[192, 168, 100, 10], &[0; 8], &token].concat();
        let quoted = [&[0; 16][..], &[192, 168, 0, 10], &[0; 8], &sent].concat();
        let vip = "192.168.100.10".parse().unwrap();
        assert!(carries(&sent, vip, &token) && !carries(&quoted, vip, &token));
        let vip: IpAddr = "fd00:100::10".parse().unwrap();
        let IpAddr::V6(bytes) = vip else { unreachable!("it is an IPv6 address") };
        let sent = [&[0; 24][..], &bytes.octets(), &[0; 8], &token].concat();
        assert!(carries(&sent, vip, &token) && !carries(&[&[0; 48][..], &sent].concat(), vip, &token));
    }
}
