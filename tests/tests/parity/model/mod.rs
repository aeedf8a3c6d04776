//! A second gateway: slow, made of plain maps, written from the design and its decisions and not from the packet
//! program. It says what has to become of each frame: verdict, bytes, and what is counted.
//!
//! It has no tables that fill up. Where the program chooses freely (which slot, which SNAT address and port, who makes
//! room for whom, whether there is room at all) it looks at what the host's build chose, checks that it was allowed to,
//! and goes on from there. What the agent writes it reads from the same maps, and the hashes that all gateways
//! share are the same functions.
//!
//! A new kind of packet is a new arm in [`Turn::packet`], and a file beside these.

mod agent;
mod choices;
mod flows;
mod icmp;
mod opening;
mod packet;
mod refusing;
mod replying;
mod requesting;
mod rescuing;
mod rewriting;
mod selecting;

use std::collections::{HashMap, HashSet};

use lb_common::{
    abi::{Counter, vip_flags},
    clock,
    datapath::Verdict,
    host::HostMaps,
};

use agent::Agent;
use flows::{Flow, Key, Path, Port};
use packet::{Link, Packet, Shape};
use refusing::Refusal;

/// How often each counter has been counted.
pub(crate) type Counts = [u64; Counter::ALL.len()];

/// What the host's build did to a frame.
#[derive(Debug)]
pub(crate) struct Said<'a> {
    /// Its verdict.
    pub(crate) verdict: Verdict,
    /// The frame afterwards.
    pub(crate) frame: &'a [u8],
    /// What it counted.
    pub(crate) counts: Counts,
}

/// The model's gateway.
#[derive(Default)]
pub(crate) struct Model {
    flows: HashMap<Key, Flow>,
    paths: HashMap<Port, Path>,
    made: u64,
    hops: HashSet<Link>,
    /// The table of last hops holds others.
    pub(crate) last_hops_full: bool,
    /// Somebody holds every lock.
    pub(crate) locked: bool,
    copies: HashMap<u32, rescuing::Copy>,
    clients: HashMap<u32, [Option<selecting::Client>; 4]>,
    trips: HashMap<u32, rescuing::Trip>,
    /// Whose traffic is counted in an element.
    counted: HashMap<u32, (u32, u16)>,
    events: Budget,
    refusals: Budget,
}

/// How many of something there were in a tick.
#[derive(Clone, Copy, Default)]
struct Budget {
    tick: u16,
    spent: u32,
}

impl Budget {
    /// What has been spent in this tick.
    fn spent(&mut self, tick: u16) -> &mut u32 {
        if self.tick != tick {
            *self = Self { tick, spent: 0 };
        }
        &mut self.spent
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Pass(Counter),
    Drop(Counter),
    /// Out of this interface.
    Send(u32),
}

/// One frame's way through the gateway.
struct Turn<'a> {
    model: &'a mut Model,
    agent: Agent<'a>,
    said: &'a Said<'a>,
    now: u64,
    ingress: u32,
    /// The frame as it is by now.
    frame: Vec<u8>,
    /// Bytes by which its head can still grow.
    room: usize,
    counts: Counts,
}

impl Model {
    /// Compares what the host's build did to a frame with what has to become of it.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn frame(
        &mut self,
        maps: &HostMaps,
        bytes: &[u8],
        (ingress, room): (u32, usize),
        said: &Said<'_>,
    ) -> Result<(), String> {
        let counts = [0; Counter::ALL.len()];
        let agent = Agent::new(maps);
        let now = maps.clock();
        let frame = bytes.to_vec();
        let mut turn = Turn { model: self, agent, said, now, ingress, frame, room, counts };
        let verdict = turn.whole()?;
        if verdict != said.verdict {
            return Err(format!("verdict: model {verdict:?}, host {:?}", said.verdict));
        }
        // A frame that is dropped may be half rewritten.
        if verdict != Verdict::Drop && turn.frame != said.frame {
            let (ours, theirs) = (crate::session::hex(&turn.frame), crate::session::hex(said.frame));
            return Err(format!("{verdict:?}, but other bytes:\n  model {ours}\n  host  {theirs}"));
        }
        for counter in Counter::ALL {
            let (ours, theirs) = (turn.counts[*counter as usize], said.counts[*counter as usize]);
            if ours != theirs {
                return Err(format!("{}: model {ours}, host {theirs}", counter.name()));
            }
        }
        Ok(())
    }
}

impl Turn<'_> {
    fn whole(&mut self) -> Result<Verdict, String> {
        let Some(packet) = Packet::read(&self.frame, self.ingress) else {
            self.count(Counter::PassNotIp);
            return Ok(Verdict::Pass);
        };
        Ok(match self.packet(&packet)? {
            End::Pass(counter) => {
                self.count(counter);
                Verdict::Pass
            }
            End::Drop(counter) => {
                self.count(counter);
                match Refusal::after(counter) {
                    Some(refusal) if self.refuse(&packet, refusal) => Verdict::Transmit,
                    _ => Verdict::Drop,
                }
            }
            End::Send(ifindex) if ifindex == self.ingress => Verdict::Transmit,
            End::Send(ifindex) => Verdict::Redirect(ifindex),
        })
    }

    /// To a VIP, to a SNAT address, or neither.
    fn packet(&mut self, packet: &Packet) -> Result<End, String> {
        let vip = self.agent.vip(packet.destination);
        let is_snat = self.agent.snat(packet.destination).is_some();
        if vip.is_none() && !is_snat {
            return Ok(End::Pass(Counter::PassForeign));
        }
        if packet.shape == Shape::Other && packet.is_icmp() {
            return Ok(self.icmp(packet));
        }
        let mut refused = None;
        if let Some(flags) = vip {
            let reason = match packet.shape {
                Shape::Whole => {
                    let key = Key { client: packet.from(), vip: packet.to(), protocol: packet.protocol };
                    if self.model.flows.contains_key(&key) {
                        return self.request(packet, &key);
                    }
                    if self.agent.service(key.vip, key.protocol).is_some() {
                        return self.open(packet, &key);
                    }
                    Counter::DropClosedPort
                }
                Shape::Fragment => Counter::DropFragment,
                Shape::Malformed => Counter::DropMalformed,
                Shape::Other => Counter::DropProtocol,
            };
            let is_node = flags & vip_flags::NODE_ADDRESS != 0;
            refused = Some(if is_node { End::Pass(Counter::PassNodeAddress) } else { End::Drop(reason) });
        }
        if let Some(end) = refused {
            // What no service claims may still be a reply.
            let unclaimed = matches!(end, End::Pass(_) | End::Drop(Counter::DropClosedPort));
            if !is_snat || !unclaimed {
                return Ok(end);
            }
        }
        Ok(self.reply(packet)?.unwrap_or(End::Pass(Counter::PassNoFlow)))
    }

    fn count(&mut self, counter: Counter) {
        self.counts[counter as usize] += 1;
    }

    /// How often the host counted something for this frame.
    fn host_counted(&self, counter: Counter) -> u64 {
        self.said.counts[counter as usize]
    }

    fn tick(&self) -> u16 {
        clock::tick(self.now)
    }

    /// An event for the agent, within the limit.
    fn event(&mut self, limit: u32, lost: Counter) {
        let tick = self.tick();
        let spent = self.model.events.spent(tick);
        if *spent < limit { *spent += 1 } else { self.count(lost) }
    }

    /// One that says that something is wrong.
    fn alarm(&mut self) {
        self.event(self.agent.config.events_per_tick, Counter::EventLost);
    }

    /// One for the flow log, if it notes this flow.
    fn log(&mut self, service: u32, key: &Key) {
        if self.agent.notes(service, key) {
            self.event(self.agent.config.flow_events_per_tick, Counter::FlowEventLost);
        }
    }

    /// Makes the frame one with this packet, out of a link; false: it has no room for the link's tags.
    fn put(&mut self, packet: &Packet, link: &Link, bytes: Vec<u8>) -> bool {
        let growth = (4 * link.tags.len()).saturating_sub(4 * packet.link.tags.len());
        if growth > self.room {
            return false;
        }
        self.frame = [link.bytes(packet.is_v4()), bytes].concat();
        true
    }
}
