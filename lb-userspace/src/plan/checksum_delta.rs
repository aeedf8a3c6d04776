//! What the rewriting of a packet adds to its checksums, computed once for each member.
//!
//! One's complement sums are the same in either byte order (RFC 1071, §2 B), so the words are summed as the
//! packet program loads them from memory, in host order of the raw 16-bit words.

use std::net::IpAddr;

use crate::desired::{BackendId, ServiceId};

/// What turning the VIP and the service's port into the backend's address and port adds to the one's
/// complement sum under a TCP or UDP checksum (RFC 1624, equation 3, without the checksum itself).
#[must_use]
pub fn l4_delta(service: &ServiceId, backend: &BackendId) -> u16 {
    let old = address_sum(service.vip) + word(service.port.to_be_bytes());
    let new = address_sum(backend.address) + word(backend.port.to_be_bytes());
    delta(old, new)
}

/// As [`l4_delta`] for the IPv4 header: the addresses alone. 0 for IPv6, whose header has no checksum.
#[must_use]
pub fn l3_delta(service: &ServiceId, backend: &BackendId) -> u16 {
    if service.vip.is_ipv6() {
        return 0;
    }
    delta(address_sum(service.vip), address_sum(backend.address))
}

/// new − old in one's complement arithmetic.
fn delta(old: u32, new: u32) -> u16 {
    fold(u32::from(!fold(old)) + new)
}

fn address_sum(address: IpAddr) -> u32 {
    let sum = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|pair| word(*pair)).sum();
    match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    }
}

fn word(bytes: [u8; 2]) -> u32 {
    u32::from(u16::from_ne_bytes(bytes))
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::desired::Protocol;

    /// The Internet checksum over bytes, in host order of the raw words.
    fn checksum(bytes: &[u8]) -> u16 {
        !fold(bytes.as_chunks().0.iter().map(|pair| word(*pair)).sum())
    }

    /// RFC 1624, equation 3, with a precomputed delta.
    fn update(checksum: u16, delta: u16) -> u16 {
        !fold(u32::from(!checksum) + u32::from(delta))
    }

    /// The bytes that both checksums cover: source, destination, ports, payload.
    fn bytes(destination: IpAddr, port: u16, rest: &[u8]) -> Vec<u8> {
        let mut bytes = match destination {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        bytes.extend(port.to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    /// 0x0000 and 0xffff are the same number in one's complement.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    fn check(vip: IpAddr, address: IpAddr, ports: (u16, u16), rest: &[u8]) -> Result<(), TestCaseError> {
        let service = ServiceId { vip, port: ports.0, protocol: Protocol::Tcp };
        let backend = BackendId { protocol: Protocol::Tcp, address, port: ports.1 };
        let before = bytes(vip, ports.0, rest);
        let after = bytes(address, ports.1, rest);
        let l4 = l4_delta(&service, &backend);
        prop_assert!(same(update(checksum(&before), l4), checksum(&after)));
        prop_assert!(same(update(checksum(&after), !l4), checksum(&before)), "the complement undoes it");
        let l3 = l3_delta(&service, &backend);
        if vip.is_ipv4() {
            let header = |address| checksum(&bytes(address, 0, rest));
            prop_assert!(same(update(header(vip), l3), header(address)));
        } else {
            prop_assert_eq!(l3, 0);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn deltas_equal_full_recomputation_for_ipv4(
            vip: [u8; 4], address: [u8; 4], ports: (u16, u16), rest in prop::collection::vec(any::<u8>(), 20),
        ) {
            check(vip.into(), address.into(), ports, &rest)?;
        }

        #[test]
        fn deltas_equal_full_recomputation_for_ipv6(
            vip: [u8; 16], address: [u8; 16], ports: (u16, u16), rest in prop::collection::vec(any::<u8>(), 20),
        ) {
            check(vip.into(), address.into(), ports, &rest)?;
        }
    }
}
