//! The kernel's tries of source ranges beside the host's list of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    abi::{SourceV4, SourceV6, TCP},
    datapath::Maps as _,
    host::{Gateway, GatewayConfig},
};
use tests::kernel_run::KernelProgram;

use crate::{history::Random, in_namespace, session::load};

/// Services, each with so many ranges.
const SERVICES: u32 = 3;
const RANGES: usize = 1000;
/// Addresses that are looked up for each service and family.
const LOOKUPS: usize = 300;

/// A range among few others or many: their lengths are spread, and their first bits often the same.
fn range(random: &mut Random, v4: bool) -> (IpAddr, u8) {
    let address = address(random, v4);
    let most = if v4 { 32 } else { 128 };
    let any = random.below(most + 1);
    let length = random.one_of([most, most - 1, most * 3 / 4, most / 2, any]);
    let kept =
        |bits: u128, width: usize| if length == 0 { 0 } else { bits >> (width - length) << (width - length) };
    let network = match address {
        IpAddr::V4(address) => Ipv4Addr::from(kept(u32::from(address).into(), 32) as u32).into(),
        IpAddr::V6(address) => Ipv6Addr::from(kept(u128::from(address), 128)).into(),
    };
    (network, length as u8)
}

fn address(random: &mut Random, v4: bool) -> IpAddr {
    let noise = u128::from(random.next()) << 64 | u128::from(random.next());
    let noise = noise >> random.below(96);
    if v4 {
        Ipv4Addr::from(0x0a00_0000 ^ noise as u32 & 0x1fff_ffff).into()
    } else {
        Ipv6Addr::from((0x2001_0db8_u128 << 96) ^ noise).into()
    }
}

/// Looks addresses up in both, also such as are just within a range or just beside it. Returns how many were found.
fn compare(kernel: &KernelProgram, gateway: &Gateway, random: &mut Random, ranges: &[(IpAddr, u8)]) -> usize {
    let host = gateway.maps.cpu(0);
    let mut found = 0;
    for service in 0..SERVICES + 1 {
        for n in 0..2 * LOOKUPS {
            let address = match (n % 3, ranges.is_empty()) {
                (0, _) | (_, true) => address(random, n % 2 == 0),
                _ => {
                    let range = ranges[random.below(ranges.len())];
                    beside(random, range)
                }
            };
            let service = service.to_be_bytes();
            let (ours, theirs) = match address {
                IpAddr::V4(address) => {
                    let key = SourceV4 { service, address: address.octets() };
                    (host.source_v4(&key), kernel.is_source_v4(key).expect("readable"))
                }
                IpAddr::V6(address) => {
                    let key = SourceV6 { service, address: address.octets() };
                    (host.source_v6(&key), kernel.is_source_v6(key).expect("readable"))
                }
            };
            assert_eq!(ours, theirs, "{address} of service {service:?}");
            found += usize::from(ours);
        }
    }
    found
}

/// An address whose first bits are a range's, all or all but one.
fn beside(random: &mut Random, (network, length): (IpAddr, u8)) -> IpAddr {
    let flip = if length > 0 && random.chance(50) { Some(u32::from(length) - 1) } else { None };
    match network {
        IpAddr::V4(network) => {
            let bit = flip.map_or(0, |bit| 1 << (31 - bit));
            let host = (random.next() as u32).checked_shr(length.into()).unwrap_or(0);
            Ipv4Addr::from(u32::from(network) ^ bit | host).into()
        }
        IpAddr::V6(network) => {
            let bit = flip.map_or(0, |bit| 1 << (127 - bit));
            let noise = u128::from(random.next()) << 64 | u128::from(random.next());
            Ipv6Addr::from(u128::from(network) ^ bit | noise.checked_shr(length.into()).unwrap_or(0)).into()
        }
    }
}

#[test]
fn a_thousand_ranges_a_service_let_in_whom_a_list_of_them_lets_in() {
    in_namespace(|_| {
        let mut kernel = load();
        let mut gateway = Gateway::new(&GatewayConfig::default(), 1);
        for port in 0..SERVICES + 1 {
            gateway.add_empty_service((Ipv4Addr::new(203, 0, 113, 1), 80 + port as u16).into(), TCP);
        }
        let mut random = Random::new(7);
        let mut all: Vec<Vec<(IpAddr, u8)>> = (0..SERVICES)
            .map(|_| (0..2 * RANGES).map(|n| range(&mut random, n % 2 == 0)).collect())
            .collect();
        // Then half of them go, and half of what is left; then come others.
        for left in [2 * RANGES, RANGES, RANGES / 2, 0, 2 * RANGES] {
            for (service, ranges) in (0..).zip(&mut all) {
                while ranges.len() > left {
                    ranges.swap_remove(random.below(ranges.len()));
                }
                while ranges.len() < left {
                    ranges.push(range(&mut random, ranges.len() % 2 == 0));
                }
                gateway.set_source_ranges(service, Some(ranges));
            }
            kernel.mirror_sources(&gateway.maps).expect("the tries have room");
            let near: Vec<_> = all.iter().flatten().copied().collect();
            let found = compare(&kernel, &gateway, &mut random, &near);
            let lookups = (SERVICES as usize + 1) * 2 * LOOKUPS;
            assert_eq!(found == 0, left == 0, "{found} of {lookups}");
            assert!(found < lookups, "some are in none");
        }
    });
}
