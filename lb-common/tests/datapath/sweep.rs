//! The agent's sweep: expiry in two passes, and mending what a kill left behind.

use std::cell::Cell;

use lb_common::{
    abi::{Config, FlowState, LAST_HOPS, PORT_BITMAP_WORDS},
    clock::TICK_NS,
    datapath::{
        Cells, Family, Tables, V4, V6, Verdict,
        sweep::{self, Ended, FlowView, Observer, Suspects},
    },
    host::{ACK, FIN, Frame, GatewayConfig, HostCells, HostCpu, RST, SYN, ledger},
};

use crate::bed::{Bed, Net, seconds};

/// What a pass over all tables saw and did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) live: usize,
    pub(crate) evicted: usize,
    pub(crate) mended: usize,
    pub(crate) last_hops: Vec<u16>,
    unwanted: Option<u32>,
}

impl Observer for Report {
    fn flow(&mut self, _state: FlowState, _member: u32) {
        self.live += 1;
    }

    fn evicted(&mut self, _ended: &Ended) {
        self.evicted += 1;
    }

    fn last_hop(&mut self, index: u16) {
        self.last_hops.push(index);
    }

    fn mended(&mut self) {
        self.mended += 1;
    }

    fn is_unwanted(&self, member: u32) -> bool {
        self.unwanted == Some(member)
    }
}

/// One pass over the flows and the reverse tables.
pub(crate) fn sweep(bed: &Bed) -> Report {
    sweep_without(bed, None)
}

fn sweep_without(bed: &Bed, unwanted: Option<u32>) -> Report {
    let maps = &bed.gateway.maps;
    let (tables, config) = (&maps.cpu(0), bed.config());
    let mut report = Report { unwanted, ..Report::default() };
    for bucket in 0..maps.flows.len() {
        sweep::flow_bucket(tables, config, bucket, bed.tick(), &mut report);
    }
    for bucket in 0..maps.reverse_v4.len() {
        sweep::reverse_bucket::<V4, _>(tables, config, bucket, &mut report);
    }
    for bucket in 0..maps.reverse_v6.len() {
        sweep::reverse_bucket::<V6, _>(tables, config, bucket, &mut report);
    }
    report
}

/// The two passes that evict what has expired.
pub(crate) fn sweep_twice(bed: &Bed) {
    sweep(bed);
    sweep(bed);
    bed.check();
}

fn views(bed: &Bed) -> Vec<FlowView> {
    let maps = &bed.gateway.maps;
    let mut views = Vec::new();
    for bucket in 0..maps.reverse_v4.len().max(maps.reverse_v6.len()) {
        sweep::all_flows(&maps.cpu(0), bucket, bed.tick(), |view| views.push(view));
    }
    views
}

#[test]
fn the_first_pass_dooms_and_the_second_evicts() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        assert_eq!(sweep(&bed).evicted, 0);
        bed.wait(seconds(3602));
        let first = sweep(&bed);
        assert_eq!((first.live, first.evicted), (1, 0));
        assert!(bed.word(&flow).unwrap().is_doomed());
        let second = sweep(&bed);
        assert_eq!((second.live, second.evicted, second.mended), (1, 1, 0));
        assert_eq!((bed.flows(), ledger::taken_ports(&bed.gateway.maps).len()), (0, 0));
        bed.check();
    }
}

#[test]
fn a_packet_between_the_passes_saves_the_flow() {
    for net in Net::BOTH {
        for from_client in [true, false] {
            let bed = Bed::with_backends(net, 1);
            let flow = bed.establish(net.client(1), net.vip());
            bed.wait(seconds(3602));
            sweep(&bed);
            match from_client {
                true => bed.send(&flow.request(ACK)).sends(&[]).reaches_backend_of(&flow),
                false => bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(&flow),
            };
            assert_eq!(sweep(&bed).evicted, 0);
            let word = bed.word(&flow).unwrap();
            assert!(!word.is_doomed() && word.state() == FlowState::Established);
        }
    }
}

#[test]
fn a_state_that_moves_takes_the_doom_away() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.establish(net.client(1), net.vip());
    bed.wait(seconds(3602));
    sweep(&bed);
    bed.send(&flow.request(FIN | ACK)).sends(&[]);
    assert!(!bed.word(&flow).unwrap().is_doomed());
    assert_eq!(bed.state(&flow), Some(FlowState::ClientFin));
}

#[test]
fn each_state_lives_for_its_own_time() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let syn_sent = bed.open(net.client(1), net.vip());
        let syn_acked = bed.open(net.client(2), net.vip());
        bed.send(&syn_acked.reply(SYN | ACK)).sends(&[]);
        let established = bed.establish(net.client(3), net.vip());
        let client_reset = bed.establish(net.client(4), net.vip());
        bed.send(&client_reset.request(RST)).sends(&[]);
        let backend_reset = bed.establish(net.client(5), net.vip());
        bed.send(&backend_reset.reply(RST)).sends(&[]);
        let closed = bed.refuse(net.client(6), net.vip());
        let half_closed = bed.establish(net.client(7), net.vip());
        bed.send(&half_closed.request(FIN | ACK)).sends(&[]);
        let shortest = [syn_sent, syn_acked, client_reset, backend_reset];
        bed.wait(seconds(10));
        sweep_twice(&bed);
        assert!(shortest.iter().all(|flow| bed.state(flow).is_some()), "not before the time");
        bed.wait(seconds(1));
        sweep_twice(&bed);
        assert!(shortest.iter().all(|flow| bed.state(flow).is_none()));
        bed.wait(seconds(49));
        sweep_twice(&bed);
        assert_eq!(bed.state(&closed), Some(FlowState::Closed));
        bed.wait(seconds(1));
        sweep_twice(&bed);
        assert_eq!(bed.state(&closed), None);
        bed.wait(seconds(3538));
        sweep_twice(&bed);
        assert_eq!(bed.state(&established), Some(FlowState::Established));
        assert_eq!(bed.state(&half_closed), Some(FlowState::ClientFin));
        bed.wait(seconds(2));
        sweep_twice(&bed);
        assert_eq!(bed.flows(), 0);
    }
}

#[test]
fn unwanted_flows_go_at_once() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 2);
    let flows: Vec<_> = (0..20).map(|n| bed.establish(net.client(n), net.vip())).collect();
    let member = bed.member_of(&flows[0]);
    let doomed: Vec<_> = flows.iter().filter(|flow| bed.member_of(flow) == member).collect();
    assert_eq!(sweep_without(&bed, Some(member)).evicted, doomed.len());
    bed.check();
    assert_eq!(bed.flows(), 20 - doomed.len());
}

#[test]
fn a_reverse_entry_whose_flow_is_gone_is_mended() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        bed.establish(net.client(1), net.vip());
        // What a processor leaves that stops between the two steps of an eviction.
        let cells = bed.gateway.maps.flows.get(ledger::forwards(&bed.gateway.maps)[0].flow.slot / 4).unwrap();
        (0..8).step_by(2).for_each(|word| cells.store(word, cells.load(word) & !0xf));
        assert_eq!((bed.flows(), ledger::backwards(&bed.gateway.maps).len()), (0, 1));
        assert_eq!(sweep(&bed).mended, 1);
        bed.check();
        assert!(ledger::taken_ports(&bed.gateway.maps).is_empty());
    }
}

fn sweep_ports<F: Family>(bed: &Bed, suspects: &mut Suspects) -> usize {
    let mut report = Report::default();
    sweep::ports::<F, _>(&bed.gateway.maps.cpu(0), bed.config(), 1, 0, suspects, &mut report);
    report.mended
}

#[test]
fn a_port_without_an_entry_is_given_back_in_the_second_pass() {
    let bed = Bed::with_backends(Net::V4, 1);
    bed.establish(Net::V4.client(1), Net::V4.vip());
    let kept = ledger::taken_ports(&bed.gateway.maps);
    let bitmap = bed.gateway.maps.ports.get(1).unwrap();
    let leaked = [(0, 1 << 3), (17, 1 << 63), (255, 1)];
    for (word, bit) in leaked {
        bitmap.fetch_or(word, bit);
    }
    let mut suspects = [0; PORT_BITMAP_WORDS];
    assert_eq!(sweep_ports::<V4>(&bed, &mut suspects), 0);
    // One of them was only on its way into use, by now it has been given back and taken again.
    bitmap.fetch_and(0, !(1 << 3));
    assert_eq!(sweep_ports::<V4>(&bed, &mut suspects), 2);
    assert_eq!(ledger::taken_ports(&bed.gateway.maps), kept);
    assert_eq!(sweep_ports::<V4>(&bed, &mut suspects), 0);
}

/// A processor's view on which something else happens while it looks into the reverse table for the second time.
struct Interrupted<'a> {
    cpu: HostCpu<'a>,
    looks: Cell<u32>,
    interruption: &'a dyn Fn(),
}

impl<'a> Tables for Interrupted<'a> {
    type Cells = HostCells<'a>;

    fn config(&self) -> Option<&Config> {
        self.cpu.config()
    }

    fn flow_bucket(&self, index: u32) -> Option<HostCells<'a>> {
        self.cpu.flow_bucket(index)
    }

    fn handshakes(&self, index: u32) -> Option<HostCells<'a>> {
        self.cpu.handshakes(index)
    }

    fn lock(&self, index: u32) -> Option<HostCells<'a>> {
        self.cpu.lock(index)
    }

    fn reverse_v4_bucket(&self, index: u32) -> Option<HostCells<'a>> {
        self.looks.set(self.looks.get() + 1);
        if self.looks.get() == 2 {
            (self.interruption)();
        }
        self.cpu.reverse_v4_bucket(index)
    }

    fn reverse_v6_bucket(&self, index: u32) -> Option<HostCells<'a>> {
        self.cpu.reverse_v6_bucket(index)
    }

    fn ports(&self, index: u32) -> Option<HostCells<'a>> {
        self.cpu.ports(index)
    }

    fn last_hop(&self, index: u32) -> Option<HostCells<'a>> {
        self.cpu.last_hop(index)
    }

    fn member(&self, index: u32) -> Option<HostCells<'a>> {
        self.cpu.member(index)
    }

    fn backend(&self, index: u32) -> Option<HostCells<'a>> {
        self.cpu.backend(index)
    }
}

#[test]
fn a_port_that_is_given_out_anew_under_the_sweep_stays_taken() {
    let net = Net::V4;
    let settings = GatewayConfig { port_words: 1, ..GatewayConfig::default() };
    let bed = Bed::sized(net, 1, &settings);
    let bitmap = bed.gateway.maps.ports.get(1).unwrap();
    bitmap.fetch_or(0, u64::MAX);
    // The first port was taken when the sweep loaded the bits, and had lost its entry when it looked for that.
    let given_out_anew = || {
        bitmap.fetch_and(0, !1);
        assert_eq!(bed.send_unchecked(&Frame::tcp(net.client(1), net.vip(), SYN)).0, Verdict::Transmit);
    };
    let tables =
        Interrupted { cpu: bed.gateway.maps.cpu(0), looks: Cell::new(0), interruption: &given_out_anew };
    let mut suspects = [u64::MAX; PORT_BITMAP_WORDS];
    sweep::ports::<V4, _>(&tables, bed.config(), 1, 0, &mut suspects, &mut Report::default());
    assert_eq!((bed.flows(), bitmap.load(0)), (1, 1), "its bit, and none of the leaked ones");
    bed.check();
}

#[test]
fn a_flow_seen_after_the_sweep_read_the_clock_is_not_old() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flows = [1, 2, 3].map(|n| bed.establish(net.client(n), net.vip()));
        bed.gateway.maps.set_clock(bed.gateway.maps.clock() - TICK_NS);
        sweep_twice(&bed);
        assert!(flows.iter().all(|flow| bed.state(flow) == Some(FlowState::Established)));
        assert!(flows.iter().all(|flow| !bed.word(flow).unwrap().is_doomed()));
        assert!(views(&bed).iter().all(|view| view.idle == 0));
    }
}

#[test]
fn a_backend_is_free_of_ports_when_its_last_flow_is_gone() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let tables = &bed.gateway.maps.cpu(0);
        assert!(sweep::has_no_ports(tables, bed.config(), 1));
        bed.establish(net.client(1), net.vip());
        assert!(!sweep::has_no_ports(tables, bed.config(), 1));
        bed.wait(seconds(3602));
        sweep_twice(&bed);
        assert!(sweep::has_no_ports(tables, bed.config(), 1));
    }
}

#[test]
fn a_last_hop_that_no_flow_names_is_freed_after_a_quiet_time() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    bed.establish(net.client(1), net.vip());
    let [index] = sweep(&bed).last_hops[..] else { panic!("one flow, one last hop") };
    let maps = &bed.gateway.maps;
    let free = |quiet| sweep::free_last_hop(&maps.cpu(0), index, bed.tick(), quiet);
    assert!(!free(8), "used just now");
    bed.wait(seconds(10));
    assert!(!free(u16::MAX), "not quiet for long enough");
    assert!(free(8));
    assert!(!free(8), "free already");
    let others = (0..LAST_HOPS as u16).filter(|other| *other != index);
    assert!(others.into_iter().all(|other| !sweep::free_last_hop(&maps.cpu(0), other, bed.tick(), 8)));
}

#[test]
fn flows_are_shown_as_they_are() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 3);
        let flow = bed.establish(net.client(1), net.vip());
        bed.open_udp(net.client(2), net.vip());
        bed.wait(seconds(3));
        let views = views(&bed);
        assert_eq!(views.len(), 2);
        let view = views.iter().find(|view| view.state == FlowState::Established).unwrap();
        let client: std::net::IpAddr = match view.family {
            4 => <[u8; 4]>::try_from(&view.client[..4]).unwrap().into(),
            _ => view.client.into(),
        };
        assert_eq!((client, u16::from_be_bytes(view.client_port)), (flow.client.ip(), flow.client.port()));
        assert_eq!((view.snat, view.snat_port), (0, flow.snat.port()));
        assert_eq!(view.member, bed.member_of(&flow));
        assert_eq!(view.backend, bed.gateway.member(view.member).backend);
        assert!((11..=12).contains(&view.idle), "3 s are 11 ticks: {}", view.idle);
    }
}
