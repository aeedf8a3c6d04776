//! Frames of our own making on a link, and what comes back: for what no socket of the kernel's would send.

mod frame;
mod packet;

use std::{
    io::ErrorKind,
    mem::{size_of, zeroed},
    net::SocketAddr,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Link;

pub use frame::{Frame, Tag};
pub use packet::{ACK, FIN, PSH, Packet, RST, SYN, fragment, icmp_echo, tcp, udp};

/// Every protocol, in network order, as packet sockets take it.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();

/// A link seen as frames: those that arrive at its end in this namespace, and those that are sent from there.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
    link: String,
}

impl Wire {
    /// Listens at a link's end, and sends from it. What arrived before is not seen.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn open(link: &Link) -> Result<Wire> {
        let open = || -> Result<Socket> {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
            socket.set_recv_buffer_size(4 << 20)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let on: libc::c_int = 1;
            // SAFETY: the descriptor is open, and the value is an int that outlives the call.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_AUXDATA,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            ensure!(set == 0, std::io::Error::last_os_error());
            socket.bind(&address(link.index())?)?;
            Ok(socket)
        };
        let socket = link.ns().run(open).with_context(|| format!("cannot open a packet socket at {link}"))?;
        Ok(Wire { socket, link: link.to_string() })
    }

    /// Sends a frame from this end.
    ///
    /// # Errors
    /// When the link is down or the frame is longer than its MTU allows.
    pub fn send(&self, frame: &Frame) -> Result<()> {
        let bytes = frame.bytes();
        let sent =
            self.socket.send(&bytes).with_context(|| format!("cannot send a frame at {}", self.link))?;
        ensure!(sent == bytes.len(), "{sent} of {} bytes of a frame were sent at {}", bytes.len(), self.link);
        Ok(())
    }

    /// The first frame to arrive that holds a TCP or UDP packet from `source` to `destination`; none stands for
    /// any.
    ///
    /// # Errors
    /// When none does within `patience`; what arrived instead is in the error.
    pub fn receive(
        &self,
        source: Option<SocketAddr>,
        destination: Option<SocketAddr>,
        patience: Duration,
    ) -> Result<(Frame, Packet)> {
        let deadline = Instant::now() + patience;
        let mut others = Vec::new();
        while Instant::now() < deadline {
            let Some(frame) = self.next()? else { continue };
            let Some(packet) = Packet::parse(&frame.packet) else { continue };
            let wanted = source.is_none_or(|source| source == packet.source)
                && destination.is_none_or(|destination| destination == packet.destination);
            if wanted {
                return Ok((frame, packet));
            }
            others.push(format!("{} to {}", packet.source, packet.destination));
        }
        others.dedup();
        others.truncate(20);
        bail!(
            "no packet from {source:?} to {destination:?} arrived at {} within {patience:?}; others: {}",
            self.link,
            others.join(", ")
        )
    }

    /// The next frame that arrives; none when nothing does for a moment.
    fn next(&self) -> Result<Option<Frame>> {
        let mut bytes = vec![0_u8; 65_536];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut control = [0_u64; 32];
        // SAFETY: both are plain data, for which all zeroes is a valid value.
        let (mut from, mut message) = unsafe { (zeroed::<libc::sockaddr_ll>(), zeroed::<libc::msghdr>()) };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the message points to buffers of the lengths it states, all of which outlive the call.
        let received = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(received) else {
            let error = std::io::Error::last_os_error();
            return match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(None),
                _ => Err(error).with_context(|| format!("cannot receive frames at {}", self.link)),
            };
        };
        if from.sll_pkttype == libc::PACKET_OUTGOING {
            return Ok(None);
        }
        bytes.truncate(length);
        Ok(Frame::parse(&bytes, stripped_tag(&message)))
    }
}

/// The VLAN tag that the kernel took out of a frame before it handed it over.
fn stripped_tag(message: &libc::msghdr) -> Option<Tag> {
    // SAFETY: the kernel filled the message's control buffer, which is aligned and lives as long as the message.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    loop {
        if header.cmsg_level == libc::SOL_PACKET && header.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: the data of a control message of this kind is a tpacket_auxdata, perhaps unaligned.
            let found: libc::tpacket_auxdata =
                unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            let valid = found.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
            return valid.then_some(Tag { ethertype: found.tp_vlan_tpid, control: found.tp_vlan_tci });
        }
        // SAFETY: the header is one of this message's.
        header = unsafe { libc::CMSG_NXTHDR(message, header).as_ref() }?;
    }
}

fn address(index: u32) -> Result<SockAddr> {
    // SAFETY: the storage is larger than a sockaddr_ll and aligned for it; family and length are set.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = &mut *storage.cast::<libc::sockaddr_ll>();
            link.sll_family = libc::AF_PACKET as libc::sa_family_t;
            link.sll_protocol = ALL_PROTOCOLS;
            link.sll_ifindex = index.cast_signed();
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    Ok(address)
}
