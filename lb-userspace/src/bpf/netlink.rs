//! What rtnetlink knows about XDP on an interface: the program attached, and the driver's own words when it
//! refuses one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::attach::AttachedMode;

/// `NLMSGERR_ATTR_MSG`: the kernel's words in an extended acknowledgement.
const ERROR_TEXT: u16 = 1;
/// Bytes of the request's header, which come before the attributes of a capped acknowledgement.
const REQUEST_HEADER: usize = 16;
/// Attach only where nothing is attached yet.
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;

/// What is on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// The XDP program attached, and how; `None`: none.
    pub(super) program: Option<(u32, AttachedMode)>,
    /// Largest IP packet, in bytes.
    pub(super) mtu: u32,
}

/// Asks for an interface's XDP program and MTU.
pub(super) fn interface(ifindex: u32) -> io::Result<Interface> {
    let mut request = LinkMessage::default();
    request.header.index = ifindex;
    let answer = exchange(RouteNetlinkMessage::GetLink(request), 0)?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer else {
        return Err(match answer {
            NetlinkPayload::Error(error) => error.to_io(),
            _ => io::Error::new(io::ErrorKind::InvalidData, "rtnetlink gave an unexpected answer"),
        });
    };
    let mut found = Interface { program: None, mtu: 0 };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Xdp(xdp) => found.program = program(xdp),
            _ => {}
        }
    }
    Ok(found)
}

/// Asks the driver once more, by netlink, which unlike `bpf(2)` passes the driver's explanation on. Should
/// it accept this time, the program is taken off again at once.
pub(super) fn why_refused(ifindex: u32, program: BorrowedFd<'_>, mode_flag: u32) -> Option<String> {
    let set = |fd, flags| {
        let mut request = LinkMessage::default();
        request.header.index = ifindex;
        request.attributes = vec![LinkAttribute::Xdp(vec![LinkXdp::Fd(fd), LinkXdp::Flags(flags)])];
        exchange(RouteNetlinkMessage::SetLink(request), NLM_F_ACK).ok()
    };
    let answer = set(program.as_raw_fd(), mode_flag | XDP_FLAGS_UPDATE_IF_NOEXIST)?;
    let NetlinkPayload::Error(error) = answer else { return None };
    if error.code.is_some() {
        return explanation(&error);
    }
    set(-1, mode_flag);
    None
}

fn program(xdp: &[LinkXdp]) -> Option<(u32, AttachedMode)> {
    let attached = xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(attached) => Some(*attached),
        _ => None,
    })?;
    let mode = match attached {
        XdpAttached::None => return None,
        XdpAttached::SocketBuffer => AttachedMode::Generic,
        _ => AttachedMode::Native,
    };
    let id = xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
            Some(*id)
        }
        _ => None,
    });
    Some((id.unwrap_or_default(), mode))
}

/// The text of an extended acknowledgement.
fn explanation(error: &ErrorMessage) -> Option<String> {
    let attributes = error.header.get(REQUEST_HEADER..)?;
    let text = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == ERROR_TEXT)?;
    let text = String::from_utf8_lossy(text.value()).trim_end_matches('\0').trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Sends one request in the thread's network namespace and reads the answer to it.
fn exchange(request: RouteNetlinkMessage, flags: u16) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok(answer.payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_no_program_and_an_mtu() {
        let lo = nix::net::if_::if_nametoindex("lo").expect("there is a loopback");
        let found = interface(lo).expect("rtnetlink answers");
        assert_eq!(found.program, None);
        assert!(found.mtu >= 1280, "{found:?}");
    }

    #[test]
    fn an_interface_that_does_not_exist_is_an_error() {
        let error = interface(0x7fff_0000).expect_err("no such interface");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn the_mode_and_the_program_are_read_from_what_the_kernel_says() {
        let xdp = [LinkXdp::Attached(XdpAttached::SocketBuffer), LinkXdp::ProgId(7)];
        assert_eq!(program(&xdp), Some((7, AttachedMode::Generic)));
        let xdp = [LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(8), LinkXdp::DrvProgId(8)];
        assert_eq!(program(&xdp), Some((8, AttachedMode::Native)));
        assert_eq!(program(&[LinkXdp::Attached(XdpAttached::None)]), None);
    }

    #[test]
    fn the_drivers_words_are_taken_from_the_extended_acknowledgement() {
        let mut error = ErrorMessage::default();
        error.header = vec![0; REQUEST_HEADER];
        assert_eq!(explanation(&error), None);
        let text = b"MTU too large\0";
        error.header.extend_from_slice(&(4 + text.len() as u16).to_ne_bytes());
        error.header.extend_from_slice(&ERROR_TEXT.to_ne_bytes());
        error.header.extend_from_slice(text);
        assert_eq!(explanation(&error).as_deref(), Some("MTU too large"));
    }
}
