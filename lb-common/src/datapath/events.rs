//! Events about flows, for the agent.

use super::{Family, Maps, member, parse::Ip};
use crate::abi::{Config, Event, EventKind, FlowWord};

/// Tells the agent about a flow.
#[inline(always)]
pub(super) fn of_flow<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    kind: EventKind,
    client: F::Address,
    client_port: u16,
    ip: &Ip<F>,
    flow: FlowWord,
) {
    let service = maps.member(flow.member()).map_or(0, member::service);
    send(maps, config, kind, client, client_port, ip, flow, service);
}

/// Tells the agent about a flow of a known service, or one that could not be made.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn send<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    kind: EventKind,
    client: F::Address,
    client_port: u16,
    ip: &Ip<F>,
    flow: FlowWord,
    service: u32,
) {
    let event = Event {
        time: maps.now(),
        client: F::bytes(client),
        member: flow.member(),
        client_port: client_port.to_ne_bytes(),
        snat_port: flow.port().to_be_bytes(),
        kind: kind as u8,
        family: F::NUMBER,
        protocol: ip.protocol,
        snat: flow.snat(),
        service,
    };
    maps.event(&event, config.events_per_tick);
}
