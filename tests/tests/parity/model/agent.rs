//! What the agent has written, as the model asks for it.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{
        Backend, BackendKeyV4, BackendKeyV6, ClientWord, Config, FlowLogWord, Member, ReactionWord, RingPair,
        RingWord, ServiceDescriptor, ServiceKeyV4, ServiceKeyV6, TCP, VipKeyV4, VipKeyV6, member_flags,
    },
    hash::{self, FlowHash, HashKey},
    host::HostMaps,
};

use super::{Key, packet::octets};

/// The settings, the services and the backends.
#[derive(Clone, Copy)]
pub(super) struct Agent<'a> {
    pub maps: &'a HostMaps,
    pub config: Config,
}

impl<'a> Agent<'a> {
    pub(super) fn new(maps: &'a HostMaps) -> Self {
        Self { maps, config: maps.config.expect("a world has settings") }
    }

    pub(super) fn service(&self, at: SocketAddr, protocol: u8) -> Option<u32> {
        let port = at.port().to_be_bytes();
        match at.ip() {
            IpAddr::V4(vip) => {
                let key = ServiceKeyV4 { vip: vip.octets(), port, protocol, pad: 0 };
                self.maps.services_v4.get(&key).copied()
            }
            IpAddr::V6(vip) => {
                let key = ServiceKeyV6 { vip: vip.octets(), port, protocol, pad: 0 };
                self.maps.services_v6.get(&key).copied()
            }
        }
    }

    /// Flags of a VIP; `None`: it is none.
    pub(super) fn vip(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(vip) => self.maps.vips_v4.get(&VipKeyV4 { vip: vip.octets() }).copied(),
            IpAddr::V6(vip) => self.maps.vips_v6.get(&VipKeyV6 { vip: vip.octets() }).copied(),
        }
    }

    pub(super) fn backend_at(&self, at: SocketAddr, protocol: u8) -> Option<u32> {
        let port = at.port().to_be_bytes();
        match at.ip() {
            IpAddr::V4(ip) => {
                let key = BackendKeyV4 { address: ip.octets(), port, protocol, pad: 0 };
                self.maps.backends_v4.get(&key).copied()
            }
            IpAddr::V6(ip) => {
                let key = BackendKeyV6 { address: ip.octets(), port, protocol, pad: 0 };
                self.maps.backends_v6.get(&key).copied()
            }
        }
    }

    pub(super) fn snat_addresses(&self, v4: bool) -> Vec<IpAddr> {
        let config = &self.config;
        if v4 {
            config.snat_v4[..config.snat_v4_count as usize].iter().map(|ip| IpAddr::from(*ip)).collect()
        } else {
            config.snat_v6[..config.snat_v6_count as usize].iter().map(|ip| IpAddr::from(*ip)).collect()
        }
    }

    pub(super) fn snat(&self, address: IpAddr) -> Option<u8> {
        let all = self.snat_addresses(address.is_ipv4());
        all.iter().position(|snat| *snat == address).map(|index| index as u8)
    }

    /// Whether a port is one of those that flows are given.
    pub(super) fn is_snat_port(&self, port: u16) -> bool {
        let base = usize::from(self.config.port_base);
        (base..base + usize::from(self.config.port_words) * 64).contains(&usize::from(port))
    }

    pub(super) fn member(&self, index: u32) -> Member {
        self.maps.members.read(index)
    }

    pub(super) fn backend(&self, index: u32) -> Backend {
        self.maps.backends.read(index)
    }

    fn descriptor(&self, service: u32) -> Option<ServiceDescriptor> {
        (service < self.maps.descriptors.len()).then(|| self.maps.descriptors.read(service))
    }

    pub(super) fn reaction(&self, service: u32) -> ReactionWord {
        ReactionWord(self.descriptor(service).map_or(0, |descriptor| descriptor.reaction))
    }

    pub(super) fn clients(&self, service: u32) -> ClientWord {
        ClientWord(self.descriptor(service).map_or(0, |descriptor| descriptor.clients))
    }

    pub(super) fn notes(&self, service: u32, key: &Key) -> bool {
        let noted = FlowLogWord(self.descriptor(service).map_or(0, |descriptor| descriptor.flow_log));
        noted.notes(self.hash(key).tag())
    }

    /// The ring, and the fallback ring.
    pub(super) fn rings(&self, service: u32) -> [RingWord; 2] {
        let words =
            self.descriptor(service).map_or([0; 2], |descriptor| [descriptor.ring, descriptor.fallback]);
        words.map(RingWord)
    }

    /// The member in a ring's slot.
    pub(super) fn at(&self, ring: RingWord, slot: u32) -> u32 {
        let RingPair { slots } = self.maps.rings.read(ring.offset() + slot / 2);
        slots[slot as usize % 2]
    }

    /// The VIP that a member's clients know; an IPv6 one is its service's, which may not be there.
    pub(super) fn vip_of(&self, member: &Member) -> Option<SocketAddr> {
        let ip = if member.family == 4 {
            IpAddr::from(member.vip_v4)
        } else {
            IpAddr::from(self.descriptor(member.service)?.vip)
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(member.vip_port)))
    }

    /// Whether somebody may begin flows of a service.
    pub(super) fn admits(&self, service: u32, client: IpAddr) -> bool {
        let is_in = |network: &[u8], bits: u32| {
            let client = octets(client);
            (0..bits as usize).all(|bit| {
                let of = |bytes: &[u8]| bytes[bit / 8] >> (7 - bit % 8) & 1;
                of(network) == of(&client)
            })
        };
        let index = service.to_be_bytes();
        let maps = self.maps;
        !self.clients(service).has_ranges()
            || if client.is_ipv4() {
                maps.sources_v4
                    .iter()
                    .any(|(bits, range)| range.service == index && is_in(&range.address, bits - 32))
            } else {
                maps.sources_v6
                    .iter()
                    .any(|(bits, range)| range.service == index && is_in(&range.address, bits - 32))
            }
    }

    /// The hash by which the flow table finds a flow.
    pub(super) fn hash(&self, key: &Key) -> FlowHash {
        hashed(&self.config.flow_key, key, key.client.port())
    }

    /// A key's place in rings; without the client's port where `with_port` is not set.
    pub(super) fn ring_hash(&self, key: &Key, with_port: bool) -> u64 {
        hashed(&self.config.ring_key, key, if with_port { key.client.port() } else { 0 }).low
    }
}

fn hashed(secret: &HashKey, key: &Key, client_port: u16) -> FlowHash {
    let ports = u32::from(client_port.to_be()) | u32::from(key.vip.port().to_be()) << 16;
    match (key.client.ip(), key.vip.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            let raw = |octets| u32::from_ne_bytes(octets);
            hash::hash_v4(secret, raw(client.octets()), raw(vip.octets()), ports, key.protocol)
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            let raw = |octets: [u8; 16]| bytemuck::cast(octets);
            hash::hash_v6(secret, raw(client.octets()), raw(vip.octets()), ports, key.protocol)
        }
        _ => unreachable!("a packet has one family"),
    }
}

/// A backend's address and port.
pub(super) fn place(member: &Member) -> SocketAddr {
    let port = u16::from_be_bytes(member.port);
    let [a, b, c, d, ..] = member.address;
    let ip = if member.family == 4 { IpAddr::from([a, b, c, d]) } else { IpAddr::from(member.address) };
    SocketAddr::new(ip, port)
}

pub(super) fn has(member: &Member, flag: u8) -> bool {
    member.flags & flag != 0
}

/// Whether an index is still the member that a flow was given.
pub(super) fn is_same(member: &Member, generation: u8) -> bool {
    has(member, member_flags::VALID) && member.generation == generation
}

pub(super) const fn is_tcp(protocol: u8) -> bool {
    protocol == TCP
}
