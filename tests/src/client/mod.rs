//! The load generator: real TCP connections and UDP requests from the client's namespace, each with what
//! became of it.
//!
//! - [`Client::tcp`] and [`Client::udp`]: a number of requests, so many at a time;
//! - [`Client::hold`]: connections that stay open and keep checking who answers;
//! - [`Client::keep_asking`] and [`Client::fetch`]: how much goes through connections that stand;
//! - [`Client::load`]: a steady stream of connections until told to stop.

mod conversation;
mod hold;
mod load;
mod outcome;
mod stream;
mod throughput;
mod udp;

use std::{
    net::{IpAddr, SocketAddr},
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{netns::Netns, topology::Segment};

pub use hold::{Held, HeldReport, Hold};
pub use load::{Close, TcpLoad, UdpLoad};
pub use outcome::{Answer, Failure, Live, Outcome, Report, Tally};
pub use stream::{Row, Running, SteadyLoad, row};

/// Ports that the client's kernel gives to nobody who does not ask for them. A port of the kernel's choice stays
/// taken through TIME_WAIT, and an exact source that happened on it could not be bound.
pub const EXACT_PORTS: RangeInclusive<u16> = 10_000..=19_999;

/// Where requests come from: addresses and, where it matters, ports.
#[derive(Clone, Debug)]
pub enum Sources {
    /// These addresses in turn, with a port of the kernel's choice.
    Addresses(Arc<[IpAddr]>),
    /// These very addresses and ports in turn: the same flows each time.
    Exact(Arc<[SocketAddr]>),
}

impl Sources {
    /// The source of the `n`th request.
    pub fn nth(&self, n: usize) -> SocketAddr {
        match self {
            Sources::Addresses(ips) => SocketAddr::new(ips[n % ips.len()], 0),
            Sources::Exact(all) => all[n % all.len()],
        }
    }
}

/// The client's namespace and its addresses.
#[derive(Clone, Debug)]
pub struct Client {
    ns: Netns,
    v4: Arc<[IpAddr]>,
    v6: Arc<[IpAddr]>,
}

impl Client {
    /// A client with these hosts of a segment as its addresses.
    pub(crate) fn new(ns: Netns, segment: Segment, hosts: Range<u8>) -> Client {
        let both = || hosts.clone().map(|host| segment.host(host));
        Client {
            ns,
            v4: both().map(|dual| dual.v4.into()).collect(),
            v6: both().map(|dual| dual.v6.into()).collect(),
        }
    }

    /// A client somewhere else, for example in a pod, with these addresses.
    pub fn at(ns: Netns, addresses: &[IpAddr]) -> Client {
        let of_family = |v4: bool| addresses.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
        Client { ns, v4: of_family(true), v6: of_family(false) }
    }

    /// Its namespace.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// Its addresses of the target's family, in turn.
    pub fn sources(&self, target: SocketAddr) -> Sources {
        Sources::Addresses(if target.is_ipv4() { self.v4.clone() } else { self.v6.clone() })
    }

    /// `count` different addresses with ports, from `first_port` on: flows that can be made again.
    ///
    /// # Panics
    /// When a port is not one of [`EXACT_PORTS`].
    pub fn exact_sources(&self, target: SocketAddr, count: usize, first_port: u16) -> Sources {
        let ips = if target.is_ipv4() { &self.v4 } else { &self.v6 };
        let ports = first_port..=*EXACT_PORTS.end();
        assert!(EXACT_PORTS.contains(&first_port), "port {first_port} is not kept for exact sources");
        assert!(ports.len() * ips.len() >= count, "{count} sources are more than the ports hold");
        Sources::Exact(
            ports.flat_map(|port| ips.iter().map(move |ip| SocketAddr::new(*ip, port))).take(count).collect(),
        )
    }
}

/// Allows this process as many open files as the kernel allows anybody: thousands of connections need it.
///
/// # Errors
/// When the limit cannot be read or raised.
pub fn raise_open_files() -> Result<()> {
    const WANTED: u64 = 200_000;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < WANTED {
        setrlimit(Resource::RLIMIT_NOFILE, WANTED, hard.max(WANTED))
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
            .context("cannot raise the limit of open files")?;
    }
    Ok(())
}
