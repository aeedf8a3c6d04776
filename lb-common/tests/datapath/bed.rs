//! What the scenarios share: a gateway, clients, backends, and steps whose every effect is compared.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    abi::{Config, Counter, FlowState, FlowWord, ServiceDescriptor, TCP, UDP},
    clock,
    datapath::Verdict,
    host::{ACK, Frame, Gateway, GatewayConfig, HostPacket, RST, SYN, Seen, ledger},
};

/// The backend's initial sequence number in every handshake.
pub(crate) const SERVER_ISN: u32 = 5000;

/// An address family with its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    V4,
    V6,
}

impl Net {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn ip(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self {
            Self::V4 => v4.into(),
            Self::V6 => v6.into(),
        }
    }

    pub(crate) fn vip(self) -> SocketAddr {
        (self.ip([203, 0, 113, 10], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10]), 80).into()
    }

    pub(crate) fn snat(self) -> IpAddr {
        self.ip([192, 168, 0, 2], [0xfd00, 0, 0, 0, 0, 0, 0, 2])
    }

    /// A client; `n` numbers address and port.
    pub(crate) fn client(self, n: u32) -> SocketAddr {
        let ip = self.ip([198, 51, 100, n as u8], [0x2001, 0xdb8, 2, 0, 0, 0, 0, n as u16 & 0xff]);
        (ip, (30_000 + n % 30_000) as u16).into()
    }

    pub(crate) fn backend(self, n: u8) -> SocketAddr {
        (self.ip([10, 0, 0, n], [0xfd10, 0, 0, 0, 0, 0, 0, n.into()]), 8080).into()
    }

    /// A host that nobody has to do with.
    pub(crate) fn stranger(self) -> IpAddr {
        self.ip([192, 0, 2, 99], [0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 0x99])
    }
}

/// A connection as both sides see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) protocol: u8,
    pub(crate) client: SocketAddr,
    pub(crate) vip: SocketAddr,
    pub(crate) snat: SocketAddr,
    pub(crate) backend: SocketAddr,
}

impl Flow {
    /// A TCP segment of the client's; it acknowledges the handshake.
    pub(crate) fn request(&self, flags: u8) -> Frame {
        let ack = if flags & ACK != 0 { SERVER_ISN + 1 } else { 0 };
        Frame::tcp(self.client, self.vip, flags).numbers(1001, ack)
    }

    /// A TCP segment of the backend's.
    pub(crate) fn reply(&self, flags: u8) -> Frame {
        let seq = if flags & SYN != 0 { SERVER_ISN } else { SERVER_ISN + 1 };
        Frame::tcp(self.backend, self.snat, flags).numbers(seq, 1001)
    }

    pub(crate) fn datagram(&self) -> Frame {
        Frame::udp(self.client, self.vip).payload(b"request")
    }

    pub(crate) fn answer(&self) -> Frame {
        Frame::udp(self.backend, self.snat).payload(b"answer")
    }
}

/// What one packet did.
#[derive(Debug)]
pub(crate) struct Step {
    sent: Vec<u8>,
    packet: HostPacket,
    pub(crate) verdict: Verdict,
    moved: Vec<Counter>,
}

impl Step {
    /// Asserts the verdict, and that exactly these counters moved: each by how often it is listed.
    #[track_caller]
    pub(crate) fn expect(self, verdict: Verdict, counters: &[Counter]) -> Self {
        let mut counters = counters.to_vec();
        counters.sort();
        assert_eq!((self.verdict, &self.moved), (verdict, &counters));
        if verdict == Verdict::Pass {
            assert_eq!(self.packet.bytes(), self.sent, "what passes is untouched");
        }
        self
    }

    #[track_caller]
    pub(crate) fn passes(self, counter: Counter) -> Self {
        self.expect(Verdict::Pass, &[counter])
    }

    #[track_caller]
    pub(crate) fn drops(self, counter: Counter) -> Self {
        self.expect(Verdict::Drop, &[counter])
    }

    /// Asserts that it was dropped for this reason, and that its sender is told.
    #[track_caller]
    pub(crate) fn refuses(self, counter: Counter) -> Self {
        self.expect(Verdict::Transmit, &[counter, Counter::RefusalSent])
    }

    #[track_caller]
    pub(crate) fn sends(self, counters: &[Counter]) -> Self {
        self.expect(Verdict::Transmit, counters)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.packet.bytes()
    }

    /// The frame as it left, all checksums verified.
    #[track_caller]
    pub(crate) fn seen(&self) -> Seen {
        Seen::parse(self.bytes()).unwrap()
    }

    /// Asserts that it is on its way to the flow's backend.
    #[track_caller]
    pub(crate) fn reaches_backend_of(self, flow: &Flow) -> Self {
        let seen = self.seen();
        assert_eq!((seen.source, seen.destination, seen.protocol), (flow.snat, flow.backend, flow.protocol));
        self
    }

    /// Asserts that it is on its way to the flow's client.
    #[track_caller]
    pub(crate) fn reaches_client_of(self, flow: &Flow) -> Self {
        let seen = self.seen();
        assert_eq!((seen.source, seen.destination, seen.protocol), (flow.vip, flow.client, flow.protocol));
        self
    }
}

/// A gateway under test.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) gateway: Gateway,
}

impl Bed {
    pub(crate) fn new(settings: &GatewayConfig) -> Self {
        Self { gateway: Gateway::new(settings, 42) }
    }

    /// A gateway with a TCP and a UDP service at the VIP and these backends.
    pub(crate) fn with_backends(net: Net, count: u8) -> Self {
        Self::sized(net, count, &GatewayConfig::default())
    }

    pub(crate) fn sized(net: Net, count: u8, settings: &GatewayConfig) -> Self {
        let mut bed = Self::new(settings);
        let backends: Vec<_> = (1..=count).map(|n| net.backend(n)).collect();
        bed.gateway.add_service(net.vip(), TCP, &backends);
        bed.gateway.add_service(net.vip(), UDP, &backends);
        bed
    }

    /// Sends a frame through the program on processor 0.
    #[track_caller]
    pub(crate) fn send(&self, frame: &Frame) -> Step {
        self.send_bytes(&frame.build())
    }

    #[track_caller]
    pub(crate) fn send_bytes(&self, frame: &[u8]) -> Step {
        self.send_packet(HostPacket::new(frame))
    }

    #[track_caller]
    pub(crate) fn send_packet(&self, mut packet: HostPacket) -> Step {
        let maps = &self.gateway.maps;
        let sent = packet.bytes().to_vec();
        let before = maps.counts();
        let verdict = maps.cpu(0).process(&mut packet);
        let moved = Counter::ALL
            .iter()
            .zip(before.iter().zip(maps.counts()))
            .flat_map(|(counter, (before, after))| vec![*counter; (after - before) as usize])
            .collect();
        self.check();
        Step { sent, packet, verdict, moved }
    }

    /// Sends a frame whose effects are judged later, all at once.
    pub(crate) fn send_unchecked(&self, frame: &Frame) -> (Verdict, HostPacket) {
        let mut packet = HostPacket::new(&frame.build());
        (self.gateway.maps.cpu(0).process(&mut packet), packet)
    }

    /// Establishes a flow as one of very many; `None` where the program refuses it.
    pub(crate) fn establish_unchecked(&self, client: SocketAddr, vip: SocketAddr) -> Option<Flow> {
        let (verdict, packet) = self.send_unchecked(&Frame::tcp(client, vip, SYN));
        if verdict == Verdict::Drop {
            return None;
        }
        let seen = Seen::parse(packet.bytes()).unwrap();
        let flow = Flow { protocol: TCP, client, vip, snat: seen.source, backend: seen.destination };
        assert_eq!(self.send_unchecked(&flow.reply(SYN | ACK)).0, Verdict::Transmit);
        assert_eq!(self.send_unchecked(&flow.request(ACK)).0, Verdict::Transmit);
        Some(flow)
    }

    /// Checks the tables against each other.
    #[track_caller]
    pub(crate) fn check(&self) {
        if let Err(problem) = ledger::check(&self.gateway.maps) {
            panic!("the tables disagree: {problem}");
        }
    }

    /// Opens a TCP flow: the client's SYN.
    #[track_caller]
    pub(crate) fn open(&self, client: SocketAddr, vip: SocketAddr) -> Flow {
        self.begin(&Frame::tcp(client, vip, SYN), TCP, &[Counter::FlowOpened])
    }

    /// Opens a UDP flow.
    #[track_caller]
    pub(crate) fn open_udp(&self, client: SocketAddr, vip: SocketAddr) -> Flow {
        self.begin(&Frame::udp(client, vip), UDP, &[Counter::FlowOpened])
    }

    /// Sends a flow's first packet, of which exactly these counters are expected.
    #[track_caller]
    pub(crate) fn begin(&self, frame: &Frame, protocol: u8, counters: &[Counter]) -> Flow {
        let seen = self.send(frame).sends(counters).seen();
        let (client, vip) = (frame.source, frame.destination);
        Flow { protocol, client, vip, snat: seen.source, backend: seen.destination }
    }

    /// Opens a TCP flow and completes its handshake.
    #[track_caller]
    pub(crate) fn establish(&self, client: SocketAddr, vip: SocketAddr) -> Flow {
        let flow = self.open(client, vip);
        self.accept(&flow);
        flow
    }

    /// The rest of a handshake.
    #[track_caller]
    pub(crate) fn accept(&self, flow: &Flow) {
        self.send(&flow.reply(SYN | ACK)).sends(&[]).reaches_client_of(flow);
        self.send(&flow.request(ACK)).sends(&[Counter::FlowEstablished]).reaches_backend_of(flow);
        assert_eq!(self.state(flow), Some(FlowState::Established));
    }

    /// Opens a TCP flow that the backend refuses.
    #[track_caller]
    pub(crate) fn refuse(&self, client: SocketAddr, vip: SocketAddr) -> Flow {
        let flow = self.open(client, vip);
        self.send(&flow.reply(RST | ACK)).sends(&[Counter::ConnectRefused]).reaches_client_of(&flow);
        assert_eq!(self.state(&flow), Some(FlowState::Closed));
        flow
    }

    /// The word of the flow that has the flow's SNAT port at its backend.
    pub(crate) fn word(&self, flow: &Flow) -> Option<FlowWord> {
        let config = self.config();
        ledger::forwards(&self.gateway.maps).into_iter().map(|forward| forward.word).find(|word| {
            let member = self.gateway.member(word.member());
            let (snat, backend): (IpAddr, IpAddr) = match member.family {
                4 => (
                    config.snat_v4[word.snat() as usize].into(),
                    <[u8; 4]>::try_from(&member.address[..4]).unwrap().into(),
                ),
                _ => (config.snat_v6[word.snat() as usize].into(), member.address.into()),
            };
            let service: ServiceDescriptor = self.gateway.maps.descriptors.read(member.service);
            (snat, word.port(), service.protocol) == (flow.snat.ip(), flow.snat.port(), flow.protocol)
                && (backend, u16::from_be_bytes(member.port)) == (flow.backend.ip(), flow.backend.port())
        })
    }

    pub(crate) fn state(&self, flow: &Flow) -> Option<FlowState> {
        self.word(flow).map(FlowWord::state)
    }

    /// The index of a flow's member.
    #[track_caller]
    pub(crate) fn member_of(&self, flow: &Flow) -> u32 {
        self.word(flow).expect("a live flow").member()
    }

    pub(crate) fn config(&self) -> &Config {
        self.gateway.maps.config.as_ref().unwrap()
    }

    /// Number of live flows.
    pub(crate) fn flows(&self) -> usize {
        ledger::forwards(&self.gateway.maps).len()
    }

    /// Moves the clock on.
    pub(crate) fn wait(&self, time: Duration) {
        self.gateway.maps.advance_clock(time.as_nanos() as u64);
    }

    pub(crate) fn tick(&self) -> u16 {
        clock::tick(self.gateway.maps.clock())
    }
}

pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
