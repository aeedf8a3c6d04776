//! What the watcher asks of the kernel, over netlink, in the network namespace of the calling thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{AsyncSocket as _, SocketAddr};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::task::AbortHandle;

use super::next_hop::{self, Neighbour, NeighbourKey, PROTOCOL};
use super::{Link, LocalAddress, NextHopError};
use crate::io_error::plain;

/// Room for notifications that have not been read: a burst of some ten thousand.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The kernel cannot be asked about the network.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {source}")]
pub struct NetlinkError {
    action: &'static str,
    source: io::Error,
}

impl NetlinkError {
    fn new(action: &'static str, error: rtnetlink::Error) -> Self {
        Self { action, source: to_io(error) }
    }
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// A connection for questions and requests.
pub(super) struct Netlink {
    handle: Handle,
    connection: AbortHandle,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// Opens the connection; to be called within a tokio runtime.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| NetlinkError { action: "open a netlink socket", source })?;
        Ok(Self { handle, connection: tokio::spawn(connection).abort_handle() })
    }

    /// All interfaces, their drivers included.
    pub(super) async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let messages: Vec<_> = collect("list interfaces", self.handle.link().get().execute()).await?;
        Ok(messages.iter().filter_map(Link::parse).map(with_driver).collect())
    }

    /// All addresses of the node.
    pub(super) async fn addresses(&self) -> Result<Vec<LocalAddress>, NetlinkError> {
        let messages: Vec<_> = collect("list addresses", self.handle.address().get().execute()).await?;
        Ok(messages.iter().filter_map(parse_address).collect())
    }

    /// All neighbours of all interfaces.
    pub(super) async fn neighbours(&self) -> Result<Vec<(NeighbourKey, Neighbour)>, NetlinkError> {
        let mut neighbours = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request = self.handle.neighbours().get().set_address_family(family);
            let messages: Vec<_> = collect("list neighbours", request.execute()).await?;
            neighbours.extend(messages.iter().filter_map(next_hop::neighbour));
        }
        Ok(neighbours)
    }

    /// By which route a packet to `destination` would go: rules, VRFs and multipath are the kernel's to apply.
    pub(super) async fn path(&self, destination: IpAddr) -> Result<next_hop::Path, NextHopError> {
        let mut message = question(match destination {
            IpAddr::V4(address) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build()
            }
            IpAddr::V6(address) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
            }
        });
        let answer = self.route(message.clone()).await?;
        let mut path = next_hop::path(destination, &answer)?;
        if next_hop::expires(&answer) {
            // What the kernel has learned of the path: nobody tells when that is over. The route itself says what stays.
            message.header.flags = RouteFlags::FibMatch;
            path.mtu = self.route(message).await.ok().and_then(|route| next_hop::mtu(&route));
        }
        Ok(path)
    }

    /// The kernel's answer to a question about a route.
    async fn route(&self, question: RouteMessage) -> Result<RouteMessage, NextHopError> {
        let answers = self.handle.route().get(question).execute();
        let mut answers = std::pin::pin!(answers);
        match answers.try_next().await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(NextHopError::NoRoute("nothing".to_owned())),
            Err(error) => Err(NextHopError::NoRoute(plain(&to_io(error)))),
        }
    }

    /// Asks the kernel to resolve a neighbour and, from Linux 5.16 on, to keep it fresh. Older kernels ignore
    /// that part and resolve it once.
    pub(super) async fn resolve_neighbour(&self, key: NeighbourKey) -> io::Result<()> {
        let mut request = self
            .handle
            .neighbours()
            .add(key.ifindex, key.address)
            .state(NeighbourState::None)
            // Learned externally: the entry is neither evicted nor counted when the table is full.
            .flags(NeighbourFlags::Use | NeighbourFlags::ExtLearned)
            .replace();
        let attributes = &mut request.message_mut().attributes;
        attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        attributes.push(NeighbourAttribute::Protocol(PROTOCOL));
        request.execute().await.map_err(to_io)
    }

    /// Gives a neighbour back: the entry goes, and the kernel makes its own when it needs one.
    pub(super) async fn release_neighbour(&self, key: NeighbourKey) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = key.ifindex;
        let destination = match key.address {
            IpAddr::V4(address) => {
                message.header.family = AddressFamily::Inet;
                NeighbourAddress::Inet(address)
            }
            IpAddr::V6(address) => {
                message.header.family = AddressFamily::Inet6;
                NeighbourAddress::Inet6(address)
            }
        };
        message.attributes.push(NeighbourAttribute::Destination(destination));
        match self.handle.neighbours().del(message).execute().await.map_err(to_io) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            result => result,
        }
    }
}

/// The builder is made for routes to add; a question has only a family and a destination.
fn question(mut message: RouteMessage) -> RouteMessage {
    let header = &mut message.header;
    header.table = RouteHeader::RT_TABLE_UNSPEC;
    header.protocol = RouteProtocol::Unspec;
    header.scope = RouteScope::Universe;
    header.kind = RouteType::Unspec;
    message
}

async fn collect<T>(
    action: &'static str,
    messages: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetlinkError> {
    messages.try_collect().await.map_err(|error| NetlinkError::new(action, error))
}

/// The kernel's notifications.
pub(super) struct Monitor {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: AbortHandle,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What a notification is about.
pub(super) enum Notice {
    /// A message of the kernel.
    Message(RouteNetlinkMessage),
    /// The kernel had more to tell than fits its buffer: everything must be read anew.
    Overrun,
}

impl Monitor {
    /// Subscribes to interfaces, addresses, routes, rules and neighbours; to be called within a tokio runtime.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let failed = |source| NetlinkError { action: "subscribe to the kernel's network changes", source };
        let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&groups).map_err(failed)?;
        connection.socket_mut().socket_mut().set_rx_buf_sz(RECEIVE_BUFFER as libc::c_int).map_err(failed)?;
        Ok(Self { messages, connection: tokio::spawn(connection).abort_handle() })
    }

    /// The next notification; `None`: the subscription ended.
    pub(super) async fn next(&mut self) -> Option<Notice> {
        loop {
            let (message, _) = self.messages.next().await?;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => return Some(Notice::Message(message)),
                NetlinkPayload::Overrun(_) => return Some(Notice::Overrun),
                _ => {}
            }
        }
    }
}

/// Reads what the kernel says of an address of the node.
pub(super) fn parse_address(message: &AddressMessage) -> Option<LocalAddress> {
    let mut address = None;
    let mut local = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(value) => address = Some(*value),
            // On point-to-point links `Address` is the peer's.
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Flags(value) => flags = *value,
            _ => {}
        }
    }
    let unfit = AddressFlags::Secondary
        | AddressFlags::Deprecated
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed;
    Some(LocalAddress {
        ifindex: message.header.index,
        address: local.or(address)?,
        prefix: message.header.prefix_len,
        primary: message.header.scope == AddressScope::Universe && !flags.intersects(unfit),
    })
}

/// Adds the driver of a device, which only sysfs tells.
pub(super) fn with_driver(mut link: Link) -> Link {
    if link.driver.is_empty() {
        let driver = std::fs::read_link(format!("/sys/class/net/{}/device/driver", link.name));
        let name = driver.ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        link.driver = name.unwrap_or_default();
    }
    link
}
