//! The largest segment that a TCP end says it takes (RFC 9293, §3.7.1), lowered to what the way takes.
//!
//! An end knows its own link; a smaller one on the way it would have to learn of by ICMP, which some networks drop. So a
//! SYN or its answer that promises too much is clamped, once all else in the frame is as it leaves. Who says nothing means
//! 536 bytes (1,220 over IPv6), and is left alone.

use core::mem::offset_of;

use network_types::{eth::EthHdr, tcp::TcpHdr};

use super::{
    Cells, Family, Maps, Outcome, PacketMut,
    checksum::Sum,
    mtu,
    parse::{Ip, Link, Shape},
    syn::REST,
};
use crate::abi::{Config, Counter, TCP};

/// The option's number and its length (RFC 9293, §3.2).
const OPTION: [u8; 2] = [2, 4];
/// End of the list.
const END: u8 = 0;
/// One byte of nothing.
const NOTHING: u8 = 1;
/// Options of one byte each that fit into a header.
const MOST_OPTIONS: u64 = 40;

/// Whether a segment with SYN, on its way between links of which the smallest that we know of has this MTU, may say
/// that longer segments than fit are welcome. What [`clamp`] needs is left in this CPU's cells then.
#[inline(always)]
pub(super) fn may_exceed<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    ip: &Ip<F>,
    known: u16,
    egress: u32,
) -> bool {
    // The other direction's packets leave by the interface that this one came in by.
    let mtu = mtu::smaller(known, packet.ingress_mtu());
    let headers = (F::HEADER + TcpHdr::LEN) as u16;
    if mtu <= headers {
        return false;
    }
    let most = mtu - headers;
    // Nearly everybody says it first.
    if let Some([kind, length, high, low]) = packet.read::<[u8; 4], { TcpHdr::LEN }>(ip.transport_offset)
        && [kind, length] == OPTION
        && u16::from_be_bytes([high, low]) <= most
    {
        return false;
    }
    let Some(cells) = maps.refusals() else { return false };
    cells.store(3, egress as u64 | (most as u64) << 32);
    true
}

/// Clamps the segment in a frame that is otherwise ready to leave.
#[inline(always)]
pub(super) fn clamp<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M, link: &Link) -> Outcome {
    let Some(config) = maps.config() else { return Outcome::Drop(Counter::DropNotReady) };
    let Some(cells) = maps.refusals() else { return Outcome::Drop(Counter::DropNotReady) };
    let asked = cells.load(3);
    let ip = F::parse::<P, false>(packet, config, link.network_offset());
    if let Some(ip) = ip.filter(|ip| ip.shape == Shape::Whole && ip.protocol == TCP)
        && lower(packet, config, ip.transport_offset, (asked >> 32) as u16).is_some()
    {
        maps.count(Counter::MssClamped);
    }
    Outcome::Send(asked as u32)
}

/// Clamps a SYN that was put together anew, to what the link that its client is behind takes: this one did not come in by
/// it.
#[inline(always)]
pub(super) fn narrow<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M, config: &Config, mtu: u16) {
    let headers = (F::HEADER + TcpHdr::LEN) as u16;
    if mtu > headers && lower(packet, config, EthHdr::LEN + F::HEADER, mtu - headers).is_some() {
        maps.count(Counter::MssClamped);
    }
}

/// Lowers what the segment says to `most`, and its checksum with it; `None` where there is nothing to lower.
#[inline(always)]
fn lower<P: PacketMut>(packet: &mut P, config: &Config, transport: usize, most: u16) -> Option<()> {
    const CHECK: usize = offset_of!(TcpHdr, check);
    // Two bytes: of one, the verifier does not take the proof that it is there.
    let [data_offset, _] = packet.read::<[u8; 2], REST>(transport)?;
    let transport = config.forget(transport as u32);
    let end = transport + (data_offset >> 4) as u32 * 4;
    let place = find(packet, config, transport + TcpHdr::LEN as u32, end);
    if place == NOT_FOUND {
        return None;
    }
    let old: u16 = packet.read::<_, 2>(place as usize)?;
    if u16::from_be(old) <= most {
        return None;
    }
    let new = most.to_be();
    packet.write::<u16, 2>(place as usize, new)?;
    // A word that begins at an odd byte is summed with its bytes exchanged (RFC 1071, §2 B).
    let is_odd = (place - transport) & 1 != 0;
    let (old, new) = if is_odd { (old.swap_bytes(), new.swap_bytes()) } else { (old, new) };
    let check: u16 = packet.read::<_, CHECK>(transport as usize)?;
    packet.write::<u16, CHECK>(transport as usize, Sum::ZERO.sub16(old).add16(new).apply(check))
}

/// No offset of an option.
const NOT_FOUND: u32 = 0;

/// Offset of the option among those from `place` to `end`. A call that gives one number: the verifier follows the loop
/// once.
#[inline(never)]
fn find<P: PacketMut>(packet: &P, config: &Config, place: u32, end: u32) -> u32 {
    let mut place = place;
    let mut step = 0_u64;
    while step < MOST_OPTIONS {
        step += 1;
        place = config.forget(place);
        if place + OPTION[1] as u32 > end {
            return NOT_FOUND;
        }
        // In a loop LLVM would take the two bytes from the end instead, as `read_far` explains.
        let Some([kind, length]) = packet.read_far::<[u8; 2]>(place as usize) else { return NOT_FOUND };
        if [kind, length] == OPTION {
            return place;
        }
        if kind == END || kind != NOTHING && length < 2 {
            return NOT_FOUND;
        }
        place += if kind == NOTHING { 1 } else { length as u32 };
    }
    NOT_FOUND
}
