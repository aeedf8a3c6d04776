//! Between the agent's names and the maps' keys.

use std::net::IpAddr;
use std::time::Duration;

use bytemuck::Zeroable;
use ipnet::IpNet;
use lb_common::abi::{
    Backend, BackendKeyV4, BackendKeyV6, ClientWord, ReactionWord, SOURCE_SERVICE_BITS, ServiceDescriptor,
    ServiceKeyV4, ServiceKeyV6, SourceV4, SourceV6, VipKeyV4, VipKeyV6,
};
use lb_common::clock::TICK_NS;
use lb_common::hash::{filter_index_v4, filter_index_v6};

use super::target::Reaction;
use crate::desired::{BackendId, NewFlowLimit, Protocol, ServiceId};

/// Key of `SERVICES_V4` or `SERVICES_V6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceKey {
    /// Of `SERVICES_V4`.
    V4(ServiceKeyV4),
    /// Of `SERVICES_V6`.
    V6(ServiceKeyV6),
}

/// Key of `VIPS_V4` or `VIPS_V6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VipKey {
    /// Of `VIPS_V4`.
    V4(VipKeyV4),
    /// Of `VIPS_V6`.
    V6(VipKeyV6),
}

/// Key of `BACKENDS_V4` or `BACKENDS_V6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendKey {
    /// Of `BACKENDS_V4`.
    V4(BackendKeyV4),
    /// Of `BACKENDS_V6`.
    V6(BackendKeyV6),
}

impl From<&ServiceId> for ServiceKey {
    fn from(id: &ServiceId) -> Self {
        let port = id.port.to_be_bytes();
        let protocol = id.protocol.ip_number();
        match id.vip {
            IpAddr::V4(vip) => Self::V4(ServiceKeyV4 { vip: vip.octets(), port, protocol, pad: 0 }),
            IpAddr::V6(vip) => Self::V6(ServiceKeyV6 { vip: vip.octets(), port, protocol, pad: 0 }),
        }
    }
}

impl ServiceKey {
    /// The service that the key stands for; `None` for a key that the agent never writes.
    #[must_use]
    pub fn id(&self) -> Option<ServiceId> {
        let (vip, port, protocol) = match self {
            Self::V4(key) => (IpAddr::from(key.vip), key.port, key.protocol),
            Self::V6(key) => (IpAddr::from(key.vip), key.port, key.protocol),
        };
        Some(ServiceId { vip, port: u16::from_be_bytes(port), protocol: Protocol::from_ip_number(protocol)? })
            .filter(|id| Self::from(id) == *self)
    }
}

impl From<IpAddr> for VipKey {
    fn from(vip: IpAddr) -> Self {
        match vip {
            IpAddr::V4(vip) => Self::V4(VipKeyV4 { vip: vip.octets() }),
            IpAddr::V6(vip) => Self::V6(VipKeyV6 { vip: vip.octets() }),
        }
    }
}

impl VipKey {
    /// The VIP.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        match self {
            Self::V4(key) => IpAddr::from(key.vip),
            Self::V6(key) => IpAddr::from(key.vip),
        }
    }
}

impl From<&BackendId> for BackendKey {
    fn from(id: &BackendId) -> Self {
        let port = id.port.to_be_bytes();
        let protocol = id.protocol.ip_number();
        match id.address {
            IpAddr::V4(address) => {
                Self::V4(BackendKeyV4 { address: address.octets(), port, protocol, pad: 0 })
            }
            IpAddr::V6(address) => {
                Self::V6(BackendKeyV6 { address: address.octets(), port, protocol, pad: 0 })
            }
        }
    }
}

impl BackendKey {
    /// The backend that the key stands for; `None` for a key that the agent never writes.
    #[must_use]
    pub fn id(&self) -> Option<BackendId> {
        let (address, port, protocol) = match self {
            Self::V4(key) => (IpAddr::from(key.address), key.port, key.protocol),
            Self::V6(key) => (IpAddr::from(key.address), key.port, key.protocol),
        };
        Some(BackendId {
            protocol: Protocol::from_ip_number(protocol)?,
            address,
            port: u16::from_be_bytes(port),
        })
        .filter(|id| Self::from(id) == *self)
    }
}

/// Key of `SOURCES_V4` or `SOURCES_V6`, with the number of bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceKey {
    /// Of `SOURCES_V4`.
    V4(u32, SourceV4),
    /// Of `SOURCES_V6`.
    V6(u32, SourceV6),
}

impl SourceKey {
    /// The key of a service's network.
    #[must_use]
    pub fn new(service: u32, range: &IpNet) -> Self {
        let service = service.to_be_bytes();
        let bits = SOURCE_SERVICE_BITS + u32::from(range.prefix_len());
        match range.network() {
            IpAddr::V4(address) => Self::V4(bits, SourceV4 { service, address: address.octets() }),
            IpAddr::V6(address) => Self::V6(bits, SourceV6 { service, address: address.octets() }),
        }
    }

    /// Index of the service, and the network; `None` for a key that the agent never writes.
    #[must_use]
    pub fn parts(&self) -> Option<(u32, IpNet)> {
        let (bits, service, address) = match *self {
            Self::V4(bits, key) => (bits, key.service, IpAddr::from(key.address)),
            Self::V6(bits, key) => (bits, key.service, IpAddr::from(key.address)),
        };
        let length = u8::try_from(bits.checked_sub(SOURCE_SERVICE_BITS)?).ok()?;
        let service = u32::from_be_bytes(service);
        let range = IpNet::new(address, length).ok()?;
        Some((service, range)).filter(|(service, range)| Self::new(*service, range) == *self)
    }
}

/// 4 or 6.
pub(super) const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 4,
        IpAddr::V6(_) => 6,
    }
}

/// An address as map values hold it: network order, IPv4 in the first four bytes.
pub(super) fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Reverses [`address_bytes`]; `None` for a family that is neither 4 nor 6.
fn address_from_bytes(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    match family {
        4 => Some(IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])),
        6 => Some(IpAddr::from(bytes)),
        _ => None,
    }
}

/// A service's descriptor without rings.
pub(super) fn descriptor(id: &ServiceId) -> ServiceDescriptor {
    ServiceDescriptor {
        vip: address_bytes(id.vip),
        port: id.port.to_be_bytes(),
        protocol: id.protocol.ip_number(),
        family: family(id.vip),
        ..ServiceDescriptor::zeroed()
    }
}

/// What a descriptor says of failed connections. What is too large for the map is the largest there.
pub(super) fn reaction(reaction: &Reaction) -> ReactionWord {
    let errors = u16::try_from(reaction.trip_errors).unwrap_or(u16::MAX);
    let milliseconds = u32::try_from(reaction.trip_time.as_millis()).unwrap_or(u32::MAX);
    ReactionWord::new(errors, milliseconds, reaction.retry_on_reset)
}

/// What a descriptor says of clients. Who stays does so through the last tick of that time; a longer time than the map
/// can hold is the longest. More flows a second than there are nanoseconds are as many; the prefix of networks is that for the
/// VIP's family.
pub(super) fn clients(
    has_ranges: bool,
    affinity: Option<Duration>,
    new_flow_limit: Option<NewFlowLimit>,
    vip: IpAddr,
) -> ClientWord {
    let ticks = affinity.map_or(0, |time| time.as_nanos().div_ceil(u128::from(TICK_NS)).max(1));
    let clients = ClientWord::new(has_ranges, u32::try_from(ticks).unwrap_or(u32::MAX));
    let Some(limit) = new_flow_limit else { return clients };
    let beyond = match vip {
        IpAddr::V4(_) => (32 - limit.ipv4_prefix.clamp(1, 32)) ^ ClientWord::BEYOND_V4,
        IpAddr::V6(_) => (128 - limit.ipv6_prefix.clamp(1, 128)) ^ ClientWord::BEYOND_V6,
    };
    clients.with_interval((1_000_000_000 / limit.per_second.max(1)).max(1)).with_beyond(beyond)
}

/// The service that a descriptor describes; `None` if none.
pub(super) fn descriptor_id(value: &ServiceDescriptor) -> Option<ServiceId> {
    Some(ServiceId {
        vip: address_from_bytes(value.family, value.vip)?,
        port: u16::from_be_bytes(value.port),
        protocol: Protocol::from_ip_number(value.protocol)?,
    })
}

/// A backend's entry.
pub(super) fn backend(id: &BackendId, flags: u32, cluster: u32) -> Backend {
    Backend {
        flags,
        cluster,
        address: address_bytes(id.address),
        port: id.port.to_be_bytes(),
        protocol: id.protocol.ip_number(),
        family: family(id.address),
        ..Backend::default()
    }
}

/// The backend that an entry describes; `None` if none.
pub(super) fn backend_id(value: &Backend) -> Option<BackendId> {
    Some(BackendId {
        protocol: Protocol::from_ip_number(value.protocol)?,
        address: address_from_bytes(value.family, value.address)?,
        port: u16::from_be_bytes(value.port),
    })
}

/// The element of `ADDRESS_FILTER` that an address hashes to.
pub(super) fn filter_index(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => filter_index_v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => filter_index_v6(bytemuck::cast(v6.octets())),
    }
}
