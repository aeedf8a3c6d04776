//! The gateway's settings, as they go into the map `CONFIG`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{Config, MAX_SNAT_ADDRESSES, PORT_BITMAP_WORDS, Timeouts};
use lb_common::hash::{HashKey, finish};
use rand::RngExt;

use super::layout::TableSizes;

/// What the packet program is told beside its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the cluster set: gateways that share it share the ring's key, so that each sends a client to
    /// the same backend.
    pub cluster_set_id: String,
    /// SNAT addresses of both families, at most 8 of each and no more than [`TableSizes::snat_count`].
    pub snat_addresses: Vec<IpAddr>,
    /// First SNAT port.
    pub port_base: u16,
    /// SNAT ports: a multiple of 64 from 64 to 16,384, counted from `port_base`.
    pub port_count: u16,
    /// How long idle flows live.
    pub timeouts: Timeouts,
    /// Events that one CPU may send within one tick of about 268 ms.
    pub events_per_tick: u32,
    /// And when one for the flow log is among them.
    pub flow_events_per_tick: u32,
    /// Answers to dropped packets that one CPU may send within one tick; 0: none.
    pub refusals_per_tick: u32,
}

/// Settings that can't be, or that the flows in the tables can't survive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The port range is no multiple of 64, or too large, or runs beyond 65535.
    #[error(
        "SNAT ports {base}–{}: a range holds 64 to 16384 ports, a multiple of 64, and ends by 65535",
        u32::from(*.base) + u32::from(*.count) - u32::from(*.count > 0)
    )]
    Ports {
        /// First port.
        base: u16,
        /// Ports.
        count: u16,
    },
    /// More SNAT addresses of a family than the tables were made for.
    #[error(
        "{count} SNAT addresses of one family, but the tables hold {most}: raise the table size snatCount"
    )]
    TooManyAddresses {
        /// How many.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// Flows in the adopted tables hold ports of another range.
    #[error(
        "the tables found hold flows with SNAT ports {found}, but the settings say {wanted}: set the old range, \
         or end these flows with `kanmon cleanup`"
    )]
    PortsChanged {
        /// The range in the tables.
        found: PortRange,
        /// The range wanted.
        wanted: PortRange,
    },
    /// Flows in the adopted tables use an address that is no longer listed.
    #[error(
        "the tables found hold flows with the SNAT address {0}, which the settings no longer list: list it, or \
         end these flows with `kanmon cleanup`"
    )]
    AddressRemoved(IpAddr),
}

/// A range of ports, both ends included, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u32,
    last: u32,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}–{}", self.first, self.last)
    }
}

impl PortRange {
    fn new(base: u16, words: u16) -> Self {
        let first = u32::from(base);
        Self { first, last: (first + u32::from(words) * 64).saturating_sub(1) }
    }
}

/// The ring's key of a cluster set: FNV-1a (64 bits) of the name, expanded like SplitMix64 by
/// [`finish`] over multiples of the golden ratio. A fixed function, because all gateways must agree on it;
/// it spreads clients, it hides nothing.
#[must_use]
pub fn ring_key(cluster_set_id: &str) -> HashKey {
    let seed = cluster_set_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut words = [0; 16];
    for (index, pair) in (1u64..).zip(words.chunks_exact_mut(2)) {
        let bits = finish(seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        pair.copy_from_slice(&[bits as u32, (bits >> 32) as u32]);
    }
    HashKey { words }
}

/// A new random key for the flow table. Never all zero, which stands for a map without settings.
pub(super) fn random_flow_key() -> HashKey {
    let mut words: [u32; 16] = rand::rng().random();
    words[0] |= 1;
    HashKey { words }
}

impl Settings {
    /// The settings as the packet program reads them. `before` is what the map holds: its flow key is kept,
    /// and so is every SNAT address's number, because live flows carry it.
    pub(super) fn encode(&self, before: &Config, sizes: &TableSizes) -> Result<Config, SettingsError> {
        let words = self.port_count / 64;
        let ends_at = u32::from(self.port_base) + u32::from(self.port_count);
        if !self.port_count.is_multiple_of(64)
            || !(1..=PORT_BITMAP_WORDS).contains(&usize::from(words))
            || ends_at > 1 << 16
            || self.port_base == 0
        {
            return Err(SettingsError::Ports { base: self.port_base, count: self.port_count });
        }
        let had_settings = before.port_words != 0;
        if had_settings && (before.port_base, before.port_words) != (self.port_base, words) {
            return Err(SettingsError::PortsChanged {
                found: PortRange::new(before.port_base, before.port_words),
                wanted: PortRange::new(self.port_base, words),
            });
        }
        let most = MAX_SNAT_ADDRESSES.min(sizes.snat_count as usize);
        let known_v4 = known(&before.snat_v4, before.snat_v4_count).map(Ipv4Addr::from).collect();
        let known_v6 = known(&before.snat_v6, before.snat_v6_count).map(Ipv6Addr::from).collect();
        let wanted_v4 = self.snat_addresses.iter().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let wanted_v6 = self.snat_addresses.iter().filter_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        let v4 = numbered(known_v4, wanted_v4.collect(), most)?;
        let v6 = numbered(known_v6, wanted_v6.collect(), most)?;
        let mut config: Config = bytemuck::Zeroable::zeroed();
        config.flow_key = before.flow_key;
        config.ring_key = ring_key(&self.cluster_set_id);
        for (slot, address) in config.snat_v4.iter_mut().zip(&v4) {
            *slot = address.octets();
        }
        for (slot, address) in config.snat_v6.iter_mut().zip(&v6) {
            *slot = address.octets();
        }
        config.snat_v4_count = v4.len() as u32;
        config.snat_v6_count = v6.len() as u32;
        config.snat_stride = sizes.snat_count;
        config.flow_bucket_mask = sizes.flow_buckets() - 1;
        config.reverse_v4_mask = sizes.reverse_v4_buckets() - 1;
        config.reverse_v6_mask = sizes.reverse_v6_buckets() - 1;
        config.member_count = sizes.member_count();
        config.port_base = self.port_base;
        config.port_words = words;
        config.timeouts = self.timeouts;
        config.events_per_tick = self.events_per_tick;
        config.flow_events_per_tick = self.flow_events_per_tick;
        config.refusals_per_tick = self.refusals_per_tick;
        config.flow_stats_mask = sizes.flow_stats() - 1;
        Ok(config)
    }
}

/// The addresses that the map lists.
fn known<const N: usize>(addresses: &[[u8; N]], count: u32) -> impl Iterator<Item = [u8; N]> {
    addresses.iter().copied().take(count as usize)
}

/// The addresses by number: those that have one keep it, new ones follow.
fn numbered<A: Copy + PartialEq + Into<IpAddr>>(
    mut known: Vec<A>,
    wanted: Vec<A>,
    most: usize,
) -> Result<Vec<A>, SettingsError> {
    if let Some(gone) = known.iter().find(|address| !wanted.contains(address)) {
        return Err(SettingsError::AddressRemoved((*gone).into()));
    }
    for address in wanted {
        if !known.contains(&address) {
            known.push(address);
        }
    }
    let count = known.len();
    if count > most { Err(SettingsError::TooManyAddresses { count, most }) } else { Ok(known) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> TableSizes {
        TableSizes { snat_count: 2, ..TableSizes::default_for(2) }
    }

    fn settings(addresses: &[&str]) -> Settings {
        Settings {
            cluster_set_id: "production".to_owned(),
            snat_addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
            port_base: 12_288,
            port_count: 16_384,
            timeouts: Timeouts {
                half_open: 38,
                established: 13_412,
                closed: 224,
                reset: 38,
                udp_new: 38,
                udp_replied: 224,
            },
            events_per_tick: 110,
            flow_events_per_tick: 100,
            refusals_per_tick: 269,
        }
    }

    fn empty() -> Config {
        let mut config: Config = bytemuck::Zeroable::zeroed();
        config.flow_key = random_flow_key();
        config
    }

    #[test]
    fn every_gateway_of_a_cluster_set_derives_the_same_ring_key() {
        assert_eq!(ring_key("production"), ring_key("production"));
        assert_ne!(ring_key("production"), ring_key("staging"));
        // Fixed for good: a gateway of the next version must agree with one of this version.
        assert_eq!(ring_key("production").words[..2], [2_216_688_224, 398_159_750]);
        let words = ring_key("").words;
        assert!(words.iter().all(|word| *word != 0), "even the empty name gives a full key: {words:?}");
    }

    #[test]
    fn settings_describe_the_tables_that_were_made() {
        let before = empty();
        let config =
            settings(&["192.168.0.10", "fd00::10"]).encode(&before, &sizes()).expect("valid settings");
        assert_eq!(config.flow_key, before.flow_key);
        assert_eq!(config.flow_bucket_mask, sizes().flow_buckets() - 1);
        assert_eq!(config.member_count, 8193);
        assert_eq!((config.port_base, config.port_words), (12_288, 256));
        assert_eq!((config.snat_v4_count, config.snat_v6_count, config.snat_stride), (1, 1, 2));
        assert_eq!(config.snat_v4[0], [192, 168, 0, 10]);
    }

    #[test]
    fn a_snat_address_keeps_its_number_whatever_the_order_of_the_list() {
        let first = settings(&["192.168.0.10"]).encode(&empty(), &sizes()).expect("valid");
        let second =
            settings(&["192.168.0.9", "192.168.0.10"]).encode(&first, &sizes()).expect("one more address");
        assert_eq!(second.snat_v4[..2], [[192, 168, 0, 10], [192, 168, 0, 9]]);
        let error = settings(&["192.168.0.9"]).encode(&second, &sizes()).expect_err("flows use the other");
        assert_eq!(error, SettingsError::AddressRemoved("192.168.0.10".parse().expect("an address")));
    }

    #[test]
    fn more_addresses_than_the_tables_hold_are_refused() {
        let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
        let error = settings(&addresses).encode(&empty(), &sizes()).expect_err("too many");
        assert_eq!(error, SettingsError::TooManyAddresses { count: 3, most: 2 });
    }

    #[test]
    fn a_changed_port_range_is_refused_while_flows_hold_ports() {
        let before = settings(&["10.0.0.1"]).encode(&empty(), &sizes()).expect("valid");
        let changed = Settings { port_base: 20_480, ..settings(&["10.0.0.1"]) };
        let message = changed.encode(&before, &sizes()).expect_err("refused").to_string();
        assert!(message.contains("12288–28671") && message.contains("20480–36863"), "{message}");
        assert!(message.contains("kanmon cleanup"), "{message}");
    }

    #[test]
    fn port_ranges_that_a_bitmap_cannot_hold_are_refused() {
        for (port_base, port_count) in
            [(0, 64), (1024, 0), (1024, 100), (1024, 16_448), (65_473, 64), (60_000, 16_384)]
        {
            let settings = Settings { port_base, port_count, ..settings(&["10.0.0.1"]) };
            assert!(settings.encode(&empty(), &sizes()).is_err(), "{port_base} {port_count}");
        }
        let last = Settings { port_base: 65_472, port_count: 64, ..settings(&["10.0.0.1"]) };
        last.encode(&empty(), &sizes()).expect("ports up to 65535");
    }
}
