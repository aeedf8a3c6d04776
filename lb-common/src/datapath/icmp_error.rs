//! ICMP and ICMPv6 errors of our own: about the packet in the frame, to its sender.

use core::hint::black_box;

use super::{
    Family, PacketMut, checksum,
    parse::{Ip, Link},
    refuse,
};
use crate::abi::Config;

/// Type, code, checksum, and four bytes of which each type makes its own.
const HEADER: u32 = 8;
/// Internetwork control (RFC 1812, §4.3.2.5).
const PRECEDENCE: u8 = 0xc0;

/// An error.
#[derive(Clone, Copy)]
pub(super) struct IcmpError<F: Family> {
    /// Type and code.
    pub what: [u8; 2],
    /// The second word of its header, raw.
    pub rest: u32,
    /// Who says so.
    pub source: F::Address,
}

/// Makes the frame an error about the packet of `total` bytes in it, which it quotes as far as it may: all of it, if
/// the error is no longer than 576 bytes then (RFC 1812, §4.3.2.3), or 1,280 over IPv6 (RFC 4443, §2.4 c). `None`
/// where there is no room; the frame must then be dropped.
#[inline(always)]
pub(super) fn build<F: Family, P: PacketMut>(
    packet: &mut P,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    total: u32,
    error: &IcmpError<F>,
) -> Option<()> {
    let most = F::LONGEST_ERROR - F::HEADER as u32 - HEADER;
    let quoted = config.forget(if total < most { total } else { most });
    let length = (quoted + HEADER) as u16;
    let what = u16::from_ne_bytes(error.what);
    let quote = checksum::sum(packet, config, ip.network_offset as u32, quoted)?;
    let mut sum = checksum::Sum::ZERO.add16(quote).add16(what).add32(error.rest);
    if F::NUMBER == 6 {
        let next = u16::from_ne_bytes([0, F::ICMP]);
        sum = F::add(F::add(sum, error.source), ip.source).add16(length.to_be()).add16(next);
    }

    let macs: [u16; 6] = packet.read::<_, 0>(0)?;
    let network = link.network_offset();
    // The compiler would subtract halves of two pointers, which the verifier does not allow.
    let surplus = black_box(packet.len()) as u32 - network as u32 - quoted;
    if !packet.cut_tail(surplus as usize) || !packet.adjust_head(-(F::HEADER as i32 + HEADER as i32)) {
        return None;
    }
    refuse::turn_back::<F, P>(packet, link, macs)?;
    let fields = F::new_fields(PRECEDENCE);
    F::write_new_header(packet, network, fields, F::ICMP, error.source, ip.source, length)?;
    let place = network + F::HEADER;
    packet.write::<[u16; 2], 0>(place, [what, !sum.fold()])?;
    packet.write::<u32, 4>(place, error.rest)
}
