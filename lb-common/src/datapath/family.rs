//! IPv4 and IPv6 alike: what differs between them, behind one trait, so that every step is written once.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{
    Cells, Maps, PacketMut, Tables,
    checksum::Sum,
    icmp::Message,
    parse::{self, Fragment, Ip, Network},
};
use crate::{
    abi::{
        BackendKeyV4, BackendKeyV6, ClientWord, Config, MAX_SNAT_ADDRESSES, Refusal, ServiceKeyV4,
        ServiceKeyV6, SourceV4, SourceV6, VipKeyV4, VipKeyV6, address_check,
    },
    hash::{self, FlowHash, HashKey},
};

/// TTL or hop limit of packets of our own.
const TTL: u8 = 64;

/// An IP version.
pub trait Family: Sized + Copy {
    /// A raw address: network order in memory.
    type Address: Default + Copy + PartialEq;
    /// 4 or 6.
    const NUMBER: u8;
    /// Cells of a reverse entry.
    const REVERSE_CELLS: usize;
    /// The link layer's name for it.
    #[doc(hidden)]
    const NETWORK: Network;

    /// Reads the network header; with `FIRSTS` it looks into first fragments.
    #[doc(hidden)]
    fn parse<P: PacketMut, const FIRSTS: bool>(
        packet: &P,
        config: &Config,
        offset: usize,
    ) -> Option<Ip<Self>>;
    /// Reads the headers of most packets; `None` for others.
    #[doc(hidden)]
    fn parse_plain<P: PacketMut>(packet: &mut P) -> Option<Ip<Self>>;
    /// Reads what a packet's headers say of it as a fragment.
    #[doc(hidden)]
    fn fragment<P: PacketMut>(packet: &P, config: &Config, network_offset: usize) -> Option<Fragment>;
    /// Gives a fragment another identification, of which IPv4 takes the first two bytes.
    #[doc(hidden)]
    fn write_fragment_id<P: PacketMut>(packet: &mut P, fragment: &Fragment, id: u32) -> Option<()>;
    /// Whether packets of different protocols have identifications of their own.
    const IDS_BY_PROTOCOL: bool;
    /// The keyed hash of a flow; see [`hash::hash_v4`].
    fn hash(
        key: &HashKey,
        source: Self::Address,
        destination: Self::Address,
        ports: u32,
        protocol: u8,
    ) -> FlowHash;
    /// One half of it.
    fn hash_half(
        key: &HashKey,
        source: Self::Address,
        destination: Self::Address,
        ports: u32,
        protocol: u8,
        high: bool,
    ) -> u64;
    /// Index of an address in `ADDRESS_FILTER`.
    fn filter_index(address: Self::Address) -> u32;
    /// Index of the service at (address, raw port, protocol).
    fn service<M: Maps>(maps: &M, address: Self::Address, port: u16, protocol: u8) -> Option<u32>;
    /// Whether an address is in one of a service's source ranges.
    fn is_source<M: Maps>(maps: &M, service: u32, address: Self::Address) -> bool;
    /// Flags of a VIP; `None` where the address is not one.
    fn vip<M: Maps>(maps: &M, address: Self::Address) -> Option<u32>;
    /// Index of the backend at (address, raw port, protocol).
    fn backend<M: Maps>(maps: &M, address: Self::Address, port: u16, protocol: u8) -> Option<u32>;
    /// Which SNAT address this is.
    fn snat_index(config: &Config, address: Self::Address) -> Option<u8>;
    /// A SNAT address.
    fn snat_address(config: &Config, index: u8) -> Self::Address;
    /// How many SNAT addresses there are, 0–8.
    fn snat_count(config: &Config) -> u32;
    /// Bucket of the reverse table.
    fn reverse_bucket<T: Tables>(tables: &T, index: u32) -> Option<T::Cells>;
    /// Number of reverse buckets − 1.
    fn reverse_mask(config: &Config) -> u32;
    /// The address that goes into a reverse entry's `client` word.
    fn client_word(address: Self::Address) -> u32;
    /// Writes what of the client's address does not fit into the `client` word.
    fn store_client<C: Cells>(cells: C, first: usize, address: Self::Address, version: u16);
    /// Puts the client's address together; `None` where the words are of two incarnations.
    fn load_client<C: Cells>(cells: C, first: usize, word: u32, version: u16) -> Option<Self::Address>;
    /// A member's VIP.
    fn member_vip<M: Maps, C: Cells>(maps: &M, member: C) -> Option<Self::Address>;
    /// A member's address.
    fn member_address<C: Cells>(member: C) -> Self::Address;
    /// Adds an address to a checksum difference.
    fn add(sum: Sum, address: Self::Address) -> Sum;
    /// Subtracts an address from a checksum difference.
    fn sub(sum: Sum, address: Self::Address) -> Sum;
    /// Writes source, destination and the decremented TTL or hop limit. `header_delta` is what happens to the
    /// sum of the addresses; only IPv4 has a checksum that covers them.
    #[doc(hidden)]
    fn write_header<P: PacketMut>(
        packet: &mut P,
        ip: &Ip<Self>,
        source: Self::Address,
        destination: Self::Address,
        header_delta: Sum,
    ) -> Option<()>;
    /// Length of the network header without options or extension headers.
    const HEADER: usize;
    /// Whether the checksum of a network header without options is right, where there is one.
    #[doc(hidden)]
    fn is_header_intact<P: PacketMut>(packet: &P, network_offset: usize) -> Option<bool>;
    /// Bytes from the network header's first to the packet's last.
    #[doc(hidden)]
    fn total_length<P: PacketMut>(packet: &P, network_offset: usize) -> Option<u32>;
    /// What a copy of a SYN keeps of the network header; see [`crate::abi::SynCopy`].
    #[doc(hidden)]
    fn network_fields<P: PacketMut>(packet: &P, network_offset: usize) -> Option<u64>;
    /// The same of a packet of our own, with this traffic class.
    #[doc(hidden)]
    fn new_fields(class: u8) -> u64;
    /// Writes the network header of a packet with that many bytes behind it.
    #[doc(hidden)]
    fn write_new_header<P: PacketMut>(
        packet: &mut P,
        network_offset: usize,
        fields: u64,
        protocol: u8,
        source: Self::Address,
        destination: Self::Address,
        segment: u16,
    ) -> Option<()>;
    /// Whether an address can be one host's: it is neither unspecified nor loopback, multicast or broadcast.
    fn is_host(address: Self::Address) -> bool;
    /// ICMP's type of an echo request.
    const ECHO_REQUEST: u8;
    /// Most bytes of an ICMP error, network header included.
    const LONGEST_ERROR: u32;
    /// ICMP's type and code of a refusal.
    fn icmp_error(refusal: Refusal) -> [u8; 2];
    /// The network that a client's address stands for where its flows are limited; `beyond` is [`ClientWord::beyond`].
    fn network(address: Self::Address, beyond: u8) -> Self::Address;
    /// The address as two words whose bytes in memory are in network order, IPv4 in the first four.
    fn raw(address: Self::Address) -> [u64; 2];
    /// The address of such words.
    fn of_raw(words: [u64; 2]) -> Self::Address;
    /// IP protocol number of its ICMP (IANA).
    const ICMP: u8;
    /// Type of an echo reply.
    const ECHO_REPLY: u8;
    /// Type of an error about a packet whose hops ended.
    const TIME_EXCEEDED: u8;
    /// What an ICMP message of this type is about (RFC 792, RFC 4443).
    #[doc(hidden)]
    fn icmp_message(kind: u8) -> Message;
    /// Reads the network header of a packet that is perhaps not all there: source, destination, protocol, and the
    /// offset of the transport header.
    #[doc(hidden)]
    fn parse_quoted<P: PacketMut>(
        packet: &P,
        offset: usize,
    ) -> Option<(Self::Address, Self::Address, u8, usize)>;
    /// Writes source and destination of a quoted packet; what happens to the sum of its header's words. `delta` is
    /// what happens to the sum of the addresses.
    #[doc(hidden)]
    fn write_quoted_addresses<P: PacketMut>(
        packet: &mut P,
        network_offset: usize,
        source: Self::Address,
        destination: Self::Address,
        delta: Sum,
    ) -> Option<Sum>;
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug)]
pub struct V4;

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Address = u32;
    const NUMBER: u8 = 4;
    const REVERSE_CELLS: usize = 4;
    const NETWORK: Network = Network::V4;

    const HEADER: usize = Ipv4Hdr::LEN;

    #[inline(always)]
    fn is_header_intact<P: PacketMut>(packet: &P, network_offset: usize) -> Option<bool> {
        let words: [u32; 5] = packet.read::<_, 0>(network_offset)?;
        let mut sum = Sum::ZERO;
        for word in words {
            sum = sum.add32(word);
        }
        Some(sum.fold() == !0)
    }

    #[inline(always)]
    fn total_length<P: PacketMut>(packet: &P, network_offset: usize) -> Option<u32> {
        Some(u16::from_be(packet.read::<u16, { offset_of!(Ipv4Hdr, tot_len) }>(network_offset)?) as u32)
    }

    #[inline(always)]
    fn network_fields<P: PacketMut>(packet: &P, network_offset: usize) -> Option<u64> {
        let service: u8 = packet.read::<_, { offset_of!(Ipv4Hdr, tos) }>(network_offset)?;
        let ttl: u8 = packet.read::<_, { offset_of!(Ipv4Hdr, ttl) }>(network_offset)?;
        let id: u16 = packet.read::<_, { offset_of!(Ipv4Hdr, id) }>(network_offset)?;
        let fragment: u16 = packet.read::<_, { offset_of!(Ipv4Hdr, frags) }>(network_offset)?;
        Some(service as u64 | (ttl as u64) << 8 | (id as u64) << 16 | (fragment as u64) << 32)
    }

    #[inline(always)]
    fn new_fields(class: u8) -> u64 {
        // Not to be fragmented, so that it needs no number (RFC 6864, §4.1).
        class as u64 | (TTL as u64) << 8 | (0x4000_u16.to_be() as u64) << 32
    }

    #[inline(always)]
    fn write_new_header<P: PacketMut>(
        packet: &mut P,
        network_offset: usize,
        fields: u64,
        protocol: u8,
        source: u32,
        destination: u32,
        segment: u16,
    ) -> Option<()> {
        // Words as they lie in memory.
        let first = u16::from_ne_bytes([0x45, fields as u8]);
        let total = (Ipv4Hdr::LEN as u16).wrapping_add(segment).to_be();
        let (id, fragment) = ((fields >> 16) as u16, (fields >> 32) as u16);
        let ttl = u16::from_ne_bytes([(fields >> 8) as u8, protocol]);
        let sum = Sum::ZERO.add16(first).add16(total).add16(id).add16(fragment).add16(ttl);
        let check = !sum.add32(source).add32(destination).fold();
        packet.write::<[u16; 4], 0>(network_offset, [first, total, id, fragment])?;
        packet.write::<[u16; 2], { offset_of!(Ipv4Hdr, ttl) }>(network_offset, [ttl, check])?;
        packet.write::<[u32; 2], { offset_of!(Ipv4Hdr, src_addr) }>(network_offset, [source, destination])
    }

    #[inline(always)]
    fn parse<P: PacketMut, const FIRSTS: bool>(
        packet: &P,
        _config: &Config,
        offset: usize,
    ) -> Option<Ip<Self>> {
        parse::ipv4::<Self, P, FIRSTS>(packet, offset)
    }

    #[inline(always)]
    fn parse_plain<P: PacketMut>(packet: &mut P) -> Option<Ip<Self>> {
        parse::plain_ipv4::<Self, P>(packet)
    }

    const IDS_BY_PROTOCOL: bool = true;

    #[inline(always)]
    fn fragment<P: PacketMut>(packet: &P, _config: &Config, network_offset: usize) -> Option<Fragment> {
        parse::fragment_v4(packet, network_offset)
    }

    #[inline(always)]
    fn write_fragment_id<P: PacketMut>(packet: &mut P, fragment: &Fragment, id: u32) -> Option<()> {
        const CHECK: usize = offset_of!(Ipv4Hdr, check);
        let [old, _] = bytemuck::cast::<u32, [u16; 2]>(fragment.id);
        let [new, _] = bytemuck::cast::<u32, [u16; 2]>(id);
        let check: u16 = packet.read::<_, CHECK>(fragment.offset)?;
        packet.write::<u16, { offset_of!(Ipv4Hdr, id) }>(fragment.offset, new)?;
        packet.write::<u16, CHECK>(fragment.offset, Sum::ZERO.sub16(old).add16(new).apply(check))
    }

    #[inline(always)]
    fn hash(key: &HashKey, source: u32, destination: u32, ports: u32, protocol: u8) -> FlowHash {
        hash::hash_v4(key, source, destination, ports, protocol)
    }

    #[inline(always)]
    fn hash_half(key: &HashKey, source: u32, destination: u32, ports: u32, protocol: u8, high: bool) -> u64 {
        hash::half_v4(key, source, destination, ports, protocol, high)
    }

    #[inline(always)]
    fn filter_index(address: u32) -> u32 {
        hash::filter_index_v4(address)
    }

    #[inline(always)]
    fn service<M: Maps>(maps: &M, address: u32, port: u16, protocol: u8) -> Option<u32> {
        let key = ServiceKeyV4 { vip: address.to_ne_bytes(), port: port.to_ne_bytes(), protocol, pad: 0 };
        maps.service_v4(&key)
    }

    #[inline(always)]
    fn is_source<M: Maps>(maps: &M, service: u32, address: u32) -> bool {
        maps.source_v4(&SourceV4 { service: service.to_be_bytes(), address: address.to_ne_bytes() })
    }

    #[inline(always)]
    fn vip<M: Maps>(maps: &M, address: u32) -> Option<u32> {
        maps.vip_v4(&VipKeyV4 { vip: address.to_ne_bytes() })
    }

    #[inline(always)]
    fn backend<M: Maps>(maps: &M, address: u32, port: u16, protocol: u8) -> Option<u32> {
        let key = BackendKeyV4 { address: address.to_ne_bytes(), port: port.to_ne_bytes(), protocol, pad: 0 };
        maps.backend_v4(&key)
    }

    #[inline(always)]
    fn snat_index(config: &Config, address: u32) -> Option<u8> {
        let mut index = 0;
        while index < MAX_SNAT_ADDRESSES && index < config.snat_v4_count as usize {
            if u32::from_ne_bytes(config.snat_v4[index]) == address {
                return Some(index as u8);
            }
            index += 1;
        }
        None
    }

    #[inline(always)]
    fn snat_address(config: &Config, index: u8) -> u32 {
        u32::from_ne_bytes(config.snat_v4[index as usize & (MAX_SNAT_ADDRESSES - 1)])
    }

    #[inline(always)]
    fn snat_count(config: &Config) -> u32 {
        config.snat_v4_count
    }

    #[inline(always)]
    fn reverse_bucket<T: Tables>(tables: &T, index: u32) -> Option<T::Cells> {
        tables.reverse_v4_bucket(index)
    }

    #[inline(always)]
    fn reverse_mask(config: &Config) -> u32 {
        config.reverse_v4_mask
    }

    #[inline(always)]
    fn client_word(address: u32) -> u32 {
        address
    }

    #[inline(always)]
    fn store_client<C: Cells>(_cells: C, _first: usize, _address: u32, _version: u16) {}

    #[inline(always)]
    fn load_client<C: Cells>(_cells: C, _first: usize, word: u32, _version: u16) -> Option<u32> {
        Some(word)
    }

    #[inline(always)]
    fn member_vip<M: Maps, C: Cells>(_maps: &M, member: C) -> Option<u32> {
        Some(member.load(7) as u32)
    }

    #[inline(always)]
    fn member_address<C: Cells>(member: C) -> u32 {
        member.load(0) as u32
    }

    #[inline(always)]
    fn add(sum: Sum, address: u32) -> Sum {
        sum.add32(address)
    }

    #[inline(always)]
    fn sub(sum: Sum, address: u32) -> Sum {
        sum.sub32(address)
    }

    #[inline(always)]
    fn write_header<P: PacketMut>(
        packet: &mut P,
        ip: &Ip<Self>,
        source: u32,
        destination: u32,
        header_delta: Sum,
    ) -> Option<()> {
        const TTL: usize = offset_of!(Ipv4Hdr, ttl);
        const CHECK: usize = offset_of!(Ipv4Hdr, check);
        const SOURCE: usize = offset_of!(Ipv4Hdr, src_addr);
        let ttl = ip.ttl.wrapping_sub(1);
        let check: u16 = packet.read::<_, CHECK>(ip.network_offset)?;
        // The TTL shares its 16-bit word with the protocol.
        let check = header_delta
            .sub16(u16::from_ne_bytes([ip.ttl, ip.protocol]))
            .add16(u16::from_ne_bytes([ttl, ip.protocol]))
            .apply(check);
        packet.write::<u8, TTL>(ip.network_offset, ttl)?;
        packet.write::<u16, CHECK>(ip.network_offset, check)?;
        packet.write::<[u32; 2], SOURCE>(ip.network_offset, [source, destination])
    }

    #[inline(always)]
    fn is_host(address: u32) -> bool {
        // 0/8 and 127/8 stay on their hosts; above 224/4, multicast, lies 240/4, reserved, with the broadcast.
        let first = (u32::from_be(address) >> 24) as u8;
        first != 0 && first != 127 && first < 224
    }

    const ECHO_REQUEST: u8 = 8;
    const LONGEST_ERROR: u32 = 576;

    #[inline(always)]
    fn icmp_error(refusal: Refusal) -> [u8; 2] {
        match refusal {
            Refusal::Port => [3, 3],
            Refusal::Prohibited => [3, 13],
            Refusal::Protocol => [3, 2],
            Refusal::TimeExceeded => [11, 0],
            Refusal::TooBig => [3, 4],
        }
    }

    #[inline(always)]
    fn network(address: u32, beyond: u8) -> u32 {
        address & (u32::MAX << ((beyond ^ ClientWord::BEYOND_V4) & 31)).to_be()
    }

    #[inline(always)]
    fn raw(address: u32) -> [u64; 2] {
        [bytemuck::cast([address, 0]), 0]
    }

    #[inline(always)]
    fn of_raw(words: [u64; 2]) -> u32 {
        words[0] as u32
    }

    const ICMP: u8 = 1;
    const ECHO_REPLY: u8 = 0;
    const TIME_EXCEEDED: u8 = 11;

    #[inline(always)]
    fn icmp_message(kind: u8) -> Message {
        match kind {
            Self::ECHO_REQUEST => Message::EchoRequest,
            // Unreachable, time exceeded, parameter problem. Quench is obsolete (RFC 6633), a redirect is for hosts.
            3 | 11 | 12 => Message::Error,
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn parse_quoted<P: PacketMut>(packet: &P, offset: usize) -> Option<(u32, u32, u8, usize)> {
        parse::quoted_ipv4(packet, offset)
    }

    #[inline(always)]
    fn write_quoted_addresses<P: PacketMut>(
        packet: &mut P,
        network_offset: usize,
        source: u32,
        destination: u32,
        delta: Sum,
    ) -> Option<Sum> {
        const CHECK: usize = offset_of!(Ipv4Hdr, check);
        let check: u16 = packet.read::<_, CHECK>(network_offset)?;
        let new = delta.apply(check);
        packet.write::<u16, CHECK>(network_offset, new)?;
        packet.write::<[u32; 2], { offset_of!(Ipv4Hdr, src_addr) }>(network_offset, [source, destination])?;
        Some(delta.sub16(check).add16(new))
    }
}

/// An address as 32-bit words, in the order in which they lie in memory.
#[inline(always)]
fn words4(address: [u64; 2]) -> [u32; 4] {
    bytemuck::cast(address)
}

impl Family for V6 {
    type Address = [u64; 2];
    const NUMBER: u8 = 6;
    const REVERSE_CELLS: usize = 8;
    const NETWORK: Network = Network::V6;

    const HEADER: usize = Ipv6Hdr::LEN;

    #[inline(always)]
    fn is_header_intact<P: PacketMut>(_packet: &P, _network_offset: usize) -> Option<bool> {
        Some(true)
    }

    #[inline(always)]
    fn total_length<P: PacketMut>(packet: &P, network_offset: usize) -> Option<u32> {
        let payload: u16 = packet.read::<_, { offset_of!(Ipv6Hdr, payload_len) }>(network_offset)?;
        Some(Ipv6Hdr::LEN as u32 + u16::from_be(payload) as u32)
    }

    #[inline(always)]
    fn network_fields<P: PacketMut>(packet: &P, network_offset: usize) -> Option<u64> {
        let first: u32 = packet.read::<_, 0>(network_offset)?;
        let hop_limit: u8 = packet.read::<_, { offset_of!(Ipv6Hdr, hop_limit) }>(network_offset)?;
        Some(first as u64 | (hop_limit as u64) << 32)
    }

    #[inline(always)]
    fn new_fields(class: u8) -> u64 {
        (0x6000_0000 | (class as u32) << 20).to_be() as u64 | (TTL as u64) << 32
    }

    #[inline(always)]
    fn write_new_header<P: PacketMut>(
        packet: &mut P,
        network_offset: usize,
        fields: u64,
        protocol: u8,
        source: [u64; 2],
        destination: [u64; 2],
        segment: u16,
    ) -> Option<()> {
        let last = u16::from_ne_bytes([protocol, (fields >> 32) as u8]);
        packet.write::<u32, 0>(network_offset, fields as u32)?;
        packet.write::<[u16; 2], { offset_of!(Ipv6Hdr, payload_len) }>(
            network_offset,
            [segment.to_be(), last],
        )?;
        packet.write::<[u64; 2], { offset_of!(Ipv6Hdr, src_addr) }>(network_offset, source)?;
        packet.write::<[u64; 2], { offset_of!(Ipv6Hdr, dst_addr) }>(network_offset, destination)
    }

    #[inline(always)]
    fn parse<P: PacketMut, const FIRSTS: bool>(
        packet: &P,
        config: &Config,
        offset: usize,
    ) -> Option<Ip<Self>> {
        parse::ipv6::<Self, P, FIRSTS>(packet, config, offset)
    }

    #[inline(always)]
    fn parse_plain<P: PacketMut>(packet: &mut P) -> Option<Ip<Self>> {
        parse::plain_ipv6::<Self, P>(packet)
    }

    const IDS_BY_PROTOCOL: bool = false;

    #[inline(always)]
    fn fragment<P: PacketMut>(packet: &P, config: &Config, network_offset: usize) -> Option<Fragment> {
        parse::fragment_v6(packet, config, network_offset)
    }

    #[inline(always)]
    fn write_fragment_id<P: PacketMut>(packet: &mut P, fragment: &Fragment, id: u32) -> Option<()> {
        packet.write::<u32, { parse::FRAGMENT_ID }>(fragment.offset, id)
    }

    #[inline(always)]
    fn hash(key: &HashKey, source: [u64; 2], destination: [u64; 2], ports: u32, protocol: u8) -> FlowHash {
        hash::hash_v6(key, words4(source), words4(destination), ports, protocol)
    }

    #[inline(always)]
    fn hash_half(
        key: &HashKey,
        source: [u64; 2],
        destination: [u64; 2],
        ports: u32,
        protocol: u8,
        high: bool,
    ) -> u64 {
        hash::half_v6(key, words4(source), words4(destination), ports, protocol, high)
    }

    #[inline(always)]
    fn filter_index(address: [u64; 2]) -> u32 {
        hash::filter_index_v6(words4(address))
    }

    #[inline(always)]
    fn service<M: Maps>(maps: &M, address: [u64; 2], port: u16, protocol: u8) -> Option<u32> {
        let key = ServiceKeyV6 { vip: bytemuck::cast(address), port: port.to_ne_bytes(), protocol, pad: 0 };
        maps.service_v6(&key)
    }

    #[inline(always)]
    fn is_source<M: Maps>(maps: &M, service: u32, address: [u64; 2]) -> bool {
        maps.source_v6(&SourceV6 { service: service.to_be_bytes(), address: bytemuck::cast(address) })
    }

    #[inline(always)]
    fn vip<M: Maps>(maps: &M, address: [u64; 2]) -> Option<u32> {
        maps.vip_v6(&VipKeyV6 { vip: bytemuck::cast(address) })
    }

    #[inline(always)]
    fn backend<M: Maps>(maps: &M, address: [u64; 2], port: u16, protocol: u8) -> Option<u32> {
        let key =
            BackendKeyV6 { address: bytemuck::cast(address), port: port.to_ne_bytes(), protocol, pad: 0 };
        maps.backend_v6(&key)
    }

    #[inline(always)]
    fn snat_index(config: &Config, address: [u64; 2]) -> Option<u8> {
        let mut index = 0;
        while index < MAX_SNAT_ADDRESSES && index < config.snat_v6_count as usize {
            if bytemuck::cast::<_, [u64; 2]>(config.snat_v6[index]) == address {
                return Some(index as u8);
            }
            index += 1;
        }
        None
    }

    #[inline(always)]
    fn snat_address(config: &Config, index: u8) -> [u64; 2] {
        bytemuck::cast(config.snat_v6[index as usize & (MAX_SNAT_ADDRESSES - 1)])
    }

    #[inline(always)]
    fn snat_count(config: &Config) -> u32 {
        config.snat_v6_count
    }

    #[inline(always)]
    fn reverse_bucket<T: Tables>(tables: &T, index: u32) -> Option<T::Cells> {
        tables.reverse_v6_bucket(index)
    }

    #[inline(always)]
    fn reverse_mask(config: &Config) -> u32 {
        config.reverse_v6_mask
    }

    #[inline(always)]
    fn client_word(_address: [u64; 2]) -> u32 {
        0
    }

    #[inline(always)]
    fn store_client<C: Cells>(cells: C, first: usize, address: [u64; 2], version: u16) {
        cells.store(first + 4, address[0]);
        cells.store(first + 5, address[1]);
        cells.store(first + 6, address_check(address, version));
    }

    #[inline(always)]
    fn load_client<C: Cells>(cells: C, first: usize, _word: u32, version: u16) -> Option<[u64; 2]> {
        let address = [cells.load(first + 4), cells.load(first + 5)];
        if cells.load(first + 6) != address_check(address, version) {
            return None;
        }
        Some(address)
    }

    #[inline(always)]
    fn member_vip<M: Maps, C: Cells>(maps: &M, member: C) -> Option<[u64; 2]> {
        let descriptor = maps.descriptor((member.load(6) >> 32) as u32)?;
        Some([descriptor.load(2), descriptor.load(3)])
    }

    #[inline(always)]
    fn member_address<C: Cells>(member: C) -> [u64; 2] {
        [member.load(0), member.load(1)]
    }

    #[inline(always)]
    fn add(sum: Sum, address: [u64; 2]) -> Sum {
        sum.add64(address[0]).add64(address[1])
    }

    #[inline(always)]
    fn sub(sum: Sum, address: [u64; 2]) -> Sum {
        sum.sub64(address[0]).sub64(address[1])
    }

    #[inline(always)]
    fn write_header<P: PacketMut>(
        packet: &mut P,
        ip: &Ip<Self>,
        source: [u64; 2],
        destination: [u64; 2],
        _header_delta: Sum,
    ) -> Option<()> {
        const HOP_LIMIT: usize = offset_of!(Ipv6Hdr, hop_limit);
        const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
        const DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);
        packet.write::<u8, HOP_LIMIT>(ip.network_offset, ip.ttl.wrapping_sub(1))?;
        packet.write::<[u64; 2], SOURCE>(ip.network_offset, source)?;
        packet.write::<[u64; 2], DESTINATION>(ip.network_offset, destination)
    }

    #[inline(always)]
    fn is_host(address: [u64; 2]) -> bool {
        // In ::/64 are the unspecified address, loopback, and IPv4 addresses in other forms; ff00::/8 is multicast.
        address[0] != 0 && u64::from_be(address[0]) >> 56 != 0xff
    }

    const ECHO_REQUEST: u8 = 128;
    const LONGEST_ERROR: u32 = 1280;

    #[inline(always)]
    fn icmp_error(refusal: Refusal) -> [u8; 2] {
        match refusal {
            Refusal::Port => [1, 4],
            Refusal::Prohibited => [1, 1],
            Refusal::Protocol => [4, 1],
            Refusal::TimeExceeded => [3, 0],
            Refusal::TooBig => [2, 0],
        }
    }

    #[inline(always)]
    fn network(address: [u64; 2], beyond: u8) -> [u64; 2] {
        let beyond = (beyond ^ ClientWord::BEYOND_V6) as u64 & 127;
        // Without a branch, which the verifier would follow. 0: all of them lie in the second word.
        let is_long = beyond >> 6;
        let mask = u64::MAX << (beyond & 63);
        let first = mask | is_long.wrapping_sub(1);
        let second = mask & is_long.wrapping_sub(1);
        [address[0] & first.to_be(), address[1] & second.to_be()]
    }

    #[inline(always)]
    fn raw(address: [u64; 2]) -> [u64; 2] {
        address
    }

    #[inline(always)]
    fn of_raw(words: [u64; 2]) -> [u64; 2] {
        words
    }

    const ICMP: u8 = 58;
    const ECHO_REPLY: u8 = 129;
    const TIME_EXCEEDED: u8 = 3;

    #[inline(always)]
    fn icmp_message(kind: u8) -> Message {
        match kind {
            Self::ECHO_REQUEST => Message::EchoRequest,
            // Unreachable, packet too big, time exceeded, parameter problem.
            1..=4 => Message::Error,
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn parse_quoted<P: PacketMut>(packet: &P, offset: usize) -> Option<([u64; 2], [u64; 2], u8, usize)> {
        parse::quoted_ipv6(packet, offset)
    }

    #[inline(always)]
    fn write_quoted_addresses<P: PacketMut>(
        packet: &mut P,
        network_offset: usize,
        source: [u64; 2],
        destination: [u64; 2],
        delta: Sum,
    ) -> Option<Sum> {
        packet.write::<[u64; 2], { offset_of!(Ipv6Hdr, src_addr) }>(network_offset, source)?;
        packet.write::<[u64; 2], { offset_of!(Ipv6Hdr, dst_addr) }>(network_offset, destination)?;
        Some(delta)
    }
}
