//! What the host's build chose, where it may choose: slots, ports, and who makes room.

use lb_common::abi::{Counter, FlowState};

use super::{
    Turn,
    agent::is_same,
    flows::{Flow, Key, Path, Port, Worth, is_half_open, port_worth, slot_of, word_at, worth},
};

/// What a new flow was given.
pub(super) struct Given {
    /// Slot and its version.
    pub slot: (u32, u16),
    pub snat: u8,
    pub port: u16,
}

impl Turn<'_> {
    fn buckets(&self, key: &Key) -> [u32; 2] {
        let (hash, mask) = (self.agent.hash(key), self.agent.config.flow_bucket_mask);
        [hash.first_bucket(mask), hash.second_bucket(mask)]
    }

    fn in_bucket(&self, bucket: u32) -> impl Iterator<Item = &Flow> {
        self.model.flows.values().filter(move |flow| flow.slot.0 / 4 == bucket)
    }

    /// Only flows that stay keep a new one out.
    pub(super) fn table_may_be_full(&self, key: &Key) -> Result<(), String> {
        for bucket in self.buckets(key) {
            let stay = self
                .in_bucket(bucket)
                .filter(|flow| !is_half_open(flow.state) && flow.state != FlowState::Closed);
            if stay.count() < 4 {
                return Err(format!("table full, but there was room in bucket {bucket}"));
            }
        }
        Ok(())
    }

    /// Slot, SNAT address and port of a new flow to a member, once those who made room are gone; `None`: no port.
    pub(super) fn given(&mut self, key: &Key, member: u32) -> Result<Option<Given>, String> {
        let tag = self.agent.hash(key).tag();
        let is_open = self.host_counted(Counter::FlowOpened) > 0;
        let buckets = self.buckets(key);
        self.evict_from_slots()?;
        let reclaimed = self.evict_from_ports(None)?;
        if !is_open {
            return if self.host_counted(Counter::DropPortsExhausted) > 0 {
                self.ports_may_be_exhausted(member).map(|()| None)
            } else {
                Err(format!("a new flow {key:?} to member {member} was not made"))
            };
        }
        let Some((slot, word)) = slot_of(self.agent.maps, buckets, tag) else {
            return Err(format!("a new flow {key:?} is not in the table"));
        };
        if word.member() != member {
            return Err(format!("member: model {member}, host {}", word.member()));
        }
        let half_open = self.in_bucket(slot / 4).filter(|flow| is_half_open(flow.state)).count();
        if half_open >= 2 {
            return Err(format!("more than half of bucket {} is half-open", slot / 4));
        }
        if reclaimed {
            self.count(Counter::PortReclaimed);
        }
        self.is_free(member, word.snat(), word.port())?;
        Ok(Some(Given { slot: (slot, word.version()), snat: word.snat(), port: word.port() }))
    }

    /// Whether a flow may be given a port.
    pub(super) fn is_free(&self, member: u32, snat: u8, port: u16) -> Result<(), String> {
        let line = self.agent.member(member);
        let key = Port { backend: line.backend, snat, port };
        let addresses = self.agent.snat_addresses(line.family == 4).len();
        if !self.agent.is_snat_port(port) || usize::from(snat) >= addresses {
            return Err(format!("{key:?} is out of range"));
        }
        match self.model.paths.get(&key) {
            Some(owner) => Err(format!("{key:?} belongs to {owner:?}")),
            None => Ok(()),
        }
    }

    /// Flows that the host no longer has.
    fn vanished(&self) -> Vec<Key> {
        let is_gone = |flow: &Flow| {
            let word = word_at(self.agent.maps, flow.slot.0);
            word.version() != flow.slot.1 || !word.state().is_live()
        };
        let gone = self.model.flows.iter().filter(|(_, flow)| is_gone(flow));
        gone.map(|(key, _)| *key).collect()
    }

    /// The flow whose slot was needed: the slot has another version by now.
    fn evict_from_slots(&mut self) -> Result<(), String> {
        let tick = self.tick();
        for key in self.vanished() {
            let flow = self.model.flows[&key].clone();
            if word_at(self.agent.maps, flow.slot.0).version() == flow.slot.1 {
                continue;
            }
            let member = self.agent.member(flow.member);
            let is_current = is_same(&member, flow.generation);
            let path = self.path_of(&flow, &key);
            let seen = path.as_ref().filter(|_| is_current).map(|(_, path)| path.seen);
            match worth(&self.agent.config, &flow, seen, tick) {
                Worth::Dead => self.count(Counter::FlowReclaimed),
                Worth::HalfOpen => self.count(Counter::FlowDisplaced),
                Worth::Live => return Err(format!("{key:?}, a live flow, lost its slot: {flow:?}")),
            }
            self.model.flows.remove(&key);
            // What a member leaves behind that is none any more is the sweep's.
            if is_current && let Some((port, _)) = path {
                self.model.paths.remove(&port);
                if flow.state != FlowState::Closed {
                    self.log(member.service, &key);
                }
            }
        }
        Ok(())
    }

    /// Flows whose port was needed, or their place in the reverse table; whether there were any.
    pub(super) fn evict_from_ports(&mut self, spared: Option<&Key>) -> Result<bool, String> {
        let tick = self.tick();
        let gone: Vec<_> = self.vanished().into_iter().filter(|key| Some(key) != spared).collect();
        for key in &gone {
            let flow = self.model.flows[key].clone();
            let Some((port, path)) = self.path_of(&flow, key) else {
                return Err(format!("{key:?} is gone, and held no port"));
            };
            if port_worth(&self.agent.config, &flow, Some(path.seen), tick) == Worth::Live {
                return Err(format!("{key:?}, a live flow, lost its port: {flow:?}"));
            }
            self.model.flows.remove(key);
            self.model.paths.remove(&port);
            if flow.state != FlowState::Closed {
                let service = self.agent.member(path.member).service;
                self.log(service, key);
            }
        }
        if gone.len() > 2 {
            return Err(format!("{} flows made room for one", gone.len()));
        }
        Ok(!gone.is_empty())
    }

    fn ports_may_be_exhausted(&self, member: u32) -> Result<(), String> {
        let line = self.agent.member(member);
        let is_v4 = line.family == 4;
        let backend = self.model.paths.keys().filter(|port| port.backend == line.backend).count();
        let family = self.model.paths.values().filter(|path| path.key.client.is_ipv4() == is_v4).count();
        // Half of the ports, or a bucket of the reverse table.
        if backend < usize::from(self.agent.config.port_words) * 32 && family < 4 {
            return Err(format!("{backend} ports of backend {} are taken, not all", line.backend));
        }
        Ok(())
    }

    /// A flow's port and path, if it has them.
    pub(super) fn path_of(&self, flow: &Flow, key: &Key) -> Option<(Port, Path)> {
        let backend = self.agent.member(flow.member).backend;
        let port = Port { backend, snat: flow.snat, port: flow.port };
        let path = self.model.paths.get(&port)?;
        (path.key == *key && path.flow == flow.number).then(|| (port, path.clone()))
    }

    /// Gives a flow's port back, unless its member is none any more: that is left to the sweep.
    pub(super) fn forget_path_of(&mut self, key: &Key, flow: &Flow) {
        if is_same(&self.agent.member(flow.member), flow.generation)
            && let Some((port, _)) = self.path_of(flow, key)
        {
            self.model.paths.remove(&port);
        }
    }
}
