//! Where no client can be: packets that are broken on purpose, or have lost their way.

use super::{Family, Maps, parse::Ip};
use crate::abi::{address_filter, vip_flags};

/// Whether a packet's source is one that nobody can answer (RFC 1812, §5.3.7; RFC 4291, §2.5, §2.7), or that the
/// answer would come back from: its own destination, or another VIP. A VIP that is the node's own address is the
/// node, which may be a client.
#[inline(always)]
pub(super) fn is_martian<F: Family, M: Maps>(maps: &M, ip: &Ip<F>) -> bool {
    if !F::is_host(ip.source) || ip.source == ip.destination {
        return true;
    }
    maps.address_filter(F::filter_index(ip.source)) & address_filter::VIP != 0
        && F::vip(maps, ip.source).is_some_and(|flags| flags & vip_flags::NODE_ADDRESS == 0)
}
