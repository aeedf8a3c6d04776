//! What the fuzz targets run: any bytes become packets, and damage to the tables, at a gateway with live flows.
//!
//! Bytes are read front to back and never run out: behind their end come zeros, so that every input means something,
//! and a small change to it a small change. `lb-common/tests/datapath/fuzz_cases.rs` runs what once failed.

use std::{cell::RefCell, net::SocketAddr, vec, vec::Vec};

use super::{
    ACK, Array, Frame, Gateway, GatewayConfig, HostPacket, SYN, Seen, TAG_8021AD, TAG_8021Q, ledger,
    maps::{HostCells, HostMaps, Sizes},
};
use crate::{
    abi::{Config, Counter, FlowLogWord, ReactionWord, TCP, UDP, member_flags, vip_flags},
    clock::TICK_NS,
    datapath::{Cells, Verdict},
};

/// Longest frame: one page, as in the kernel.
const LONGEST: usize = 3_500;

/// Frames like those of live flows, changed, cut and lengthened anywhere. The tables must agree with each other
/// afterwards.
///
/// # Panics
/// Where something does not hold.
pub fn frames(data: &[u8]) {
    let mut input = Input(data);
    at_a_gateway(|scene| {
        while let Some(()) = input.next_packet() {
            let frame = scene.edited(&mut input);
            scene.send(&mut input, &frame, true);
        }
        ledger::check(&scene.gateway.maps).expect("tables that agree with each other");
    });
}

/// ICMP and ICMPv6 messages to VIPs and SNAT addresses that quote packets of live flows, changed and cut anywhere.
///
/// # Panics
/// Where something does not hold.
pub fn messages(data: &[u8]) {
    let mut input = Input(data);
    at_a_gateway(|scene| {
        while let Some(()) = input.next_packet() {
            let frame = scene.message(&mut input);
            scene.send(&mut input, &frame, true);
        }
        ledger::check(&scene.gateway.maps).expect("tables that agree with each other");
    });
}

/// The same frames and messages at a gateway whose tables and settings hold anything.
///
/// # Panics
/// Where something does not hold.
pub fn tables(data: &[u8]) {
    let mut input = Input(data);
    at_a_gateway(|scene| {
        scene.unsettle(&mut input);
        while let Some(()) = input.next_packet() {
            for _ in 0..input.below(12) {
                scene.damage(&mut input);
            }
            let frame = if input.chance(4) { scene.message(&mut input) } else { scene.edited(&mut input) };
            scene.send(&mut input, &frame, false);
        }
    });
}

std::thread_local! {
    /// To make a gateway takes longer than all that an input does with it.
    static SCENE: RefCell<Scene> = RefCell::new(Scene::new());
}

/// Runs something at a gateway that is always the same at first.
fn at_a_gateway(run: impl FnOnce(&mut Scene)) {
    SCENE.with_borrow_mut(|scene| {
        scene.restore();
        run(scene);
    });
}

/// Bytes, and then zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// Whether there is something left for another packet.
    fn next_packet(&self) -> Option<()> {
        (!self.0.is_empty()).then_some(())
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self, bytes: u32) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | self.byte() as u64)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bytes = if bound > 256 { 2 } else { 1 };
        self.number(bytes) as usize % bound.max(1)
    }

    /// Once in so many times; never where nothing is left.
    fn chance(&mut self, one_in: u8) -> bool {
        self.byte() % one_in == 1
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }
}

/// A gateway, and frames that mean something to it.
struct Scene {
    gateway: Gateway,
    /// Frames of clients, of backends, and of nobody.
    known: Vec<Vec<u8>>,
    /// Frames as they came out.
    sent: Vec<Vec<u8>>,
    /// Settings, time, and all cells of [`arrays`] as they were at first.
    config: Option<Config>,
    clock: u64,
    cells: Vec<u64>,
}

/// Whatever the program, or damage, may write to.
fn arrays(maps: &HostMaps) -> [&Array; 18] {
    [
        &maps.flows,
        &maps.reverse_v4,
        &maps.reverse_v6,
        &maps.members,
        &maps.backends,
        &maps.descriptors,
        &maps.rings,
        &maps.handshakes,
        &maps.affinity,
        &maps.syns,
        &maps.ports,
        &maps.last_hops,
        &maps.flow_stats,
        &maps.refusals,
        &maps.event_budget,
        &maps.address_filter,
        &maps.member_stats,
        // The last one counts; a wrong count damages nothing.
        &maps.counters,
    ]
}

/// Every cell of these arrays.
fn cells(maps: &HostMaps) -> impl Iterator<Item = (HostCells<'_>, usize)> {
    arrays(maps).into_iter().flat_map(|array| {
        let elements = (0..array.len()).filter_map(|index| array.get(index));
        elements.flat_map(|cells| (0..array.element_size() / 8).map(move |cell| (cells, cell)))
    })
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

const VIPS: [(&str, u8); 6] = [
    ("203.0.113.10:80", TCP),
    ("203.0.113.10:53", UDP),
    ("[2001:db8::10]:80", TCP),
    ("[2001:db8::10]:53", UDP),
    ("203.0.113.11:80", TCP),
    ("203.0.113.12:80", TCP),
];

impl Scene {
    fn new() -> Self {
        let settings = GatewayConfig {
            sizes: Sizes {
                flow_buckets: 4,
                reverse_v4_buckets: 4,
                reverse_v6_buckets: 4,
                services: 8,
                ring_pairs: 1024,
                members: 16,
                backends: 16,
                snat_stride: 1,
                flow_stats: 4,
                cpus: 1,
            },
            port_words: 1,
            ..GatewayConfig::default()
        };
        let mut gateway = Gateway::new(&settings, 5);
        for (vip, protocol) in VIPS {
            let vip = address(vip);
            let backends: [SocketAddr; 2] = if vip.is_ipv4() {
                ["10.0.0.1:8080", "10.0.0.2:8080"].map(address)
            } else {
                ["[fd00:1::1]:8080", "[fd00:1::2]:8080"].map(address)
            };
            let service = gateway.add_service(vip, protocol, &backends);
            gateway.set_reaction(service, ReactionWord::new(2, 5_000, true));
            gateway.set_flow_log(service, FlowLogWord::one_in(1));
            gateway.set_stay(service, [0, 40][service as usize % 2]);
        }
        gateway.add_vip(address(VIPS[0].0).ip(), vip_flags::ECHO);
        gateway.add_vip(address(VIPS[2].0).ip(), vip_flags::ECHO);
        gateway.add_vip(address(VIPS[4].0).ip(), vip_flags::NODE_ADDRESS);
        gateway.set_source_ranges(5, Some(&[(address("198.51.100.7:0").ip(), 32)]));
        for member in 1..=12 {
            let flags = gateway.member(member).flags;
            gateway.set_member_flags(member, flags | member_flags::COUNTED);
        }
        let (config, clock) = (gateway.maps.config, gateway.maps.clock());
        let (known, sent, cells_then) = (Vec::new(), Vec::new(), Vec::new());
        let mut scene = Self { gateway, known, sent, config, clock, cells: cells_then };
        for (vip, protocol) in VIPS {
            scene.open(address(vip), protocol);
        }
        drop(scene.gateway.maps.take_events());
        scene.cells = cells(&scene.gateway.maps).map(|(cells, cell)| cells.load(cell)).collect();
        scene
    }

    /// Makes everything what it was at first.
    fn restore(&mut self) {
        let maps = &mut self.gateway.maps;
        maps.config = self.config;
        maps.set_clock(self.clock);
        for ((cells, cell), then) in cells(maps).zip(&self.cells) {
            if cells.load(cell) != *then {
                cells.store(cell, *then);
            }
        }
    }

    /// A flow, established where it is the first one of its kind.
    fn open(&mut self, vip: SocketAddr, protocol: u8) {
        let client = address(if vip.is_ipv4() { "198.51.100.7:40000" } else { "[2001:db8:c::7]:40000" });
        let make = |source, destination, flags| match protocol {
            TCP => Frame::tcp(source, destination, flags),
            _ => Frame::udp(source, destination),
        };
        let syn = make(client, vip, SYN).build();
        let out = self.forwarded(&syn);
        let seen = Seen::parse(&out).expect("a whole packet");
        let answer = make(seen.destination, seen.source, SYN | ACK).numbers(7000, 1001).build();
        let refusal = make(seen.destination, seen.source, 0x14).numbers(0, 1001).build();
        let ack = make(client, vip, ACK).numbers(1001, 7001).payload(b"some data").build();
        self.sent.push(out);
        if vip.port() == 80 && vip.ip() != address(VIPS[4].0).ip() {
            let back = self.forwarded(&answer);
            let on = self.forwarded(&ack);
            self.sent.extend([back, on]);
        }
        let tagged = make(client, vip, ACK).tags(&[(TAG_8021AD, 7), (TAG_8021Q, 8)]).build();
        let other = SocketAddr::new(vip.ip(), 9);
        self.known.extend([syn, answer, refusal, ack, tagged, make(client, other, SYN).build()]);
        let (kind, from) = if vip.is_ipv4() { (8, client.ip()) } else { (128, client.ip()) };
        self.known.push(Frame::icmp(from, vip.ip(), kind, 0, [0, 1, 0, 2]).payload(&[9; 20]).build());
    }

    fn forwarded(&self, frame: &[u8]) -> Vec<u8> {
        let mut packet = HostPacket::new(frame);
        assert_eq!(self.gateway.maps.cpu(0).process(&mut packet), Verdict::Transmit);
        packet.bytes().to_vec()
    }

    /// One of the known frames, or none, with changes.
    fn edited(&self, input: &mut Input<'_>) -> Vec<u8> {
        let which = input.below(self.known.len() + 1);
        let frame = self.known.get(which).cloned().unwrap_or_default();
        edit(frame, input)
    }

    /// A message about one of the frames that were sent, or about anything.
    fn message(&self, input: &mut Input<'_>) -> Vec<u8> {
        let which = input.below(self.sent.len() + 1);
        let quoted = self.sent.get(which).cloned().unwrap_or_else(|| vec![0; 14]);
        let is_v4 = quoted.get(12) != Some(&0x86);
        let packet = edit(quoted[14..].to_vec(), input);
        let to = match (is_v4, input.below(3)) {
            (true, 0) => "192.168.0.2:0",
            (true, 1) => "203.0.113.10:0",
            (true, _) => "203.0.113.11:0",
            (false, 0) => "[fd00::2]:0",
            (false, _) => "[2001:db8::10]:0",
        };
        let from = address(if is_v4 { "172.16.0.1:0" } else { "[fd77::1]:0" });
        let kind = input.byte();
        let mut frame = Frame::icmp(from.ip(), address(to).ip(), kind, input.byte(), [0, 0, 5, 0xdc]);
        frame.payload = packet;
        frame.padding = input.below(20);
        if input.chance(8) {
            frame.ip_options = vec![1; 4 * input.below(11)];
        }
        if input.chance(8) {
            frame = frame.extension(60, 6 + 8 * input.below(9));
        }
        edit(frame.build(), input)
    }

    /// Runs the program on a frame, and checks what holds for every packet.
    fn send(&self, input: &mut Input<'_>, frame: &[u8], is_sound: bool) {
        let maps = &self.gateway.maps;
        maps.advance_clock(input.byte() as u64 * TICK_NS / 4);
        let mut packet = HostPacket::with_head_room(frame, input.below(65)).on(input.below(3) as u32);
        let before = maps.counts();
        let verdict = maps.cpu(0).process(&mut packet);
        let reasons: Vec<Counter> = Counter::ALL
            .iter()
            .zip(before.iter().zip(maps.counts()))
            .flat_map(|(counter, (before, after))| vec![*counter; after.wrapping_sub(*before) as usize])
            .filter(|counter| counter.name().starts_with("pass_") || counter.name().starts_with("drop_"))
            .collect();
        drop(maps.take_events());
        match verdict {
            Verdict::Pass => {
                assert!(matches!(reasons[..], [one] if one.name().starts_with("pass_")), "{reasons:?}");
                assert_eq!(packet.bytes(), frame, "what passes is untouched");
            }
            Verdict::Drop => {
                assert!(matches!(reasons[..], [one] if one.name().starts_with("drop_")), "{reasons:?}");
            }
            Verdict::Transmit | Verdict::Redirect(_) => {
                // The answer to a packet that was dropped, or a packet.
                assert!(reasons.len() <= 1, "{reasons:?}");
                if is_sound && Seen::parse(frame).is_ok() {
                    Seen::parse(packet.bytes()).expect("what came with right checksums leaves with such");
                }
            }
            other => panic!("{other:?} is for the program itself"),
        }
    }

    /// Other settings, whatever they are worth.
    fn unsettle(&mut self, input: &mut Input<'_>) {
        if input.chance(16) {
            self.gateway.maps.config = None;
            return;
        }
        let config = self.gateway.config_mut();
        for _ in 0..input.below(6) {
            let value = input.number(4) as u32;
            match input.below(14) {
                0 => config.flow_bucket_mask = value,
                1 => config.reverse_v4_mask = value,
                2 => config.reverse_v6_mask = value,
                3 => config.snat_v4_count = value,
                4 => config.snat_v6_count = value,
                5 => config.snat_stride = value,
                6 => config.member_count = value,
                7 => config.port_base = value as u16,
                // A bitmap has no more.
                8 => config.port_words = value as u16 % 257,
                9 => config.flow_stats_mask = value,
                10 => config.refusals_per_tick = value,
                11 => config.events_per_tick = value,
                12 => config.timeouts.half_open = value as u16,
                _ => config.timeouts.established = value as u16,
            }
        }
    }

    /// Writes anything anywhere.
    fn damage(&mut self, input: &mut Input<'_>) {
        let maps = &self.gateway.maps;
        let arrays = arrays(maps);
        let array = arrays[input.below(arrays.len() - 1)];
        let Some(cells) = array.get(input.below(array.len() as usize) as u32) else { return };
        let cell = input.below(array.element_size() / 8);
        let old = cells.load(cell);
        let new = match input.below(4) {
            0 => input.number(8),
            1 => old ^ 1 << input.below(64),
            2 => old ^ (input.byte() as u64) << (8 * input.below(8)),
            _ => u64::MAX - input.byte() as u64,
        };
        cells.store(cell, new);
    }
}

/// Changes, cuts and lengthens a frame.
fn edit(mut frame: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    for _ in 0..input.below(8) {
        if frame.is_empty() {
            break;
        }
        let place = input.below(frame.len().min(256));
        frame[place] = input.byte();
    }
    match input.below(8) {
        1 => frame.truncate(input.below(frame.len() + 1)),
        2 => {
            let count = input.below(64);
            let more = input.bytes(count);
            frame.extend(more);
        }
        3 => frame.resize((frame.len() + input.below(LONGEST)).min(LONGEST), 0x5a),
        _ => {}
    }
    frame
}
