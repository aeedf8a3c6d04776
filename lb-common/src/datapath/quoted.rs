//! The packet that an ICMP error quotes: cut short anywhere behind the first eight bytes of its transport header.

use core::mem::offset_of;

use network_types::{tcp::TcpHdr, udp::UdpHdr};

use super::{
    Family, PacketMut,
    checksum::Sum,
    parse::{self, Ip, Ports},
    rewrite::Tuple,
};
use crate::abi::{Config, TCP};

/// Bytes of a transport header that are sure to be there.
const LEAST: u32 = 8;

/// A quoted packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quoted<F: Family> {
    /// Offset of its network header.
    pub network_offset: usize,
    /// Offset of its transport header.
    pub transport_offset: usize,
    /// Source address, raw.
    pub source: F::Address,
    /// Destination address, raw.
    pub destination: F::Address,
    /// Ports.
    pub ports: Ports,
    /// IP protocol of the transport header.
    pub protocol: u8,
    /// Whether TCP's checksum, its bytes 16 and 17, is quoted too.
    pub has_tcp_check: bool,
}

/// Reads the packet quoted at `offset` by a message whose network layer is `ip`; `None` where it does not begin with a
/// whole network header and the first bytes of a transport header.
#[inline(always)]
pub(super) fn parse<F: Family, P: PacketMut>(
    packet: &P,
    config: &Config,
    ip: &Ip<F>,
    offset: usize,
) -> Option<Quoted<F>> {
    let (source, destination, protocol, transport_offset) = F::parse_quoted(packet, offset)?;
    let transport_offset = config.forget(transport_offset as u32) as usize;
    // What lies behind the message is padding of the frame.
    let end = ip.network_offset as u32 + F::total_length(packet, ip.network_offset)?;
    if transport_offset as u32 + LEAST > end {
        return None;
    }
    let ports = parse::ports(packet, transport_offset)?;
    let has_tcp_check = protocol == TCP && transport_offset as u32 + 18 <= end;
    Some(Quoted {
        network_offset: offset,
        transport_offset,
        source,
        destination,
        ports,
        protocol,
        has_tcp_check,
    })
}

/// Rewrites it; what happens to the sum of its words, which the message's checksum covers.
#[inline(always)]
pub(super) fn rewrite<F: Family, P: PacketMut>(
    packet: &mut P,
    old: &Quoted<F>,
    new: &Tuple<F>,
) -> Option<Sum> {
    let addresses =
        F::add(F::add(F::sub(F::sub(Sum::ZERO, old.source), old.destination), new.source), new.destination);
    let ports = Sum::ZERO
        .sub16(old.ports.source)
        .sub16(old.ports.destination)
        .add16(new.source_port)
        .add16(new.destination_port);
    let all = Sum(addresses.fold() as u64 + ports.fold() as u64);
    let offset = old.transport_offset;
    let mut changed =
        F::write_quoted_addresses(packet, old.network_offset, new.source, new.destination, addresses)?;
    packet.write::<[u16; 2], 0>(offset, [new.source_port, new.destination_port])?;
    changed = Sum(changed.fold() as u64 + ports.fold() as u64);
    if old.has_tcp_check {
        const CHECK: usize = offset_of!(TcpHdr, check);
        let check: u16 = packet.read::<_, CHECK>(offset)?;
        packet.write::<u16, CHECK>(offset, all.apply(check))?;
        changed = changed.sub16(check).add16(all.apply(check));
    } else if old.protocol != TCP {
        const CHECK: usize = offset_of!(UdpHdr, check);
        let check: u16 = packet.read::<_, CHECK>(offset)?;
        // As in `rewrite`: 0 means none, and is not made of another one.
        if check != 0 {
            let new = all.apply(check);
            let new = if new == 0 { 0xffff } else { new };
            packet.write::<u16, CHECK>(offset, new)?;
            changed = changed.sub16(check).add16(new);
        }
    }
    Some(changed)
}
