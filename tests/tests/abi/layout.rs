//! Sizes, alignments and offsets of every type in a map.

use std::{
    fmt::Write as _,
    mem::{align_of, offset_of},
};

use lb_common::{
    abi::{
        AddressFilter, AffinityBucket, AffinityEntry, Backend, BackendKeyV4, BackendKeyV6, Config,
        CpuCounters, CpuRefusals, Event, EventBudget, FlowBucket, FlowEntry, FlowStats, FragmentRecord,
        Handshake, HandshakeBucket, LastHop, LimitBucket, Lock, Member, MemberStats, PortBitmap,
        ReverseBucketV4, ReverseBucketV6, ReverseEntryV4, ReverseEntryV6, RingPair, ServiceDescriptor,
        ServiceKeyV4, ServiceKeyV6, SourceV4, SourceV6, SynCopy, Timeouts, VipKeyV4, VipKeyV6,
    },
    hash::HashKey,
};

/// One line a type, one line a field.
macro_rules! types {
    ($out:expr, $($type:ident { $($field:ident),+ $(,)? })+) => {
        $(
            let _ = writeln!($out, "type {}: size {}, align {}", stringify!($type), size_of::<$type>(),
                align_of::<$type>());
            $(
                let _ = writeln!($out, "  {}.{} at {}", stringify!($type), stringify!($field),
                    offset_of!($type, $field));
            )+
        )+
    };
}

/// Writes all of them down.
pub(crate) fn describe(out: &mut String) {
    types!(
        out,
        AddressFilter { flags }
        AffinityBucket { entries }
        AffinityEntry { word, stay }
        Backend { flags, pad, tripped_until, errors, address, port, protocol, family, cluster, reserved }
        BackendKeyV4 { address, port, protocol, pad }
        BackendKeyV6 { address, port, protocol, pad }
        Config { flow_key, ring_key, snat_v4, snat_v6, snat_v4_count, snat_v6_count, snat_stride, flow_bucket_mask, reverse_v4_mask, reverse_v6_mask, member_count, port_base, port_words, timeouts, events_per_tick, zero, flow_stats_mask, flow_events_per_tick, refusals_per_tick, reserved }
        CpuCounters { counts }
        CpuRefusals { refusal, mtu, tick, sent, clamp_egress, clamp_mss }
        Event { time, client, member, client_port, snat_port, kind, family, protocol, snat, service, detail, slot, version, generation, reason, before_generation, reserved }
        EventBudget { tick, sent }
        FlowBucket { entries }
        FlowEntry { word, tag, last_seen }
        FlowStats { owner, opened, packets_in, bytes_in, packets_out, bytes_out, reserved }
        FragmentRecord { word, id, tick, path, slot, version, pad, client, reserved, given }
        Handshake { word }
        HandshakeBucket { ways }
        HashKey { words }
        LastHop { word, destination_mac, vlan_outer, source_mac, vlan_inner, ifindex, vlan_count, vlan_service_tag, mtu }
        LimitBucket { ways }
        Lock { held }
        Member { address, backend, generation, flags, port, destination_mac, vlan_outer, source_mac, vlan_inner, ifindex, mtu, l4_delta, l3_delta, vlan_count, vlan_service_tag, service, vip_v4, vip_port, family, reserved }
        MemberStats { connections, packets_in, bytes_in, packets_out, bytes_out, reserved }
        PortBitmap { words }
        ReverseBucketV4 { entries }
        ReverseBucketV6 { entries }
        ReverseEntryV4 { word, forward, client, path }
        ReverseEntryV6 { word, forward, client, path, client_address, check, reserved }
        RingPair { slots }
        ServiceDescriptor { ring, fallback, vip, port, protocol, family, pad, reaction, flow_log, clients }
        ServiceKeyV4 { vip, port, protocol, pad }
        ServiceKeyV6 { vip, port, protocol, pad }
        SourceV4 { service, address }
        SourceV6 { service, address }
        SynCopy { word, seq, flags, window, check, network, options }
        Timeouts { half_open, established, closed, reset, udp_new, udp_replied }
        VipKeyV4 { vip }
        VipKeyV6 { vip }
    );
}
