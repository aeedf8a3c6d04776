//! Records: what is known of one thing that happened, as people and programs read it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use jiff::{SignedDuration, Timestamp};
use lb_common::abi::{CloseReason, FlowState, TCP, UDP};

use super::clock;
use super::names::Named;
use crate::desired::Protocol;
use crate::status::view::{FlowRecord, RecordState};

/// The close reason of the way to a backend that a rescued flow left.
pub(super) const RESCUED: &str = "rescued";

/// A moment of the packet program's clock, as people write it.
pub(super) struct Moment(String);

impl Moment {
    /// Of nanoseconds of the monotonic clock.
    pub(super) fn of(nanoseconds: u64) -> Self {
        let ago = clock::nanoseconds().saturating_sub(nanoseconds);
        let ago = SignedDuration::from_nanos(i64::try_from(ago).unwrap_or(i64::MAX));
        let now = Timestamp::now();
        Self(written(now.checked_sub(ago).unwrap_or(now)))
    }
}

/// Now.
pub(super) fn now() -> String {
    written(Timestamp::now())
}

fn written(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// A record of a flow that does not say yet what happened.
pub(super) fn flow(
    moment: Moment,
    protocol: u8,
    client: Option<SocketAddr>,
    named: Option<&Named>,
) -> FlowRecord {
    let known = |text: fn(&Named) -> &String| named.map(text).filter(|text| !text.is_empty()).cloned();
    FlowRecord {
        client,
        protocol: Protocol::from_ip_number(protocol).map(|protocol| protocol.to_string()),
        vip: named.map(|named| SocketAddr::new(named.id.vip, named.id.port)),
        service: known(|named| &named.service),
        upstream_host: named.map(Named::upstream_host),
        cluster: known(|named| &named.cluster),
        region: known(|named| &named.region),
        zone: known(|named| &named.zone),
        pod: known(|named| &named.pod),
        ..FlowRecord::of(moment.0, RecordState::Opened)
    }
}

/// An address and a port as maps hold them.
pub(super) fn client_of(family: u8, address: [u8; 16], port: [u8; 2]) -> SocketAddr {
    let [a, b, c, d, ..] = address;
    let ip: IpAddr =
        if family == 4 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(address).into() };
    SocketAddr::new(ip, u16::from_be_bytes(port))
}

/// The protocol of a flow in this state.
pub(super) const fn protocol_of(state: FlowState) -> u8 {
    match state {
        FlowState::UdpNew | FlowState::UdpReplied | FlowState::UdpAssured => UDP,
        _ => TCP,
    }
}

/// A reason's name.
pub(super) const fn reason(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Fin => "fin",
        CloseReason::Reset => "rst",
        CloseReason::Timeout => "timeout",
        CloseReason::Evicted => "evicted",
        CloseReason::BackendRemoved => "backend-removed",
    }
}
