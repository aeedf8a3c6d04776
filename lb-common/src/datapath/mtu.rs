//! Packets that are longer than the link that they are to leave by takes.

use super::{Cells, Family, Maps, PacketMut, parse::Ip};

/// Whether a packet fits a link of this MTU; 0: nobody knows it, and everything fits. For a whole one that doesn't, the
/// MTU is left where [`super::refuse`] finds it. A fragment's sender is not told, and no offload makes fragments: for
/// them the frame's length says it.
///
/// What is forwarded pays one comparison, of the frame's length.
#[inline(always)]
pub(super) fn fits<F: Family, P: PacketMut, M: Maps, const WHOLE: bool>(
    packet: &P,
    maps: &M,
    ip: &Ip<F>,
    mtu: u16,
) -> bool {
    packet.len() <= largest(mtu) + ip.network_offset || WHOLE && fits_after_all(packet, maps, ip, mtu)
}

/// Bytes of the longest packet for an MTU.
#[inline(always)]
const fn largest(mtu: u16) -> usize {
    // 0 becomes more than any packet has.
    mtu.wrapping_sub(1) as usize + 1
}

/// Looks closer at a long frame: it may be padded. And what is longer than the MTU of the interface that it came in
/// by has never been on a wire: an offload put it together, and one will take it apart again.
#[inline(always)]
fn fits_after_all<F: Family, P: PacketMut, M: Maps>(packet: &P, maps: &M, ip: &Ip<F>, mtu: u16) -> bool {
    let Some(total) = F::total_length(packet, ip.network_offset) else { return false };
    if total <= mtu as u32 || total > largest(packet.ingress_mtu()) as u32 {
        return true;
    }
    if let Some(cells) = maps.refusals() {
        cells.store(1, mtu as u64);
    }
    false
}

/// The smaller of two MTUs, of which either may be 0: unknown.
#[inline(always)]
pub(super) const fn smaller(one: u16, other: u16) -> u16 {
    let (one, other) = (one.wrapping_sub(1), other.wrapping_sub(1));
    if one < other { one.wrapping_add(1) } else { other.wrapping_add(1) }
}

#[cfg(test)]
mod tests {
    use super::{largest, smaller};

    #[test]
    fn an_unknown_mtu_is_larger_than_any_other() {
        assert_eq!([smaller(0, 1400), smaller(1400, 0), smaller(0, 0)], [1400, 1400, 0]);
        assert_eq!([smaller(1500, 1400), smaller(1400, 65535), smaller(0, 65535)], [1400, 1400, 65535]);
        assert_eq!([largest(0), largest(1), largest(1500), largest(65535)], [65536, 1, 1500, 65535]);
    }
}
