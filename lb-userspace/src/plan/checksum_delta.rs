//! What the rewriting of a packet adds to its checksums, computed once for each member.
//!
//! One's complement sums are the same in either byte order (RFC 1071, §2 B), so the words are summed as the
//! packet program loads them from memory, in host order of the raw 16-bit words.

use std::net::IpAddr;

use lb_common::datapath::checksum::Sum;

use crate::desired::{BackendId, ServiceId};

/// What turning the VIP and the service's port into the backend's address and port adds to the one's
/// complement sum under a TCP or UDP checksum (RFC 1624, equation 3, without the checksum itself).
#[must_use]
pub fn l4_delta(service: &ServiceId, backend: &BackendId) -> u16 {
    addresses(service.vip, backend.address)
        .sub16(u16::from_ne_bytes(service.port.to_be_bytes()))
        .add16(u16::from_ne_bytes(backend.port.to_be_bytes()))
        .fold()
}

/// As [`l4_delta`] for the IPv4 header: the addresses alone. 0 for IPv6, whose header has no checksum.
#[must_use]
pub fn l3_delta(service: &ServiceId, backend: &BackendId) -> u16 {
    if service.vip.is_ipv6() { 0 } else { addresses(service.vip, backend.address).fold() }
}

/// The sum of the new address less that of the old.
fn addresses(old: IpAddr, new: IpAddr) -> Sum {
    let sum = words(old).fold(Sum::ZERO, Sum::sub16);
    words(new).fold(sum, Sum::add16)
}

/// The raw 16-bit words of an address.
fn words(address: IpAddr) -> impl Iterator<Item = u16> {
    let (bytes, length) = match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            (bytes, 2)
        }
        IpAddr::V6(v6) => (v6.octets(), 8),
    };
    let words: [[u8; 2]; 8] = bytemuck::cast(bytes);
    words.into_iter().take(length).map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::desired::Protocol;

    /// The Internet checksum over bytes, in host order of the raw words.
    fn checksum(bytes: &[u8]) -> u16 {
        !fold(bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum())
    }

    fn fold(mut sum: u32) -> u16 {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
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
