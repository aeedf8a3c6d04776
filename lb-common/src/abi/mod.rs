//! The map ABI: every key and value that the agent and the packet program share.
//!
//! All types are `repr(C)`, [`bytemuck::Pod`], padded explicitly and of asserted size. Integers are in the
//! host's byte order; addresses, ports and MAC addresses are byte arrays in network order, so that
//! `bpftool map dump` shows them as people write them. Bit-exact layouts: docs/adr/0001-flow-tables.md.
//!
//! Values that several CPUs change at once are read and written only as 64-bit *cells*
//! (see [`crate::datapath::Cells`]); their structs exist for sizes, initial values and BTF field names.

mod backend;
mod client;
mod config;
mod counter;
mod event;
mod flow;
mod flow_log;
mod fragment;
mod last_hop;
mod limit;
mod member;
mod refusal;
mod reverse;
mod ring;
mod service;
mod syn;

pub use backend::{Backend, BackendKeyV4, BackendKeyV6, PORT_BITMAP_WORDS, PortBitmap, backend_flags};
pub use client::{
    AFFINITY_WAYS, AffinityBucket, AffinityEntry, AffinityWord, ClientWord, MOST_AFFINITY_BUCKETS,
    SOURCE_SERVICE_BITS, SourceV4, SourceV6, StayWord,
};
pub use config::{Config, MAX_SNAT_ADDRESSES, Timeouts};
pub use counter::{Counter, CpuCounters, MemberStats};
pub use event::{Event, EventBudget, EventKind};
pub use flow::{
    FLOW_WAYS, FlowBucket, FlowEntry, FlowRef, FlowState, FlowWord, Handshake, HandshakeBucket,
    HandshakeWord, LOCK_STRIPES, Lock, MAX_FLOW_SLOT, VERSION_MASK,
};
pub use flow_log::{CloseReason, FlowLogWord, FlowOwner, FlowStats};
pub use fragment::{
    FRAGMENT_RECORDS, FRAGMENT_TICKS, FRAGMENT_WAYS, FragmentPath, FragmentRecord, FragmentWord,
    pack_fragment_flow, unpack_fragment_flow,
};
pub use last_hop::{LAST_HOP_WAYS, LAST_HOPS, LastHop, LastHopWord};
pub use limit::{LIMIT_BUCKETS, LIMIT_WAYS, LimitBucket, LimitWord};
pub use member::{MAX_MEMBER_INDEX, Member, member_flags};
pub use refusal::{CpuRefusals, Refusal};
pub use reverse::{
    REVERSE_WAYS, ReverseBucketV4, ReverseBucketV6, ReverseEntryV4, ReverseEntryV6, ReverseState,
    ReverseWord, address_check, pack_client, pack_forward, pack_path, unpack_client, unpack_forward,
    unpack_path,
};
pub use ring::{RING_SIZES, RingPair, RingWord};
pub use service::{
    ADDRESS_FILTER_SIZE, AddressFilter, ReactionWord, ServiceDescriptor, ServiceKeyV4, ServiceKeyV6,
    VipKeyV4, VipKeyV6, address_filter, vip_flags,
};
pub use syn::{MOST_SYN_COPIES, SynCopy, SynWord};

/// Version of everything in this module. It is part of the pin path, so an agent never adopts maps of another
/// layout. Any change of a size, an offset, a meaning or a hash must raise it (a test fails otherwise).
pub const ABI_VERSION: u32 = 3;

/// IP protocol number of TCP (RFC 9293).
pub const TCP: u8 = 6;
/// IP protocol number of UDP (RFC 768).
pub const UDP: u8 = 17;

/// Asserts a type's size and that its alignment is at most 8 bytes, the most a map value gets.
macro_rules! assert_layout {
    ($($type:ty: $size:expr),+ $(,)?) => {
        $(const _: () = {
            assert!(core::mem::size_of::<$type>() == $size);
            assert!(core::mem::align_of::<$type>() <= 8);
        };)+
    };
}
pub(crate) use assert_layout;
