//! Which pod has which address: the n-th of the cluster's IPv4 and the n-th of its IPv6 prefix.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::topology::Dual;

/// The addresses of a cluster's pods. The first and the last of a prefix are nobody's.
#[derive(Debug)]
pub(super) struct Pool {
    v4: Ipv4Net,
    v6: Ipv6Net,
    size: u32,
    used: BTreeSet<u32>,
    last: u32,
}

impl Pool {
    /// # Errors
    /// Without exactly one prefix of each family with room for a pod.
    pub(super) fn new(cidrs: &[IpNet]) -> Result<Pool> {
        let (v4, v6) = match cidrs {
            [IpNet::V4(v4), IpNet::V6(v6)] | [IpNet::V6(v6), IpNet::V4(v4)] => (v4.trunc(), v6.trunc()),
            _ => anyhow::bail!("give --pod-cidr twice: one IPv4 and one IPv6 prefix"),
        };
        let bits = (32 - v4.prefix_len()).min(128 - v6.prefix_len()).min(24);
        ensure!(bits >= 2, "{v4} and {v6} have no room for pods: use prefixes with at least 4 addresses");
        Ok(Pool { v4, v6, size: 1 << bits, used: BTreeSet::new(), last: 0 })
    }

    /// The addresses that `wanted` names, where they are free, or the next free ones: an address that was
    /// given back is used again as late as possible.
    ///
    /// # Errors
    /// When none is free.
    pub(super) fn take(&mut self, wanted: Option<IpAddr>) -> Result<Dual> {
        let wanted = wanted.and_then(|ip| self.number(ip)).filter(|number| !self.used.contains(number));
        let usable = self.size - 2;
        let next = || (0..usable).map(|n| (self.last + n) % usable + 1).find(|n| !self.used.contains(n));
        let number = wanted
            .or_else(next)
            .with_context(|| format!("all {usable} addresses of {} are in use by pods", self.v4))?;
        if wanted.is_none() {
            self.last = number;
        }
        self.used.insert(number);
        Ok(Dual {
            v4: Ipv4Addr::from_bits(self.v4.network().to_bits() + number),
            v6: Ipv6Addr::from_bits(self.v6.network().to_bits() + u128::from(number)),
        })
    }

    /// Gives addresses back.
    pub(super) fn give_back(&mut self, addresses: Dual) {
        if let Some(number) = self.number(addresses.v4.into()) {
            self.used.remove(&number);
        }
    }

    /// The number of an address within its prefix, where it is one that pods get.
    fn number(&self, ip: IpAddr) -> Option<u32> {
        let number = match ip {
            IpAddr::V4(ip) if self.v4.contains(&ip) => ip.to_bits() - self.v4.network().to_bits(),
            IpAddr::V6(ip) if self.v6.contains(&ip) => {
                u32::try_from(ip.to_bits() - self.v6.network().to_bits()).ok()?
            }
            _ => return None,
        };
        (1..self.size - 1).contains(&number).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new(&["10.0.8.0/29".parse().unwrap(), "fd00:10::/64".parse().unwrap()]).unwrap()
    }

    #[test]
    fn each_pod_has_the_same_number_in_both_families_and_its_own() {
        let mut pool = pool();
        let all: Vec<Dual> = (0..6).map(|_| pool.take(None).unwrap()).collect();
        assert_eq!((all[0].v4.to_string(), all[0].v6.to_string()), ("10.0.8.1".into(), "fd00:10::1".into()));
        assert_eq!((all[5].v4.to_string(), all[5].v6.to_string()), ("10.0.8.6".into(), "fd00:10::6".into()));
        let full = pool.take(None).unwrap_err().to_string();
        assert!(full.contains("all 6 addresses of 10.0.8.0/29"), "{full}");
    }

    #[test]
    fn an_address_given_back_is_used_again_as_late_as_possible() {
        let mut pool = pool();
        let first = pool.take(None).unwrap();
        pool.give_back(first);
        let following: Vec<Dual> = (0..6).map(|_| pool.take(None).unwrap()).collect();
        assert_eq!(following[5], first);
    }

    #[test]
    fn a_pod_keeps_the_address_it_had_where_nobody_else_has_it() {
        let mut pool = pool();
        let wanted: IpAddr = "10.0.8.5".parse().unwrap();
        let kept = pool.take(Some(wanted)).unwrap();
        assert_eq!(kept.v4, wanted);
        assert_ne!(pool.take(Some(wanted)).unwrap().v4, wanted);
        assert_eq!(pool.take(Some("10.9.9.9".parse().unwrap())).unwrap().v4.to_string(), "10.0.8.2");
        pool.give_back(kept);
        assert_eq!(pool.take(Some(kept.v6.into())).unwrap(), kept);
    }

    #[test]
    fn a_pool_needs_both_families() {
        assert!(Pool::new(&["10.0.0.0/16".parse().unwrap()]).is_err());
        assert!(Pool::new(&["10.0.0.0/31".parse().unwrap(), "fd00::/64".parse().unwrap()]).is_err());
    }
}
