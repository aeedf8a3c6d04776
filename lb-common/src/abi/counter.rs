//! Counters: one for each reason, per CPU; traffic per member, per CPU.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// Declares the counters once: number, name for programs, explanation for people.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $value:literal, $name:literal;)+) => {
        /// Why a packet was passed or dropped, or what happened to the tables. The number is the index in
        /// [`CpuCounters::counts`].
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant = $value,)+
        }

        impl Counter {
            /// Every counter, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Name for programs: `pass_…`, `drop_…`, or an event of the tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it counts, in a sentence.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

counters! {
    /// Passed: neither IPv4 nor IPv6, or too short to tell.
    PassNotIp = 0, "pass_not_ip";
    /// Passed: not to a VIP and not to a SNAT address.
    PassForeign = 1, "pass_foreign";
    /// Passed: to a SNAT address, but not the reply of a live flow.
    PassNoFlow = 2, "pass_no_flow";
    /// Passed: to a VIP that is also the node's address, without a service there.
    PassNodeAddress = 3, "pass_node_address";
    /// Dropped: the service has no usable backend.
    DropNoBackend = 4, "drop_no_backend";
    /// Dropped: to a VIP, but no service has this port.
    DropClosedPort = 5, "drop_closed_port";
    /// Dropped: ICMP or ICMPv6 to a VIP that is no echo request to be answered and no error about a flow.
    DropIcmp = 6, "drop_icmp";
    /// Dropped: a fragment to a VIP whose packet's first one was not forwarded, or not yet, or too long ago; or of what is
    /// neither TCP nor UDP.
    DropFragment = 7, "drop_fragment";
    /// Dropped: TTL or hop limit would reach 0.
    DropTtl = 8, "drop_ttl";
    /// Dropped: TCP without a flow and not a SYN.
    DropNotSyn = 9, "drop_not_syn";
    /// Dropped: to a VIP, of a protocol that is neither TCP nor UDP nor ICMP.
    DropProtocol = 10, "drop_protocol";
    /// Dropped: to a VIP, with headers that are cut short or contradict each other.
    DropMalformed = 11, "drop_malformed";
    /// Dropped: both buckets of the new flow are full of live flows.
    DropTableFull = 12, "drop_table_full";
    /// Dropped: no SNAT port of the backend, or no room in the reverse table, within reach of the new flow.
    DropPortsExhausted = 13, "drop_ports_exhausted";
    /// Dropped: another CPU held the new flow's lock for too long.
    DropInsertContended = 14, "drop_insert_contended";
    /// Dropped: the member has no next hop.
    DropNoNextHop = 15, "drop_no_next_hop";
    /// Dropped: the flow's member is no longer what it was.
    DropStaleMember = 16, "drop_stale_member";
    /// Dropped: the table of last hops is full.
    DropLastHopsFull = 17, "drop_last_hops_full";
    /// Dropped: the frame could not be given room for its VLAN tags.
    DropNoRoom = 18, "drop_no_room";
    /// Dropped: the program's own tables or settings are missing (a defect, or an agent that is not ready).
    DropNotReady = 19, "drop_not_ready";
    /// A flow was made.
    FlowOpened = 20, "flow_opened";
    /// A TCP client proved its handshake.
    FlowEstablished = 21, "flow_established";
    /// A half-open flow was displaced by a new one.
    FlowDisplaced = 22, "flow_displaced";
    /// An expired, closed or stale flow made room for a new one.
    FlowReclaimed = 23, "flow_reclaimed";
    /// An expired, closed, reset or half-open flow gave up its port, or its place in the reverse table.
    PortReclaimed = 24, "port_reclaimed";
    /// An event that is not the flow log's was not sent: rate limit, or the agent is not reading.
    EventLost = 25, "event_lost";
    /// Dropped: a backend's RST to a SYN, which the client's next SYN takes to another backend.
    DropRefused = 26, "drop_refused";
    /// Dropped: from a backend whose flow has gone to another one, or changed at this very moment.
    DropMoved = 27, "drop_moved";
    /// A backend refused a connection.
    ConnectRefused = 28, "connect_refused";
    /// A backend left a SYN unanswered until the client sent it again.
    ConnectUnanswered = 29, "connect_unanswered";
    /// A SYN that failed at one backend went to another.
    FlowRescued = 30, "flow_rescued";
    /// A backend got no new flows for a time, because too many connections to it failed in a row.
    BackendTripped = 31, "backend_tripped";
    /// A new flow went to a tripped backend, because no other one takes new flows.
    FlowFailedOpen = 32, "flow_failed_open";
    /// The flow log was not told of a flow: rate limit, or the agent is not reading.
    FlowEventLost = 33, "flow_event_lost";
    /// A new flow's traffic is not counted for the flow log, because another flow has its place in the table.
    FlowUncounted = 34, "flow_uncounted";
    /// An echo request to a VIP was answered.
    EchoAnswered = 35, "echo_answered";
    /// An ICMP error went on to the end of the flow whose packet it quotes.
    IcmpForwarded = 36, "icmp_forwarded";
    /// The sender of a dropped packet was told: RST or ICMP.
    RefusalSent = 37, "refusal_sent";
    /// The sender of a dropped packet was not told: rate limit.
    RefusalLimited = 38, "refusal_limited";
    /// The sender of a dropped packet was not told: the frame has no room for the answer's headers.
    RefusalNoRoom = 39, "refusal_no_room";
    /// Dropped: would begin a flow of a service with source ranges, and its source is in none of them.
    DropSource = 40, "drop_source";
    /// A new flow was given the backend that its client's flow before was given, because its service asks for that.
    FlowAffine = 41, "flow_affine";
    /// A client's backend was forgotten before its time, because another client took its place in the table.
    AffinityDisplaced = 42, "affinity_displaced";
    /// Dropped: longer than the MTU of the link that it would leave by.
    DropTooBig = 43, "drop_too_big";
    /// The largest segment that a SYN or its answer allows was lowered to what the way takes.
    MssClamped = 44, "mss_clamped";
    /// Dropped: would begin a flow, and its source can be no client: loopback, multicast, reserved, itself, or a VIP.
    DropMartian = 45, "drop_martian";
    /// Dropped: UDP over IPv6 without a checksum.
    DropNoChecksum = 46, "drop_no_checksum";
    /// Dropped: to a VIP, a first fragment without a whole transport header, or a later one that lies over it.
    DropFragmentHeader = 47, "drop_fragment_header";
    /// The first fragment of a packet was sent on, and later ones can follow.
    FragmentTracked = 48, "fragment_tracked";
    /// A later fragment followed the first one of its packet.
    FragmentForwarded = 49, "fragment_forwarded";
    /// Later fragments of a packet can't follow any more, because within a second of its first one another packet took
    /// its place in the table.
    FragmentDisplaced = 50, "fragment_displaced";
    /// Dropped: would begin a flow, and its client's network has begun as many as the service allows.
    DropNewFlowLimit = 51, "drop_new_flow_limit";
    /// A packet that was sent on to another interface was lost there: the kernel refused the redirect after the program's
    /// verdict.
    RedirectFailed = 52, "redirect_failed";
}

/// Room for counters in [`CpuCounters`].
const COUNTER_SLOTS: usize = 64;
const _: () = assert!(Counter::ALL.len() <= COUNTER_SLOTS);

/// Element of the array `COUNTERS`: one CPU's. The index is the CPU's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuCounters {
    /// By [`Counter`].
    pub counts: [u64; COUNTER_SLOTS],
}

/// Element of the array `MEMBER_STATS`: what one CPU forwarded for one member. The index is
/// `cpu × member_count + member`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MemberStats {
    /// New flows.
    pub connections: u64,
    /// Packets towards the backend.
    pub packets_in: u64,
    /// Bytes towards the backend, as received: the whole frame.
    pub bytes_in: u64,
    /// Packets towards clients.
    pub packets_out: u64,
    /// Bytes towards clients, as received: the whole frame.
    pub bytes_out: u64,
    /// Always 0.
    pub reserved: [u64; 3],
}

assert_layout! {
    CpuCounters: 512,
    MemberStats: 64,
}
