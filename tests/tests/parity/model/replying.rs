//! A backend's packet.

use lb_common::abi::{Counter, FlowState, member_flags};

use super::{
    End, Turn,
    agent::{is_same, is_tcp},
    flows::{BackendMove, Flow, Path, Port, backend_move},
    fragments::Way,
    packet::{Packet, Shape},
    rewriting,
};

impl Turn<'_> {
    /// Whose port a packet is to.
    pub(super) fn port_of(&self, packet: &Packet) -> Option<Port> {
        let (from, to) = (packet.from(), packet.to());
        if !self.agent.is_snat_port(to.port()) {
            return None;
        }
        let snat = self.agent.snat(to.ip())?;
        let backend = self.agent.backend_at(from, packet.protocol)?;
        let port = Port { backend, snat, port: to.port() };
        self.model.paths.contains_key(&port).then_some(port)
    }

    /// `None`: it is no reply of a flow.
    pub(super) fn reply(&mut self, packet: &Packet) -> Result<Option<End>, String> {
        if !matches!(packet.shape, Shape::Whole | Shape::First) {
            return Ok(None);
        }
        let Some(port) = self.port_of(packet) else { return Ok(None) };
        let path = self.model.paths[&port].clone();
        if !is_same(&self.agent.member(path.member), path.generation) {
            return Ok(Some(End::Drop(Counter::DropStaleMember)));
        }
        if packet.ttl <= 1 {
            return Ok(Some(End::Drop(Counter::DropTtl)));
        }
        let end = if is_tcp(packet.protocol) {
            self.segment(packet, &port, &path)?
        } else {
            self.datagram(&port, &path);
            None
        };
        if end.is_some() {
            return Ok(end);
        }
        let tick = self.tick();
        self.path(&port).seen = tick;
        let is_syn = is_tcp(packet.protocol) && packet.flags().syn();
        self.give_back(packet, &path, is_syn).map(Some)
    }

    /// The flow that a path is of, if it still exists.
    pub(super) fn flow_of(&self, path: &Path) -> Option<&Flow> {
        self.model.flows.get(&path.key).filter(|flow| flow.number == path.flow)
    }

    fn path(&mut self, port: &Port) -> &mut Path {
        self.model.paths.get_mut(port).expect("a path that is known")
    }

    fn datagram(&mut self, port: &Port, path: &Path) {
        let Some(flow) = self.flow_of(path).filter(|_| !path.replied) else { return };
        match flow.state {
            FlowState::UdpNew => self.flow(&path.key).state = FlowState::UdpReplied,
            // What a server says again proves no client.
            FlowState::UdpReplied | FlowState::UdpAssured => {}
            _ => return,
        }
        self.path(port).replied = true;
    }

    /// Whether it moves the flow's state; an end where the segment goes no further.
    fn segment(&mut self, packet: &Packet, port: &Port, path: &Path) -> Result<Option<End>, String> {
        let flags = packet.flags();
        if path.replied && !flags.fin() && !flags.syn() && !flags.rst() {
            return Ok(None);
        }
        let Some(flow) = self.flow_of(path).cloned() else { return Ok(None) };
        if (flow.member, flow.snat, flow.port) != (path.member, port.snat, port.port) {
            return Ok(Some(End::Drop(Counter::DropMoved)));
        }
        match backend_move(flow.state, flags) {
            BackendMove::Stay => {
                if !flags.rst() {
                    self.path(port).replied = true;
                }
            }
            BackendMove::Answer => {
                if flow.state != FlowState::SynAcked {
                    self.flow(&path.key).state = FlowState::SynAcked;
                    self.model.trips.entry(port.backend).or_default().errors = 0;
                }
                self.flow(&path.key).server_isn = Some(packet.sequence());
                self.path(port).replied = true;
            }
            // One to a SYN in fragments is told nobody.
            BackendMove::Refuse if packet.shape != Shape::Whole => {
                return Ok(Some(End::Drop(Counter::DropFragment)));
            }
            BackendMove::Refuse => return self.refused(packet, port, path).map(Some),
            BackendMove::Swallow => return Ok(Some(End::Drop(Counter::DropRefused))),
            BackendMove::To(state) => {
                self.flow(&path.key).state = state;
                match state {
                    FlowState::Closed => {
                        let service = self.agent.member(path.member).service;
                        self.log(service, &path.key);
                    }
                    FlowState::BackendReset => self.path(port).replied = false,
                    _ => self.path(port).replied = true,
                }
            }
        }
        Ok(None)
    }

    /// Sends a backend's packet to the client.
    pub(super) fn give_back(&mut self, packet: &Packet, path: &Path, is_syn: bool) -> Result<End, String> {
        let member = self.agent.member(path.member);
        debug_assert!(member.flags & member_flags::VALID != 0);
        if !self.fits(packet, path.back.mtu) {
            return Ok(End::Drop(Counter::DropTooBig));
        }
        let Some(vip) = self.agent.vip_of(&member) else { return Ok(End::Drop(Counter::DropNotReady)) };
        let client = path.key.client;
        let way = Way::ToClient(client.ip(), path.back.clone());
        let (ends, incarnation) = ((vip.ip(), client.ip()), (path.member, path.generation));
        let id = self.begin(packet, ends, path.flow, incarnation, way)?;
        if packet.lacks_checksum() {
            return Ok(End::Drop(Counter::DropNoChecksum));
        }
        let bytes = rewriting::forwarded(packet, vip, client);
        if !self.put(packet, &path.back, rewriting::identified(packet, bytes, id)) {
            return Ok(End::Drop(Counter::DropNoRoom));
        }
        if is_syn && packet.shape == Shape::Whole {
            self.clamp(packet, [path.back.mtu, member.mtu]);
        }
        Ok(End::Send(path.back.ifindex))
    }
}
