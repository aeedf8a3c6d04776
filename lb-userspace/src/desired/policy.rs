//! What a LoadBalancingPolicy asks of one service, resolved: references looked up, `from` matched against the
//! gateway's own place, defaults applied.

use std::time::Duration;

use super::ObjectName;

/// What is asked of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The LoadBalancingPolicy it came from; `None`: the defaults.
    pub name: Option<ObjectName>,
    /// Which regions and zones serve.
    pub locality: Locality,
    /// By how much a level's health may fall short before the next one gets traffic: Envoy's overprovisioning
    /// factor in percent, 100 to 1,000.
    pub overprovisioning_percent: u32,
    /// How long a level must have been healthy without a break before new flows go back to it.
    pub failback_delay: Duration,
    /// When a backend is ejected for the errors of users' connections; `None`: never.
    pub outlier_detection: Option<OutlierDetection>,
    /// How long flows of a draining endpoint may live on; `None`: to their own end.
    pub drain_timeout: Option<Duration>,
    /// Whether the kernel sends a refused connection's SYN to another backend at once.
    pub retry_on_reset: bool,
    /// Over how long the share of a cluster that comes back grows to its full size, once nothing holds its region
    /// back; zero: at once.
    pub slow_start: Duration,
    /// What the flow log notes of its connections.
    pub flow_log: FlowLogging,
    /// How many flows each client's network may begin; `None`: any number.
    pub new_flow_limit: Option<NewFlowLimit>,
}

/// How many flows each client's network may begin, and what a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFlowLimit {
    /// Flows a second, at least 1.
    pub per_second: u32,
    /// Bits of an IPv4 address that tell networks apart, 1 to 32.
    pub ipv4_prefix: u8,
    /// Bits of an IPv6 address that do, 1 to 128.
    pub ipv6_prefix: u8,
}

impl NewFlowLimit {
    /// The prefix of an IPv4 network where none is said: one address.
    pub const IPV4_PREFIX: u8 = 32;
    /// That of an IPv6 network: what one client has to itself.
    pub const IPV6_PREFIX: u8 = 64;

    /// So many flows a second, of networks as they are where nothing is said.
    #[must_use]
    pub const fn per_second(per_second: u32) -> Self {
        Self { per_second, ipv4_prefix: Self::IPV4_PREFIX, ipv6_prefix: Self::IPV6_PREFIX }
    }
}

/// What the flow log notes of a service's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowLogging {
    /// Whether bytes and packets of each are counted.
    pub counters: bool,
    /// One of so many connections is noted, at least 1.
    pub sample_one_in: u32,
}

impl Default for FlowLogging {
    fn default() -> Self {
        Self { counters: false, sample_one_in: 1 }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            name: None,
            locality: Locality::Even,
            overprovisioning_percent: 140,
            failback_delay: Duration::from_secs(60),
            outlier_detection: None,
            drain_timeout: None,
            retry_on_reset: true,
            slow_start: Duration::ZERO,
            flow_log: FlowLogging::default(),
            new_flow_limit: None,
        }
    }
}

/// A region, or one zone of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Area {
    /// The region's name, never empty.
    pub region: String,
    /// The zone's name; empty: the whole region.
    pub zone: String,
}

impl Area {
    /// Whether something in this region and zone is in the area.
    #[must_use]
    pub fn contains(&self, region: &str, zone: &str) -> bool {
        self.region == region && (self.zone.is_empty() || self.zone == zone)
    }
}

/// Which regions and zones serve a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Locality {
    /// All endpoints alike.
    #[default]
    Even,
    /// Levels in order of preference. An endpoint is of the first level that has an area with it; those that are
    /// in none are of a last level of their own, or serve nothing where the list is `strict`.
    Failover {
        /// Areas by level, the gateway's own place first.
        levels: Vec<Vec<Area>>,
        /// Whether endpoints outside the levels never serve.
        strict: bool,
    },
    /// So many percent of new flows to each area; the percents sum to 100. Endpoints in no area serve only when
    /// no listed area has a healthy one.
    Distribute {
        /// Areas that do not overlap, with percents.
        shares: Vec<(Area, u32)>,
    },
}

impl Locality {
    /// Whether endpoints in this region and zone may ever serve.
    #[must_use]
    pub fn admits(&self, region: &str, zone: &str) -> bool {
        match self {
            Self::Failover { levels, strict: true } => {
                levels.iter().flatten().any(|area| area.contains(region, zone))
            }
            Self::Even | Self::Failover { .. } | Self::Distribute { .. } => true,
        }
    }
}

/// When a backend gets no new flows for a time, because users' connections to it failed (Envoy's outlier
/// detection).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Connect errors in a row, 1 or more.
    pub consecutive_errors: u32,
    /// Between two sweeps over the ejected.
    pub interval: Duration,
    /// Length of the first ejection; the nth lasts n times as long.
    pub base_ejection_time: Duration,
    /// The longest ejection.
    pub max_ejection_time: Duration,
    /// How many of a service's endpoints may be ejected at once, 0 to 100 percent; one always may where there are
    /// two.
    pub max_ejection_percent: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 100,
        }
    }
}
