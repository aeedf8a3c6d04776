//! Bits of packed words, numbers of enums and flags, constants, and hashes of fixed inputs.

use std::fmt::Write as _;

use lb_common::{
    abi::{
        ADDRESS_FILTER_SIZE, AFFINITY_WAYS, AffinityWord, ClientWord, CloseReason, Counter, EventKind,
        FLOW_WAYS, FRAGMENT_RECORDS, FRAGMENT_TICKS, FRAGMENT_WAYS, FlowRef, FlowState, FlowWord,
        FragmentPath, FragmentWord, HandshakeWord, LAST_HOP_WAYS, LAST_HOPS, LIMIT_BUCKETS, LIMIT_WAYS,
        LOCK_STRIPES, LastHopWord, LimitWord, MAX_FLOW_SLOT, MAX_MEMBER_INDEX, MAX_SNAT_ADDRESSES,
        MOST_AFFINITY_BUCKETS, MOST_SYN_COPIES, PORT_BITMAP_WORDS, REVERSE_WAYS, RING_SIZES, ReactionWord,
        ReverseState, ReverseWord, RingWord, SOURCE_SERVICE_BITS, StayWord, SynWord, VERSION_MASK,
        address_check, address_filter, backend_flags, member_flags, pack_client, pack_forward,
        pack_fragment_flow, pack_path, vip_flags,
    },
    clock::{MAX_TIMEOUT_TICKS, TICK_SHIFT},
    datapath::checksum::Sum,
    hash::{
        FlowHash, HashKey, affinity, affinity_bucket, candidate, filter_index_v4, filter_index_v6, finish,
        hash_v4, hash_v6, reverse_bucket,
    },
};

/// Which bits a field takes: those that are set when the field has all of its bits set and nothing else does.
fn bits(out: &mut String, what: &str, fields: &[(&str, u64)]) {
    for (name, word) in fields {
        let _ = writeln!(out, "{what} {name}: {word:#018x}");
    }
}

/// Writes all of them down.
pub(crate) fn describe(out: &mut String) {
    words(out);
    numbers(out);
    hashes(out);
}

fn words(out: &mut String) {
    let empty = FlowWord::new(FlowState::Empty, 0);
    bits(
        out,
        "FlowWord",
        &[
            ("doomed", empty.doomed().0),
            ("version", FlowWord::new(FlowState::Empty, u16::MAX).0),
            ("generation", empty.with_path(0, u8::MAX, 0, 0).0),
            ("member", empty.with_path(u32::MAX, 0, 0, 0).0),
            ("snat", empty.with_path(0, 0, u8::MAX, 0).0),
            ("port", empty.with_path(0, 0, 0, u16::MAX).0),
            ("tag of version 0", empty.masked_tag(0x0123_4567_89ab)),
            ("tag of version 1", FlowWord::new(FlowState::Empty, 1).masked_tag(0x0123_4567_89ab)),
            ("tag of version 1023", FlowWord::new(FlowState::Empty, 1023).masked_tag(0x0123_4567_89ab)),
        ],
    );
    let attempt =
        (0..64).filter(|bit| FlowWord(1 << bit).attempt() != 0).fold(0, |word, bit| word | 1 << bit);
    bits(out, "FlowWord", &[("attempt", attempt)]);
    bits(
        out,
        "HandshakeWord",
        &[
            ("time", HandshakeWord::sent(0, 0, u64::MAX, 0).0),
            ("before", HandshakeWord::sent(0, 0, 0, u32::MAX).0),
            ("version", HandshakeWord::sent(u16::MAX, 0, 0, 0).0),
            ("client's number", HandshakeWord::sent(0, u32::MAX, 0, 0).0),
            ("time of 2^24 ns", HandshakeWord::sent(0, 0, 1 << 24, 0).0),
            ("server's number", HandshakeWord::answered(0, u32::MAX).0),
        ],
    );
    bits(
        out,
        "SynWord",
        &[
            ("claimed", SynWord::claimed(0, 0).0),
            ("complete", SynWord::claimed(0, 0).complete(0).0),
            ("tag", SynWord::claimed(0xffff_ffff_ffff, 0).0),
            ("header words", SynWord::claimed(0, 0).complete(u8::MAX).0),
            ("time", SynWord::claimed(0, u64::MAX).0),
        ],
    );
    bits(
        out,
        "FragmentWord",
        &[
            ("tag", FragmentWord(0).claimed(u64::MAX).0 ^ FragmentWord(0).claimed(0).0),
            ("claimed, of the next version", FragmentWord(0).claimed(0).0),
            ("complete", FragmentWord(0).claimed(0).complete().0),
            ("claimed, of the first version again", FragmentWord(u64::MAX).claimed(0).0),
        ],
    );
    bits(
        out,
        "FragmentPath",
        &[
            ("member", FragmentPath::to_backend(u32::MAX, 0, 0).0),
            ("generation", FragmentPath::to_backend(0, u8::MAX, 0).0),
            ("SNAT address", FragmentPath::to_backend(0, 0, u8::MAX).0),
            ("to the client", FragmentPath::to_client(0, 0, 0).0),
            ("last hop", FragmentPath::to_client(0, 0, u16::MAX).0 ^ FragmentPath::to_client(0, 0, 0).0),
            ("flow's slot", pack_fragment_flow(FlowRef { slot: u32::MAX, version: 0 })),
            ("flow's version", pack_fragment_flow(FlowRef { slot: 0, version: u16::MAX })),
        ],
    );
    bits(
        out,
        "ReactionWord",
        &[
            ("errors", ReactionWord::new(u16::MAX, 0, false).0),
            ("milliseconds", ReactionWord::new(0, u32::MAX, false).0),
            ("retry on reset", ReactionWord::new(0, 0, true).0),
        ],
    );
    bits(
        out,
        "ClientWord",
        &[
            ("ranges", ClientWord::new(true, 0).0),
            ("stays for one tick", ClientWord::new(false, 1).0),
            ("stays as long as can be", ClientWord::new(false, u32::MAX).0),
            ("interval", ClientWord::default().with_interval(u32::MAX).0),
            ("beyond a network", ClientWord::default().with_beyond(u8::MAX).0),
        ],
    );
    bits(
        out,
        "LimitWord",
        &[("hash", LimitWord::new(u64::MAX, 0).0), ("time", LimitWord::new(0, u64::MAX).0)],
    );
    bits(
        out,
        "AffinityWord",
        &[
            ("tag", AffinityWord::new(u64::MAX, 0, 0).0),
            ("member", AffinityWord::new(0, u32::MAX, 0).0),
            ("generation", AffinityWord::new(0, 0, u8::MAX).0),
        ],
    );
    bits(out, "StayWord", &[("tick", StayWord::new(u64::MAX, 0).0), ("stay", StayWord::new(0, u64::MAX).0)]);
    bits(
        out,
        "ReverseWord",
        &[
            ("version", ReverseWord::new(ReverseState::Empty, u16::MAX, 0).0),
            ("backend", ReverseWord::key(u32::MAX, 0, 0)),
            ("snat", ReverseWord::key(0, u8::MAX, 0)),
            ("port", ReverseWord::key(0, 0, u16::MAX)),
            ("key", ReverseWord::KEY_MASK),
        ],
    );
    let nowhere = FlowRef { slot: 0, version: 0 };
    bits(
        out,
        "forward",
        &[
            ("slot", pack_forward(FlowRef { slot: u32::MAX, version: 0 }, 0, 0)),
            ("flow's version", pack_forward(FlowRef { slot: 0, version: u16::MAX }, 0, 0)),
            ("version", pack_forward(nowhere, u16::MAX, 0)),
            ("tick", pack_forward(nowhere, 0, u16::MAX)),
        ],
    );
    bits(
        out,
        "client",
        &[
            ("address", pack_client(u32::MAX, 0, 0)),
            ("port", pack_client(0, u16::MAX, 0)),
            ("version", pack_client(0, 0, u16::MAX)),
        ],
    );
    bits(
        out,
        "path",
        &[
            ("member", pack_path(u32::MAX, 0, 0, 0)),
            ("generation", pack_path(0, u8::MAX, 0, 0)),
            ("last hop", pack_path(0, 0, u16::MAX, 0)),
            ("version", pack_path(0, 0, 0, u16::MAX)),
        ],
    );
    bits(
        out,
        "address check",
        &[
            ("of 1, 0, version 0", address_check([1, 0], 0)),
            ("of 0, 1, version 0", address_check([0, 1], 0)),
            ("of 0, 0, version 1", address_check([0, 0], 1)),
        ],
    );
    bits(
        out,
        "RingWord",
        &[
            ("offset", RingWord::new(u32::MAX, 0, 0).0),
            ("class", RingWord::new(0, u8::MAX, 0).0),
            ("version", RingWord::new(0, 0, u32::MAX).0),
        ],
    );
    bits(
        out,
        "LastHopWord",
        &[
            ("free", LastHopWord::FREE.0),
            ("claimed", LastHopWord::claimed(0, 0).0),
            ("in use", LastHopWord::in_use(0, 0).0),
            ("hash", LastHopWord::in_use(u64::MAX, 0).0),
            ("tick", LastHopWord::in_use(0, u16::MAX).0),
        ],
    );
}

fn numbers(out: &mut String) {
    for state in FlowState::ALL {
        let _ = writeln!(out, "FlowState::{state:?} = {}", state as u8);
    }
    for state in [ReverseState::Empty, ReverseState::Claimed, ReverseState::New, ReverseState::Replied] {
        let _ = writeln!(out, "ReverseState::{state:?} = {}", state as u8);
    }
    for reason in (0..=u8::MAX).filter_map(CloseReason::from_bits) {
        let _ = writeln!(out, "CloseReason::{reason:?} = {}", reason as u8);
    }
    for kind in [
        EventKind::Opened,
        EventKind::Closed,
        EventKind::TableFull,
        EventKind::PortsExhausted,
        EventKind::Tripped,
        EventKind::Rescued,
    ] {
        let _ = writeln!(out, "EventKind::{kind:?} = {}", kind as u8);
    }
    for counter in Counter::ALL {
        let _ = writeln!(out, "Counter {} = {}", counter.name(), *counter as u8);
    }
    for (name, value) in [
        ("backend_flags::USABLE", u64::from(backend_flags::USABLE)),
        ("member_flags::VALID", u64::from(member_flags::VALID)),
        ("member_flags::NEXT_HOP", u64::from(member_flags::NEXT_HOP)),
        ("member_flags::DRAINING", u64::from(member_flags::DRAINING)),
        ("member_flags::REMOVED", u64::from(member_flags::REMOVED)),
        ("member_flags::COUNTED", u64::from(member_flags::COUNTED)),
        ("vip_flags::NODE_ADDRESS", u64::from(vip_flags::NODE_ADDRESS)),
        ("vip_flags::ECHO", u64::from(vip_flags::ECHO)),
        ("address_filter::VIP", address_filter::VIP),
        ("address_filter::SNAT", address_filter::SNAT),
        ("ADDRESS_FILTER_SIZE", u64::from(ADDRESS_FILTER_SIZE)),
        ("AFFINITY_WAYS", u64::from(AFFINITY_WAYS)),
        ("FLOW_WAYS", u64::from(FLOW_WAYS)),
        ("FRAGMENT_RECORDS", u64::from(FRAGMENT_RECORDS)),
        ("FRAGMENT_TICKS", FRAGMENT_TICKS),
        ("FRAGMENT_WAYS", u64::from(FRAGMENT_WAYS)),
        ("LAST_HOP_WAYS", u64::from(LAST_HOP_WAYS)),
        ("LAST_HOPS", u64::from(LAST_HOPS)),
        ("LIMIT_BUCKETS", u64::from(LIMIT_BUCKETS)),
        ("LIMIT_WAYS", u64::from(LIMIT_WAYS)),
        ("LOCK_STRIPES", u64::from(LOCK_STRIPES)),
        ("MAX_FLOW_SLOT", u64::from(MAX_FLOW_SLOT)),
        ("MAX_MEMBER_INDEX", u64::from(MAX_MEMBER_INDEX)),
        ("MAX_SNAT_ADDRESSES", MAX_SNAT_ADDRESSES as u64),
        ("MOST_AFFINITY_BUCKETS", u64::from(MOST_AFFINITY_BUCKETS)),
        ("MOST_SYN_COPIES", u64::from(MOST_SYN_COPIES)),
        ("MAX_TIMEOUT_TICKS", u64::from(MAX_TIMEOUT_TICKS)),
        ("PORT_BITMAP_WORDS", PORT_BITMAP_WORDS as u64),
        ("REVERSE_WAYS", u64::from(REVERSE_WAYS)),
        ("SOURCE_SERVICE_BITS", u64::from(SOURCE_SERVICE_BITS)),
        ("TICK_SHIFT", u64::from(TICK_SHIFT)),
        ("VERSION_MASK", u64::from(VERSION_MASK)),
    ] {
        let _ = writeln!(out, "{name} = {value}");
    }
    let _ = writeln!(out, "RING_SIZES = {RING_SIZES:?}");
    for (class, slots) in (0..).zip(RING_SIZES) {
        let ring = RingWord::new(0, class, 1);
        let _ = writeln!(
            out,
            "ring class {class}: {slots} slots, 0x9e3779b9 is in slot {}",
            ring.slot(0x9e37_79b9)
        );
    }
}

fn hashes(out: &mut String) {
    let mut key = HashKey { words: [0; 16] };
    for (word, number) in key.words.iter_mut().zip(1_u64..) {
        *word = finish(number) as u32;
    }
    let (source, destination, ports) = (0x0201_a8c0, 0x0a71_00cb, 0x5000_409c);
    let v4 = hash_v4(&key, source, destination, ports, 6);
    let v6 = hash_v6(&key, [1, 2, 3, 4], [5, 6, 7, 8], ports, 17);
    for (name, hash) in [("hash_v4", v4), ("hash_v6", v6)] {
        let _ = writeln!(out, "{name}: {:#018x} {:#018x}", hash.low, hash.high);
    }
    let client = affinity(&key, 0x0123_4567_89ab_cdef);
    let bucket = affinity_bucket(u64::MAX, u32::MAX);
    let _ = writeln!(out, "affinity: {client:#018x}, bucket {bucket:#x}");
    let all = |low, high| FlowHash { low, high };
    for bit in 0..64 {
        let (low, high) = (all(1 << bit, 0), all(0, 1 << bit));
        let _ = writeln!(
            out,
            "hash bit {bit}: first {:#x}, second {:#x}, stripe {:#x}, tag {:#x}, port {:#x}",
            low.first_bucket(u32::MAX),
            low.second_bucket(u32::MAX),
            low.stripe(),
            high.tag(),
            high.port_start()
        );
    }
    let word = ReverseWord::key(77, 3, 12_345);
    let _ = writeln!(out, "reverse_bucket: {:#x}", reverse_bucket(&key, word, u32::MAX));
    for attempt in 0..4 {
        let _ = writeln!(out, "candidate {attempt}: {:#x}", candidate(v4.low, attempt));
    }
    let _ = writeln!(out, "filter_index_v4: {}", filter_index_v4(source));
    let _ = writeln!(out, "filter_index_v6: {}", filter_index_v6([1, 2, 3, 4]));
    let sum = Sum::ZERO.sub32(source).add32(destination).sub16(80).add16(8080);
    let _ =
        writeln!(out, "checksum difference: {:#x}, applied to 0x1234: {:#x}", sum.fold(), sum.apply(0x1234));
}
