//! Fills the maps as the agent would.

use std::{
    net::{IpAddr, SocketAddr},
    vec::Vec,
};

use bytemuck::Zeroable;

use super::maps::{HostMaps, Sizes};
use crate::{
    abi::{
        AddressFilter, Backend, BackendKeyV4, BackendKeyV6, ClientWord, Config, FlowLogWord, Member,
        RING_SIZES, ReactionWord, RingPair, RingWord, SOURCE_SERVICE_BITS, ServiceDescriptor, ServiceKeyV4,
        ServiceKeyV6, SourceV4, SourceV6, TCP, Timeouts, VipKeyV4, VipKeyV6, address_filter, backend_flags,
        member_flags,
    },
    clock::ticks_from_millis,
    datapath::checksum::Sum,
    hash::{self, HashKey},
};

/// What a [`Gateway`] is made of. Tables are small, so that they fill up.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Numbers of elements.
    pub sizes: Sizes,
    /// SNAT addresses of both families, each at most 8.
    pub snat: Vec<IpAddr>,
    /// First SNAT port.
    pub port_base: u16,
    /// 64-port words of the SNAT port range, 1–256.
    pub port_words: u16,
    /// Idle times in milliseconds, in the order of [`Timeouts`]' fields.
    pub timeouts_ms: [u64; 6],
    /// Events that a processor may send within one tick in all.
    pub events_per_tick: u32,
    /// And when one for the flow log is among them.
    pub flow_events_per_tick: u32,
    /// Answers to dropped packets that a processor may send within one tick.
    pub refusals_per_tick: u32,
}

impl Default for GatewayConfig {
    /// One SNAT address a family, 1,024 flow slots, 16,384 ports, issue 3's timeouts.
    fn default() -> Self {
        Self {
            sizes: Sizes {
                flow_buckets: 256,
                reverse_v4_buckets: 256,
                reverse_v6_buckets: 256,
                services: 16,
                ring_pairs: 4096,
                members: 64,
                backends: 64,
                snat_stride: 1,
                flow_stats: 1024,
                cpus: 2,
            },
            snat: Vec::from([[192, 168, 0, 2].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 2].into()]),
            port_base: 12288,
            port_words: 256,
            timeouts_ms: [10_000, 3_600_000, 60_000, 10_000, 10_000, 60_000],
            events_per_tick: 1100,
            flow_events_per_tick: 1000,
            refusals_per_tick: 1000,
        }
    }
}

/// Where a member's frames go: the egress interface and the shape of its link-layer header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Destination MAC address.
    pub destination_mac: [u8; 6],
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// Interface.
    pub ifindex: u32,
    /// Tag control information of at most two VLAN tags, outer first.
    pub vlans: Vec<u16>,
    /// Whether the outer tag is 802.1ad.
    pub service_tag: bool,
    /// MTU; 0: unknown.
    pub mtu: u16,
}

impl Default for NextHop {
    /// Untagged, out of interface 1, where [`super::HostPacket`]s come in.
    fn default() -> Self {
        Self {
            destination_mac: [0x02, 0, 0, 0, 1, 0x01],
            source_mac: [0x02, 0, 0, 0, 1, 0x02],
            ifindex: 1,
            vlans: Vec::new(),
            service_tag: false,
            mtu: 0,
        }
    }
}

/// A gateway's maps, and what has been handed out of them. Every change is visible to the next packet.
#[derive(Debug)]
pub struct Gateway {
    /// The maps.
    pub maps: HostMaps,
    services: Vec<(SocketAddr, u8)>,
    next_member: u32,
    next_backend: u32,
    next_ring_pair: u32,
    next_ring_version: u32,
}

impl Gateway {
    /// A gateway without services. Its keys follow from the seed.
    ///
    /// # Panics
    /// With more than 8 SNAT addresses of a family.
    #[must_use]
    pub fn new(settings: &GatewayConfig, seed: u64) -> Self {
        let mut maps = HostMaps::new(&settings.sizes);
        let mut config = Config::zeroed();
        config.flow_key = key(seed);
        config.ring_key = key(!seed);
        for address in &settings.snat {
            match address {
                IpAddr::V4(address) => {
                    config.snat_v4[config.snat_v4_count as usize] = address.octets();
                    config.snat_v4_count += 1;
                }
                IpAddr::V6(address) => {
                    config.snat_v6[config.snat_v6_count as usize] = address.octets();
                    config.snat_v6_count += 1;
                }
            }
        }
        config.snat_stride = settings.sizes.snat_stride;
        config.flow_bucket_mask = settings.sizes.flow_buckets - 1;
        config.reverse_v4_mask = settings.sizes.reverse_v4_buckets - 1;
        config.reverse_v6_mask = settings.sizes.reverse_v6_buckets - 1;
        config.member_count = settings.sizes.members;
        config.port_base = settings.port_base;
        config.port_words = settings.port_words;
        let [half_open, established, closed, reset, udp_new, udp_replied] =
            settings.timeouts_ms.map(ticks_from_millis);
        config.timeouts = Timeouts { half_open, established, closed, reset, udp_new, udp_replied };
        config.events_per_tick = settings.events_per_tick;
        config.flow_events_per_tick = settings.flow_events_per_tick;
        config.refusals_per_tick = settings.refusals_per_tick;
        config.flow_stats_mask = settings.sizes.flow_stats - 1;
        maps.config = Some(config);
        // Away from 0, so that an age that is wrongly computed from 0 shows.
        maps.set_clock(1 << 40);
        let mut gateway = Self {
            maps,
            services: Vec::new(),
            next_member: 1,
            next_backend: 1,
            next_ring_pair: 1,
            next_ring_version: 1,
        };
        settings.snat.iter().for_each(|address| gateway.filter(*address, address_filter::SNAT));
        gateway
    }

    /// A service with one ring over these backends, each a member of its own; returns the service's index.
    /// The VIP is not an address of the node.
    pub fn add_service(&mut self, vip: SocketAddr, protocol: u8, backends: &[SocketAddr]) -> u32 {
        let service = self.add_empty_service(vip, protocol);
        let members: Vec<u32> = backends.iter().map(|backend| self.add_member(service, *backend)).collect();
        if !members.is_empty() {
            self.set_ring(service, &members);
        }
        service
    }

    /// A service without a ring; returns its index.
    ///
    /// # Panics
    /// When there is no element of `DESCRIPTORS` left.
    pub fn add_empty_service(&mut self, vip: SocketAddr, protocol: u8) -> u32 {
        let service = self.services.len() as u32;
        self.services.push((vip, protocol));
        let mut descriptor = ServiceDescriptor::zeroed();
        descriptor.vip = octets(vip.ip());
        descriptor.port = vip.port().to_be_bytes();
        descriptor.protocol = protocol;
        descriptor.family = family(vip.ip());
        self.maps.descriptors.write(service, &descriptor);
        self.add_vip(vip.ip(), 0);
        let port = vip.port().to_be_bytes();
        match vip.ip() {
            IpAddr::V4(vip) => {
                let key = ServiceKeyV4 { vip: vip.octets(), port, protocol, pad: 0 };
                self.maps.services_v4.insert(key, service);
            }
            IpAddr::V6(vip) => {
                let key = ServiceKeyV6 { vip: vip.octets(), port, protocol, pad: 0 };
                self.maps.services_v6.insert(key, service);
            }
        }
        service
    }

    /// A VIP with these [`crate::abi::vip_flags`].
    pub fn add_vip(&mut self, vip: IpAddr, flags: u32) {
        match vip {
            IpAddr::V4(vip) => self.maps.vips_v4.insert(VipKeyV4 { vip: vip.octets() }, flags),
            IpAddr::V6(vip) => self.maps.vips_v6.insert(VipKeyV6 { vip: vip.octets() }, flags),
        };
        self.filter(vip, address_filter::VIP);
    }

    fn filter(&mut self, address: IpAddr, flag: u64) {
        let index = match address {
            IpAddr::V4(address) => hash::filter_index_v4(u32::from_ne_bytes(address.octets())),
            IpAddr::V6(address) => hash::filter_index_v6(bytemuck::cast(address.octets())),
        };
        let AddressFilter { flags } = self.maps.address_filter.read(index);
        self.maps.address_filter.write(index, &AddressFilter { flags: flags | flag });
    }

    /// Puts a backend into a service, with the default next hop, and returns the member's index. A backend
    /// that another service has already is the same one.
    pub fn add_member(&mut self, service: u32, address: SocketAddr) -> u32 {
        let index = self.next_member;
        self.next_member += 1;
        self.write_member(index, 1, service, address);
        index
    }

    /// Gives a member's index to another backend, or the same anew, with the next generation.
    pub fn recycle_member(&mut self, index: u32, service: u32, address: SocketAddr) {
        let old: Member = self.maps.members.read(index);
        let generation = old.generation.checked_add(1).unwrap_or(1);
        self.write_member(index, generation, service, address);
    }

    fn write_member(&mut self, index: u32, generation: u8, service: u32, address: SocketAddr) {
        let (vip, protocol) = self.services[service as usize];
        let backend = self.backend(address, protocol);
        let delta = raw_sum(address.ip(), raw_sum(vip.ip(), Sum::ZERO, Sum::sub16), Sum::add16);
        let l4_delta = delta
            .sub16(u16::from_ne_bytes(vip.port().to_be_bytes()))
            .add16(u16::from_ne_bytes(address.port().to_be_bytes()))
            .fold();
        let mut member = Member {
            address: octets(address.ip()),
            backend,
            generation,
            flags: member_flags::VALID,
            port: address.port().to_be_bytes(),
            l4_delta,
            l3_delta: if vip.is_ipv4() { delta.fold() } else { 0 },
            service,
            vip_port: vip.port().to_be_bytes(),
            family: family(vip.ip()),
            ..Member::default()
        };
        if let IpAddr::V4(vip) = vip.ip() {
            member.vip_v4 = vip.octets();
        }
        self.maps.members.write(index, &member);
        self.set_next_hop(index, &NextHop::default());
    }

    /// The index of a backend, which is made usable when it is new.
    pub fn backend(&mut self, address: SocketAddr, protocol: u8) -> u32 {
        let port = address.port().to_be_bytes();
        let index = match address.ip() {
            IpAddr::V4(ip) => {
                let key = BackendKeyV4 { address: ip.octets(), port, protocol, pad: 0 };
                *self.maps.backends_v4.entry(key).or_insert(self.next_backend)
            }
            IpAddr::V6(ip) => {
                let key = BackendKeyV6 { address: ip.octets(), port, protocol, pad: 0 };
                *self.maps.backends_v6.entry(key).or_insert(self.next_backend)
            }
        };
        if index == self.next_backend {
            self.next_backend += 1;
            let backend = Backend {
                flags: backend_flags::USABLE,
                address: octets(address.ip()),
                port,
                protocol,
                family: family(address.ip()),
                ..Backend::default()
            };
            self.maps.backends.write(index, &backend);
        }
        index
    }

    /// Sets a member's next hop, and says that it is known.
    pub fn set_next_hop(&mut self, member: u32, hop: &NextHop) {
        let mut line: Member = self.maps.members.read(member);
        let tag = |index: usize| hop.vlans.get(index).copied().unwrap_or_default().to_be_bytes();
        line.destination_mac = hop.destination_mac;
        line.source_mac = hop.source_mac;
        line.ifindex = hop.ifindex;
        line.mtu = hop.mtu;
        line.vlan_outer = tag(0);
        line.vlan_inner = tag(1);
        line.vlan_count = hop.vlans.len() as u8;
        line.vlan_service_tag = hop.service_tag as u8;
        line.flags |= member_flags::NEXT_HOP;
        self.maps.members.write(member, &line);
    }

    /// Replaces a member's [`member_flags`].
    pub fn set_member_flags(&mut self, member: u32, flags: u8) {
        let line: Member = self.maps.members.read(member);
        self.maps.members.write(member, &Member { flags, ..line });
    }

    /// Says whether new flows may go to a backend.
    pub fn set_usable(&mut self, backend: u32, usable: bool) {
        let line: Backend = self.maps.backends.read(backend);
        let flags = if usable { backend_flags::USABLE } else { 0 };
        self.maps.backends.write(backend, &Backend { flags, ..line });
    }

    /// Says what failed connections of a service lead to.
    pub fn set_reaction(&mut self, service: u32, reaction: ReactionWord) {
        let descriptor: ServiceDescriptor = self.maps.descriptors.read(service);
        self.maps.descriptors.write(service, &ServiceDescriptor { reaction: reaction.0, ..descriptor });
    }

    /// Says which flows of a service the flow log notes.
    pub fn set_flow_log(&mut self, service: u32, flow_log: FlowLogWord) {
        let descriptor: ServiceDescriptor = self.maps.descriptors.read(service);
        self.maps.descriptors.write(service, &ServiceDescriptor { flow_log: flow_log.0, ..descriptor });
    }

    /// Lets only clients from these networks begin flows of a service; `None`: everybody.
    ///
    /// # Panics
    /// With more bits than an address of the network's family has.
    pub fn set_source_ranges(&mut self, service: u32, ranges: Option<&[(IpAddr, u8)]>) {
        let index = service.to_be_bytes();
        self.maps.sources_v4.retain(|(_, range)| range.service != index);
        self.maps.sources_v6.retain(|(_, range)| range.service != index);
        for (network, length) in ranges.into_iter().flatten() {
            let most = if network.is_ipv4() { 32 } else { 128 };
            assert!(*length <= most, "{network} has {most} bits");
            let bits = SOURCE_SERVICE_BITS + *length as u32;
            match network {
                IpAddr::V4(network) => {
                    let range = SourceV4 { service: index, address: network.octets() };
                    self.maps.sources_v4.insert((bits, range));
                }
                IpAddr::V6(network) => {
                    let range = SourceV6 { service: index, address: network.octets() };
                    self.maps.sources_v6.insert((bits, range));
                }
            }
        }
        let descriptor: ServiceDescriptor = self.maps.descriptors.read(service);
        let asked = ClientWord(descriptor.clients);
        let clients = ClientWord::new(ranges.is_some(), asked.stay() as u32);
        let clients = clients.with_interval(asked.interval() as u32).with_beyond(asked.beyond()).0;
        self.maps.descriptors.write(service, &ServiceDescriptor { clients, ..descriptor });
    }

    /// Says for how long a client of a service stays with its backend, in ticks; 0: it doesn't.
    pub fn set_stay(&mut self, service: u32, ticks: u32) {
        let descriptor: ServiceDescriptor = self.maps.descriptors.read(service);
        let asked = ClientWord(descriptor.clients);
        let clients = ClientWord::new(asked.has_ranges(), ticks).with_interval(asked.interval() as u32);
        let clients = clients.with_beyond(asked.beyond()).0;
        self.maps.descriptors.write(service, &ServiceDescriptor { clients, ..descriptor });
    }

    /// Limits the flows of a service that a client's network begins to one in so many nanoseconds; 0: any number.
    pub fn set_interval(&mut self, service: u32, nanoseconds: u32) {
        let descriptor: ServiceDescriptor = self.maps.descriptors.read(service);
        let clients = ClientWord(descriptor.clients).with_interval(nanoseconds).0;
        self.maps.descriptors.write(service, &ServiceDescriptor { clients, ..descriptor });
    }

    /// Says how many trailing bits of an address don't tell clients' networks apart, exclusive-or with the family's default
    /// (see [`ClientWord::beyond`]).
    pub fn set_beyond(&mut self, service: u32, bits: u8) {
        let descriptor: ServiceDescriptor = self.maps.descriptors.read(service);
        let clients = ClientWord(descriptor.clients).with_beyond(bits).0;
        self.maps.descriptors.write(service, &ServiceDescriptor { clients, ..descriptor });
    }

    /// Says in which cluster a backend is.
    pub fn set_cluster(&mut self, backend: u32, cluster: u32) {
        let line: Backend = self.maps.backends.read(backend);
        self.maps.backends.write(backend, &Backend { cluster, ..line });
    }

    /// Gives a service a new ring of the smallest size, its slots dealt to the members in turn.
    pub fn set_ring(&mut self, service: u32, members: &[u32]) {
        self.set_ring_of(service, 0, members);
    }

    /// Gives a service a new fallback ring.
    pub fn set_fallback(&mut self, service: u32, members: &[u32]) {
        let word = self.write_ring(members);
        let descriptor: ServiceDescriptor = self.maps.descriptors.read(service);
        self.maps.descriptors.write(service, &ServiceDescriptor { fallback: word.0, ..descriptor });
    }

    /// Gives a service a new ring of a size class, an index of [`RING_SIZES`], its slots dealt to the members in turn.
    pub fn set_ring_of(&mut self, service: u32, class: u8, members: &[u32]) {
        let word = self.write_ring_of(class, members);
        let descriptor: ServiceDescriptor = self.maps.descriptors.read(service);
        self.maps.descriptors.write(service, &ServiceDescriptor { ring: word.0, ..descriptor });
    }

    /// Writes a ring of the smallest size beside the others and returns its word, for a descriptor.
    ///
    /// # Panics
    /// When `RINGS` is full, or without members.
    pub fn write_ring(&mut self, members: &[u32]) -> RingWord {
        self.write_ring_of(0, members)
    }

    fn write_ring_of(&mut self, class: u8, members: &[u32]) -> RingWord {
        let slots = RING_SIZES[usize::from(class)];
        let offset = self.next_ring_pair;
        self.next_ring_pair += slots.div_ceil(2);
        let mut dealt = members.iter().copied().cycle().take(slots as usize);
        for pair in 0..slots.div_ceil(2) {
            let slots = [dealt.next().expect("a member"), dealt.next().unwrap_or_default()];
            self.maps.rings.write(offset + pair, &RingPair { slots });
        }
        let word = RingWord::new(offset, class, self.next_ring_version);
        self.next_ring_version += 1;
        word
    }

    /// A member's line.
    #[must_use]
    pub fn member(&self, index: u32) -> Member {
        self.maps.members.read(index)
    }

    /// The settings, to change. They exist from the start.
    ///
    /// # Panics
    /// Where a test has taken them away.
    pub fn config_mut(&mut self) -> &mut Config {
        self.maps.config.as_mut().expect("a gateway has settings")
    }

    /// Whether a service speaks TCP.
    #[must_use]
    pub fn is_tcp(&self, service: u32) -> bool {
        self.services[service as usize].1 == TCP
    }
}

/// A hash key from a seed.
fn key(seed: u64) -> HashKey {
    let mut words = [0; 16];
    for (word, counter) in words.iter_mut().zip(1..) {
        *word = hash::finish(seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(counter))) as u32;
    }
    HashKey { words }
}

/// An address in network order; IPv4 in the first four bytes.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}

/// Applies a step to a sum for each raw 16-bit word of an address.
fn raw_sum(address: IpAddr, sum: Sum, step: fn(Sum, u16) -> Sum) -> Sum {
    let length = if address.is_ipv4() { 4 } else { 16 };
    octets(address)[..length]
        .chunks(2)
        .fold(sum, |sum, word| step(sum, u16::from_ne_bytes([word[0], word[1]])))
}
