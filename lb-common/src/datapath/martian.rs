//! Where no client can be: packets that are broken on purpose, or have lost their way.

use super::{Family, Maps, parse::Ip};
use crate::abi::{Config, address_filter, vip_flags};

/// Whether a packet's source is one that nobody can answer (RFC 1812, §5.3.7; RFC 4291, §2.5, §2.7), or that the
/// answer would come back from: its own destination, or another VIP. A VIP that is the node's own address is the
/// node, which may be a client.
#[inline(always)]
pub(super) fn is_martian<F: Family, M: Maps>(maps: &M, config: &Config, ip: &Ip<F>) -> bool {
    if !F::is_host(ip.source) || ip.source == ip.destination {
        return true;
    }
    if maps.address_filter(F::filter_index(ip.source)) & address_filter::VIP == 0 {
        return false;
    }
    // One word: an option's content, where it has none, would be whatever is in its register.
    let flags = config.forget(F::vip(maps, ip.source).unwrap_or(vip_flags::NODE_ADDRESS));
    flags & vip_flags::NODE_ADDRESS == 0
}
