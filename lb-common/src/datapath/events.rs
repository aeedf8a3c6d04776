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
    send(maps, config, kind, client, client_port, ip, flow, service, 0);
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
    detail: u32,
) {
    // Put together from whole words: byte-wise building would cost the kernel's stack and a `memset`.
    let [client_high, client_low] = F::raw(client);
    let ends = flow.member() as u64 | (client_port as u64) << 32 | (flow.port().to_be() as u64) << 48;
    let what = kind as u64
        | (F::NUMBER as u64) << 8
        | (ip.protocol as u64) << 16
        | (flow.snat() as u64) << 24
        | (service as u64) << 32;
    let event: Event = bytemuck::cast([maps.now(), client_high, client_low, ends, what, detail as u64]);
    maps.event(&event, config.events_per_tick);
}
