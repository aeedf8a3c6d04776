//! Copies of SYNs: kept when a flow is made, and put together again when its backend refuses.

use core::{hint::black_box, mem::offset_of};

use network_types::{eth::EthHdr, tcp::TcpHdr};

use super::{
    Cells, Family, Maps, PacketMut,
    checksum::Sum,
    flow_table,
    flow_table::Slot,
    parse,
    parse::{Ip, Shape},
    rescue,
};
use crate::{
    abi::{Config, FlowState, SynWord, TCP},
    hash::FlowHash,
};

pub(super) const SEQUENCE: usize = offset_of!(TcpHdr, seq);
/// Data offset and flags, window, checksum, urgent pointer.
pub(super) const REST: usize = 12;
/// TCP options: up to 40 bytes in five words.
const OPTIONS: usize = TcpHdr::LEN;

/// Sequence number of a segment, host order.
#[inline(always)]
pub(super) fn sequence<P: PacketMut>(packet: &P, transport_offset: usize) -> Option<u32> {
    Some(u32::from_be(packet.read::<u32, SEQUENCE>(transport_offset)?))
}

/// Whether a segment carries data.
#[inline(always)]
pub(super) fn has_data<F: Family, P: PacketMut>(packet: &P, ip: &Ip<F>) -> bool {
    let Some(total) = F::total_length(packet, ip.network_offset) else { return true };
    let Some(data_offset) = packet.read::<u8, REST>(ip.transport_offset) else { return true };
    let headers = (ip.transport_offset - ip.network_offset) as u32 + (data_offset >> 4) as u32 * 4;
    total != headers
}

/// Hops that a SYN must have left. Whoever answers it is a few hops away; clients begin with 64 or more (RFC 1700),
/// and no path takes that many of them.
const FEWEST_HOPS: u8 = 16;

/// Whether a backend that is well would answer a SYN. One that arrives broken, or that a router drops on the way, is
/// no evidence against any backend; a client must not be able to make evidence.
#[inline(always)]
fn is_evidence<F: Family, P: PacketMut>(packet: &P, ip: &Ip<F>) -> bool {
    // All of it must be there: of a packet whose rest never comes the backend hears nothing.
    let plain = ip.shape == Shape::Whole && ip.transport_offset - ip.network_offset == F::HEADER;
    plain && ip.ttl >= FEWEST_HOPS && !has_data(packet, ip) && is_intact(packet, ip).unwrap_or(false)
}

/// Whether the checksums of a SYN without data are right (RFC 1071, §1: the sum over all is −0).
#[inline(always)]
fn is_intact<F: Family, P: PacketMut>(packet: &P, ip: &Ip<F>) -> Option<bool> {
    let place = ip.transport_offset;
    let header: [u32; 5] = packet.read::<_, 0>(place)?;
    let length = ((u32::from_be(header[3]) >> 28) * 4) as u16;
    let mut sum = F::add(F::add(Sum::ZERO, ip.source), ip.destination);
    sum = sum.add16(length.to_be()).add16(u16::from_ne_bytes([0, TCP]));
    for word in header {
        sum = sum.add32(word);
    }
    // The frame may be padded: what lies behind the header does not count.
    let options = length.checked_sub(TcpHdr::LEN as u16)?;
    sum = sum.add64(covered::<P, OPTIONS>(packet, place, options));
    sum = sum.add64(covered::<P, { OPTIONS + 8 }>(packet, place, options));
    sum = sum.add64(covered::<P, { OPTIONS + 16 }>(packet, place, options));
    sum = sum.add64(covered::<P, { OPTIONS + 24 }>(packet, place, options));
    sum = sum.add64(covered::<P, { OPTIONS + 32 }>(packet, place, options));
    Some(sum.fold() == !0 && F::is_header_intact(packet, ip.network_offset)?)
}

/// Eight bytes of the frame, as far as they are among so many bytes of options.
#[inline(always)]
fn covered<P: PacketMut, const OFFSET: usize>(packet: &P, place: usize, options: u16) -> u64 {
    let left = options.saturating_sub((OFFSET - OPTIONS) as u16);
    if left >= 8 {
        option::<P, OFFSET>(packet, place)
    } else if left >= 4 {
        packet.read::<u32, OFFSET>(place).unwrap_or(0) as u64
    } else {
        0
    }
}

/// Lets the new flow of a SYN go to another backend, if its backend's silence would be evidence, and keeps a copy of
/// the SYN for a refusal. Until then the flow counts as one that nobody rescues.
#[inline(always)]
pub(super) fn admit<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    hash: FlowHash,
    slot: &Slot<M::Cells>,
    service: u32,
) {
    // Whatever has happened to the flow meanwhile, it stays so.
    let is_new =
        slot.word.state() as u8 == FlowState::SynSent as u8 && slot.word.attempt() == rescue::NO_RESCUE;
    if !is_new || !is_evidence(packet, ip) {
        return;
    }
    if rescue::reaction(maps, service).retries_on_reset() {
        let _ = keep(packet, maps, config, ip, hash);
    }
    let word = slot.word.with_attempt(0);
    slot.cells.compare_exchange(flow_table::word_cell(slot.way), slot.word.0, word.0);
}

/// The element for a new copy: of the two that are the flow's, the one with the older copy.
#[inline(always)]
fn older_of_two<M: Maps>(maps: &M, first: u32, now: u64) -> Option<M::Cells> {
    let cells = maps.syn(first)?;
    // A table may have but one.
    let Some(neighbour) = maps.syn(first ^ 1) else { return Some(cells) };
    let age = |cells: M::Cells| SynWord(cells.load(0)).age(now);
    Some(if age(neighbour) > age(cells) { neighbour } else { cells })
}

/// Keeps a copy of a flow's SYN, unless it is an unusual one, or another CPU writes to the same element.
#[inline(always)]
fn keep<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    hash: FlowHash,
) -> Option<()> {
    let now = maps.now();
    let cells = older_of_two(maps, hash.syn_copy(config.flow_bucket_mask), now)?;
    let old = SynWord(cells.load(0));
    let place = ip.transport_offset;
    let [sequence, acknowledgement] = packet.read::<[u32; 2], SEQUENCE>(place)?;
    let [flags, window, check, urgent] = packet.read::<[u16; 4], REST>(place)?;
    let network = F::network_fields(packet, ip.network_offset)?;
    if old.is_claimed() || place - ip.network_offset != F::HEADER || acknowledgement != 0 || urgent != 0 {
        return None;
    }
    let claimed = SynWord::claimed(hash.tag(), now);
    if !cells.replace(0, old.0, claimed.0) {
        return None;
    }
    cells.store(1, sequence as u64 | (flags as u64) << 32 | (window as u64) << 48);
    cells.store(2, check as u64 | network << 16);
    cells.store(3, option::<P, OPTIONS>(packet, place));
    cells.store(4, option::<P, { OPTIONS + 8 }>(packet, place));
    cells.store(5, option::<P, { OPTIONS + 16 }>(packet, place));
    cells.store(6, option::<P, { OPTIONS + 24 }>(packet, place));
    cells.store(7, option::<P, { OPTIONS + 32 }>(packet, place));
    let header_words = flags.to_be() as u32 >> 12;
    cells.compare_exchange(0, claimed.0, claimed.complete(header_words as u8).0);
    Some(())
}

/// Eight bytes of the frame, or the last four, or none.
#[inline(always)]
fn option<P: PacketMut, const OFFSET: usize>(packet: &P, place: usize) -> u64 {
    match packet.read::<u64, OFFSET>(place) {
        Some(word) => word,
        None => packet.read::<u32, OFFSET>(place).unwrap_or(0) as u64,
    }
}

/// The two ends of a flow as its client knows them, raw.
#[derive(Clone, Copy)]
pub(super) struct Ends<F: Family> {
    pub client: F::Address,
    pub client_port: u16,
    pub vip: F::Address,
    pub vip_port: u16,
}

/// A copy of a SYN, as far as it has been read.
struct Found<C> {
    cells: C,
    word: SynWord,
    /// Cell 1: the sequence number, and more.
    numbers: u64,
}

/// The copy of a flow's SYN that this number acknowledges. One of an earlier flow of the same key may be left.
#[inline(always)]
fn copy_of<M: Maps>(maps: &M, config: &Config, hash: FlowHash, acknowledged: u32) -> Option<Found<M::Cells>> {
    let first = hash.syn_copy(config.flow_bucket_mask);
    let read = |index| {
        let cells = maps.syn(index)?;
        let (word, numbers) = (SynWord(cells.load(0)), cells.load(1));
        let is_it = word.is_of(hash.tag()) && u32::from_be(numbers as u32).wrapping_add(1) == acknowledged;
        is_it.then_some(Found { cells, word, numbers })
    };
    read(first).or_else(|| read(first ^ 1))
}

/// Makes the frame the SYN that the flow began with, untagged and with no MAC addresses. `acknowledged` is what
/// the RST in the frame acknowledges, host order: the copy's sequence number + 1, if it is the answer to that SYN.
/// `None` where no copy is left, or the frame has no room; it must then be dropped.
#[inline(always)]
pub(super) fn rebuild<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    hash: FlowHash,
    ends: &Ends<F>,
    acknowledged: u32,
) -> Option<()> {
    let Found { cells, word, numbers } = copy_of(maps, config, hash, acknowledged)?;
    let rest = cells.load(2);
    let options = [cells.load(3), cells.load(4), cells.load(5), cells.load(6), cells.load(7)];
    // An exchange sees the latest word: where it is the same, nobody has begun to write meanwhile.
    if !cells.replace(0, word.0, word.0) {
        return None;
    }
    let segment = word.header_words() * 4;
    let length = (EthHdr::LEN + F::HEADER) as u32 + segment;
    // The compiler would subtract halves of two pointers, which the verifier does not allow.
    let before = black_box(packet.len());
    if !packet.adjust_head(before as i32 - length as i32) {
        return None;
    }
    packet.write::<[u32; 3], 0>(0, [0; 3])?;
    packet.write::<u16, { offset_of!(EthHdr, ether_type) }>(0, parse::ethertype(F::NETWORK))?;
    F::write_new_header(packet, EthHdr::LEN, rest >> 16, TCP, ends.client, ends.vip, segment as u16)?;
    let place = EthHdr::LEN + F::HEADER;
    packet.write::<[u16; 2], 0>(place, [ends.client_port, ends.vip_port])?;
    packet.write::<[u32; 2], SEQUENCE>(place, [numbers as u32, 0])?;
    packet
        .write::<[u16; 4], REST>(place, [(numbers >> 32) as u16, (numbers >> 48) as u16, rest as u16, 0])?;
    // The frame ends where the options do.
    write_option::<P, OPTIONS>(packet, place, options[0]);
    write_option::<P, { OPTIONS + 8 }>(packet, place, options[1]);
    write_option::<P, { OPTIONS + 16 }>(packet, place, options[2]);
    write_option::<P, { OPTIONS + 24 }>(packet, place, options[3]);
    write_option::<P, { OPTIONS + 32 }>(packet, place, options[4]);
    Some(())
}

#[inline(always)]
fn write_option<P: PacketMut, const OFFSET: usize>(packet: &mut P, place: usize, word: u64) {
    if packet.write::<u64, OFFSET>(place, word).is_none() {
        let _ = packet.write::<u32, OFFSET>(place, word as u32);
    }
}
