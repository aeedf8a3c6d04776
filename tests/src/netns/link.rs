//! Links, addresses, routes and neighbours, by netlink within the namespaces.

use std::{
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    new_connection,
    packet_route::{
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, LinkXdp},
        neighbour::NeighbourState,
        route::RouteScope,
    },
};

use super::{Netns, offload, xdp_pass};

/// `XDP_FLAGS_DRV_MODE`: in the driver, never generic.
const XDP_NATIVE: u32 = 1 << 2;

/// A hardware address, in the order of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// One end of a link, in its namespace.
#[derive(Clone, Debug)]
pub struct Link {
    ns: Netns,
    name: String,
    index: u32,
}

/// Makes a veth pair between two namespaces, without it ever being in another one, with every offload that
/// breaks XDP off. Both ends are down.
///
/// # Errors
/// When a name is taken in its namespace.
pub fn veth(a: (&Netns, &str, Mac), b: (&Netns, &str, Mac)) -> Result<(Link, Link)> {
    let (a_ns, a_name, a_mac) = a;
    let (b_ns, b_name, b_mac) = b;
    let b_fd = b_ns.file.as_raw_fd();
    a_ns.netlink(|handle| async move {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(b_name)
            .address(b_mac.0.to_vec())
            .setns_by_fd(b_fd)
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(a_name)
            .address(a_mac.0.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        handle.link().add(message).execute().await
    })
    .with_context(|| {
        format!("cannot make the link {a_name} in {} to {b_name} in {}", a_ns.name(), b_ns.name())
    })?;
    for (ns, name) in [(a_ns, a_name), (b_ns, b_name)] {
        offload::switch_off(ns, name)?;
    }
    Ok((Link::find(a_ns, a_name)?, Link::find(b_ns, b_name)?))
}

impl Link {
    /// The loopback of a namespace.
    pub(super) fn loopback(ns: &Netns) -> Result<Link> {
        Link::find(ns, "lo")
    }

    /// The link of that name in a namespace.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(ns: &Netns, name: &str) -> Result<Link> {
        let message = query(ns, name)?;
        Ok(Link { ns: ns.clone(), name: name.to_owned(), index: message.header.index })
    }

    /// The namespace it is in.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index within its namespace.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its hardware address, as it is now.
    ///
    /// # Errors
    /// When the link is gone.
    pub fn mac(&self) -> Result<Mac> {
        let message = query(&self.ns, &self.name)?;
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        address.map(Mac).with_context(|| format!("{self} has no hardware address"))
    }

    /// Brings it up.
    ///
    /// # Errors
    /// When the link is gone.
    pub fn up(&self) -> Result<()> {
        self.change("bring up", |link| link.up())
    }

    /// Takes it down: its peer sees no carrier, and its routes go.
    ///
    /// # Errors
    /// When the link is gone.
    pub fn down(&self) -> Result<()> {
        self.change("take down", |link| link.down())
    }

    /// Sets its MTU, in bytes of payload.
    ///
    /// # Errors
    /// When the driver refuses the size (with an XDP program attached the limit is a page less its frame).
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        self.change(&format!("set MTU {mtu} on"), |link| link.mtu(mtu))
    }

    /// Sets its hardware address; the kernel announces it to the neighbours.
    ///
    /// # Errors
    /// When the link is gone.
    pub fn set_mac(&self, mac: Mac) -> Result<()> {
        self.change(&format!("set address {mac} on"), |link| link.address(mac.0.to_vec()))
    }

    /// Adds an address with its prefix.
    ///
    /// # Errors
    /// When it is there already.
    pub fn add_address(&self, address: IpNet) -> Result<()> {
        let index = self.index;
        self.ns
            .netlink(|handle| async move {
                handle.address().add(index, address.addr(), address.prefix_len()).execute().await
            })
            .with_context(|| format!("cannot add address {address} to {self}"))
    }

    /// Removes an address.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_address(&self, address: IpNet) -> Result<()> {
        let message = match address {
            IpNet::V4(net) => {
                let builder = AddressMessageBuilder::<Ipv4Addr>::new().index(self.index);
                builder.address(net.addr(), net.prefix_len()).build()
            }
            IpNet::V6(net) => {
                let builder = AddressMessageBuilder::<Ipv6Addr>::new().index(self.index);
                builder.address(net.addr(), net.prefix_len()).build()
            }
        };
        self.ns
            .netlink(|handle| async move { handle.address().del(message).execute().await })
            .with_context(|| format!("cannot remove address {address} from {self}"))
    }

    /// Removes it, and with it its peer.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn remove(self) -> Result<()> {
        let index = self.index;
        self.ns
            .netlink(|handle| async move { handle.link().del(index).execute().await })
            .with_context(|| format!("cannot remove {self}"))
    }

    /// Sets the route to a prefix out of this link, through a gateway that need not be in a prefix of the
    /// link's own, or straight to whoever has the addresses.
    ///
    /// # Errors
    /// When the link is down.
    pub fn set_route(&self, to: IpNet, via: Option<IpAddr>) -> Result<()> {
        let route = || -> Result<_> {
            let route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(to.network(), to.prefix_len())?
                .output_interface(self.index);
            Ok(match via {
                Some(gateway) => route.gateway(gateway)?.onlink().build(),
                None => route.scope(RouteScope::Link).build(),
            })
        };
        let message = route().with_context(|| format!("{to} out of {self} is no route"))?;
        self.ns
            .netlink(|handle| async move { handle.route().add(message).replace().execute().await })
            .with_context(|| format!("cannot route {to} out of {self}"))
    }

    /// Sets a neighbour that never ages and is never asked for: frames to it are sent even while nobody
    /// listens, so a cut link is silent instead of answering "host unreachable".
    ///
    /// # Errors
    /// When the link is gone.
    pub fn set_neighbour(&self, address: IpAddr, mac: Mac) -> Result<()> {
        let index = self.index;
        self.ns
            .netlink(|handle| async move {
                handle
                    .neighbours()
                    .add(index, address)
                    .link_layer_address(&mac.0)
                    .state(NeighbourState::Permanent)
                    .replace()
                    .execute()
                    .await
            })
            .with_context(|| format!("cannot set neighbour {address} at {mac} on {self}"))
    }

    /// Attaches, natively, an XDP program that passes everything: its peer can then XDP_TX and redirect.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn attach_xdp_pass(&self) -> Result<()> {
        self.attach_xdp(xdp_pass::load()?.as_fd())
    }

    /// Attaches an XDP program natively, in place of the one that is there.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(crate) fn attach_xdp(&self, program: BorrowedFd<'_>) -> Result<()> {
        let fd: RawFd = program.as_raw_fd();
        self.change("attach an XDP program to", |link| {
            link.append_extra_attribute(LinkAttribute::Xdp(vec![LinkXdp::Fd(fd), LinkXdp::Flags(XDP_NATIVE)]))
        })
    }

    fn change(
        &self,
        what: &str,
        with: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec> + Send,
    ) -> Result<()> {
        let message = with(LinkUnspec::new_with_index(self.index)).build();
        self.ns
            .netlink(|handle| async move { handle.link().change(message).execute().await })
            .with_context(|| format!("cannot {what} {self}"))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {} in namespace {}", self.name, self.ns.name())
    }
}

impl Netns {
    /// Sets the route to a prefix, replacing the one that is there.
    ///
    /// # Errors
    /// When `via` is not on a link of this namespace that is up.
    pub fn set_route(&self, to: IpNet, via: IpAddr) -> Result<()> {
        let route = || -> Result<_> {
            Ok(RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(to.network(), to.prefix_len())?
                .gateway(via)?
                .build())
        };
        let message = route().with_context(|| format!("{to} via {via} is no route"))?;
        self.netlink(|handle| async move { handle.route().add(message).replace().execute().await })
            .with_context(|| format!("cannot route {to} via {via} in namespace {}", self.name()))
    }

    /// Runs requests over one netlink socket in this namespace.
    fn netlink<T: Send, F: Future<Output = Result<T, rtnetlink::Error>>>(
        &self,
        requests: impl FnOnce(Handle) -> F + Send,
    ) -> Result<T> {
        self.block_on(|| async {
            let (connection, handle, _) = new_connection().context("cannot open a netlink socket")?;
            tokio::spawn(connection);
            Ok(requests(handle).await?)
        })
    }
}

fn query(ns: &Netns, name: &str) -> Result<LinkMessage> {
    let found = ns
        .netlink(|handle| async move { handle.link().get().match_name(name).execute().try_next().await })
        .with_context(|| format!("cannot find link {name} in namespace {}", ns.name()))?;
    match found {
        Some(message) => Ok(message),
        None => bail!("there is no link {name} in namespace {}", ns.name()),
    }
}
