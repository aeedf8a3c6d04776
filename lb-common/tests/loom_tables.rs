//! The tables' protocol under a model checker: every interleaving of two processors, within a bound of
//! preemptions, and every value that a relaxed load may still see.
//!
//! `cargo xtask test --suite loom` builds this with `--cfg loom`. Only what several processors change is
//! modelled; settings, members, rings and last hops are the host's.
#![cfg(loom)]

mod model;

use std::net::SocketAddr;

use lb_common::{
    abi::{Counter, FlowState},
    datapath::Verdict,
    host::{ACK, FIN, Frame, RST, SYN},
};
use model::{Delivered, Model, client, explore, explore_first, staying_vip, vip};

/// Where there are too many interleavings for all of them: about ten seconds' worth.
const MANY: usize = 60_000;

const FIN_ACK: u8 = FIN | ACK;

fn syn(n: u16) -> Frame {
    Frame::tcp(client(n), vip(), SYN)
}

/// A backend's segment in a flow whose first packet was delivered like this.
fn reply(of: &Delivered, flags: u8) -> Frame {
    Frame::tcp(of.destination, of.source, flags).numbers(5000, 1001)
}

/// An ACK that proves the handshake.
fn ack(n: u16) -> Frame {
    Frame::tcp(client(n), vip(), ACK).numbers(1001, 5001)
}

fn open(model: &Model, n: u16) -> Delivered {
    model.send(&syn(n)).expect("a new flow")
}

fn establish(model: &Model, n: u16) -> Delivered {
    let flow = open(model, n);
    model.send(&reply(&flow, SYN | ACK)).expect("the SYN-ACK");
    model.send(&ack(n)).expect("the ACK");
    flow
}

#[test]
fn insert_against_insert_of_one_key_makes_one_entry() {
    explore(2, |model| {
        let (one, two) = model.race(|model| model.send(&syn(1)), |model| model.send(&syn(1)));
        let paths: Vec<_> = [one, two].into_iter().flatten().collect();
        assert!(!paths.is_empty() && paths.iter().all(|path| *path == paths[0]), "{paths:?}");
        assert_eq!(model.check().len(), 1);
    });
}

#[test]
fn inserts_of_two_keys_share_neither_slot_nor_port() {
    explore_first(MANY, 2, |model| {
        let (one, two) = model.race(|model| model.send(&syn(1)), |model| model.send(&syn(2)));
        let (one, two) = (one.expect("room for both"), two.expect("room for both"));
        assert_ne!(one.source, two.source);
        assert_eq!(model.check().len(), 2);
    });
}

#[test]
fn the_first_two_flows_that_come_by_a_router_both_learn_it() {
    explore_first(MANY, 2, |model| {
        model.forget_last_hop();
        let (one, two) = model.race(|model| model.send(&syn(1)), |model| model.send(&syn(2)));
        assert!(one.is_some() && two.is_some());
        model.check_last_hop();
        assert_eq!(model.check().len(), 2);
    });
}

#[test]
fn the_last_port_goes_to_one_of_two() {
    explore_first(MANY, 1, |model| {
        model.leave_ports(1);
        let (one, two) = model.race(|model| model.send(&syn(1)), |model| model.send(&syn(2)));
        // The loser may take the port from the winner, whose flow is still half-open.
        assert!(one.is_some() || two.is_some());
        assert_eq!(model.check().len(), 1);
    });
}

#[test]
fn insert_against_the_sweep_s_eviction_leaves_pairs() {
    explore_first(MANY, 2, |model| {
        model.leave_ports(1);
        open(model, 1);
        model.expire();
        model.sweep();
        let (new, ()) = model.race(|model| model.send(&syn(2)), Model::sweep);
        let live = model.check();
        assert_eq!(live.len(), usize::from(new.is_some()));
    });
}

#[test]
fn a_new_flow_of_a_closed_key_against_its_eviction_leaves_pairs() {
    explore(2, |model| {
        let old = open(model, 1);
        model.send(&reply(&old, RST | ACK)).expect("the refusal");
        model.expire();
        model.sweep();
        let (new, ()) = model.race(|model| model.send(&syn(1)), Model::sweep);
        // Where the sweep takes the old flow first, the SYN is dropped as contended and comes again.
        let live = model.check();
        assert_eq!(live, vec![FlowState::SynSent; usize::from(new.is_some())]);
        assert!(model.send(&syn(1)).is_some());
    });
}

#[test]
fn a_reply_against_the_reuse_of_its_port_reaches_one_whole_client() {
    explore(2, |model| {
        model.leave_ports(1);
        let old = open(model, 1);
        model.send(&reply(&old, RST | ACK)).expect("the refusal");
        let (new, back) = model.race(|model| model.send(&syn(2)), |model| model.send(&reply(&old, ACK)));
        // The port is the only one, so the new flow has the old one's, and the reply is whose port it is:
        // all of one client, never one's address with the other's port.
        if let Some(back) = back {
            let clients: Vec<SocketAddr> = vec![client(1), client(2)];
            assert!(back.source == vip() && clients.contains(&back.destination), "{back:?}");
        }
        if let Some(new) = new {
            assert_eq!(new.source, old.source);
        }
        model.check();
    });
}

#[test]
fn a_reply_against_the_reuse_of_its_slot_reaches_its_own_client() {
    explore(2, |model| {
        // Two ports, the first of which stays taken by the old flow until its entry is gone.
        let (one, two) = (open(model, 1), open(model, 2));
        let (_, (first, second)) = model.race(
            |model| model.send(&syn(3)),
            |model| (model.send(&reply(&one, SYN | ACK)), model.send(&reply(&two, SYN | ACK))),
        );
        for (back, n) in [(first, 1), (second, 2)] {
            if let Some(back) = back {
                assert_eq!((back.source, back.destination), (vip(), client(n)));
            }
        }
        model.check();
    });
}

#[test]
fn a_reply_against_eviction_is_its_own_client_s_or_passes() {
    explore(2, |model| {
        let flow = establish(model, 1);
        model.expire();
        model.sweep();
        let (back, ()) = model.race(move |model| model.send(&reply(&flow, ACK)), Model::sweep);
        if let Some(back) = back {
            assert_eq!((back.source, back.destination), (vip(), client(1)));
        }
        model.check();
    });
}

#[test]
fn a_syn_ack_against_displacement_promotes_nobody_else() {
    explore(2, |model| {
        let (one, _) = (open(model, 1), open(model, 2));
        let (new, _) = model.race(|model| model.send(&syn(3)), |model| model.send(&reply(&one, SYN | ACK)));
        assert!(new.is_some());
        // Whatever became of the first flow, the newcomer has not been answered.
        if let Some(blind) = model.send(&ack(3)) {
            assert_eq!(Some(blind), new);
        }
        assert_eq!(model.counted(Counter::FlowEstablished), 0);
        model.check();
    });
}

#[test]
fn a_hit_against_the_reuse_of_its_slot_takes_its_own_path() {
    explore(2, |model| {
        let (one, two) = (open(model, 1), open(model, 2));
        let (_, (first, second)) =
            model.race(|model| model.send(&syn(3)), |model| (model.send(&ack(1)), model.send(&ack(2))));
        for (hit, path) in [(first, one), (second, two)] {
            if let Some(hit) = hit {
                assert_eq!(hit, path);
            }
        }
        model.check();
    });
}

#[test]
fn a_hit_against_the_sweep_is_delivered_or_dropped_and_leaves_pairs() {
    explore(3, |model| {
        let flow = establish(model, 1);
        model.expire();
        model.sweep();
        let (hit, ()) = model.race(|model| model.send(&ack(1)), Model::sweep);
        if let Some(hit) = hit {
            assert_eq!(hit, flow);
        }
        let live = model.check();
        assert!(live.is_empty() || live == [FlowState::Established]);
    });
}

#[test]
fn a_hit_before_the_sweep_s_second_pass_saves_the_flow() {
    explore(2, |model| {
        let flow = establish(model, 1);
        model.expire();
        let (hit, ()) = model.race(|model| model.send(&ack(1)), Model::sweep);
        assert_eq!(hit, Some(flow), "one pass evicts nobody");
        model.sweep();
        assert_eq!(model.check(), [FlowState::Established]);
    });
}

#[test]
fn two_sweeps_give_a_port_back_once() {
    explore(2, |model| {
        open(model, 1);
        model.expire();
        model.sweep();
        model.race(Model::sweep, |model| {
            model.sweep();
            model.send(&syn(2));
        });
        model.check();
    });
}

#[test]
fn a_port_that_the_sweep_takes_for_nobody_s_goes_to_nobody_else() {
    explore_first(MANY, 1, |model| {
        model.leave_ports(1);
        let ((), new) = model.race(Model::sweep_suspected_ports, |model| model.send(&syn(1)));
        assert!(new.is_some());
        // Its owner is half-open, so the next flow may displace it, but never share the port with it.
        assert_eq!(model.send(&syn(2)).map(|new| new.source), new.map(|new| new.source));
        assert_eq!(model.check().len(), 1);
    });
}

#[test]
fn two_who_have_one_port_by_the_sweep_s_mistake_do_not_both_use_it() {
    // Its hash decides whether the second comes upon the first's lock.
    for n in 2..12 {
        explore(0, move |model| {
            model.leave_ports(2);
            model.block_first_port();
            let old = open(model, 20);
            model.unblock_first_port();
            model.expire();
            model.sweep();
            // The first has seen which ways are free. Now the old flow's is too, and the second takes that one.
            model.interrupt(move |model| {
                model.sweep();
                model.sweep_suspected_ports();
                model.send(&syn(n));
            });
            let first = model.send(&syn(1));
            model.check_ports();
            assert!(first.is_some_and(|first| first.destination == old.destination));
            // A port that is in use may be marked as free until somebody tries it.
            model.send(&syn(30));
            model.check_ports();
        });
    }
}

#[test]
fn a_fin_against_a_fin_closes_or_stays_half_closed() {
    explore(3, |model| {
        let flow = establish(model, 1);
        let (one, two) = model.race(
            |model| model.verdict(&Frame::tcp(client(1), vip(), FIN_ACK)),
            |model| model.verdict(&reply(&flow, FIN_ACK)),
        );
        assert_eq!((one, two), (Verdict::Transmit, Verdict::Transmit));
        // The client's side loses a race without looking again: its FIN is repeated until it is acknowledged.
        assert_eq!(model.verdict(&Frame::tcp(client(1), vip(), FIN_ACK)), Verdict::Transmit);
        assert_eq!(model.check(), [FlowState::Closed]);
    });
}

/// A second, after which a SYN that comes again is due for another backend.
const SECOND: u64 = 1_000_000_000;

#[test]
fn a_rescue_against_the_answer_is_one_or_the_other() {
    explore(2, |model| {
        let old = open(model, 1);
        model.wait(SECOND);
        let (syn, answer) =
            model.race(|model| model.send(&syn(1)), move |model| model.send(&reply(&old, SYN | ACK)));
        match model.check()[..] {
            // The client has heard of the old backend, and stays there.
            [FlowState::SynAcked] => {
                assert!(answer.is_some_and(|answer| answer.destination == client(1)));
                assert!(syn.is_none_or(|syn| syn == old));
                assert_eq!(model.send(&ack(1)), Some(old));
                assert_eq!(model.check(), [FlowState::Established]);
            }
            // It has not, and never will.
            [FlowState::SynSent] => {
                let new = syn.expect("the SYN goes on");
                assert_ne!(new.destination, old.destination);
                assert_eq!(answer, None);
                assert_eq!(model.send(&reply(&old, SYN | ACK)), None);
                assert!(model.send(&reply(&new, SYN | ACK)).is_some());
                assert_eq!(model.send(&ack(1)), Some(new));
            }
            ref states => panic!("{states:?}"),
        }
    });
}

#[test]
fn two_syns_that_are_due_move_the_flow_once() {
    explore_first(MANY, 2, |model| {
        let old = open(model, 1);
        model.wait(SECOND);
        let (one, two) = model.race(|model| model.send(&syn(1)), |model| model.send(&syn(1)));
        assert_eq!(model.check(), [FlowState::SynSent]);
        let new = model.send(&syn(1)).expect("it has a backend");
        assert_ne!(new.destination, old.destination);
        // One may have read the flow's word just before the other moved it.
        let paths: Vec<_> = [one, two].into_iter().flatten().collect();
        assert!(paths.contains(&new) && paths.iter().all(|path| *path == new || *path == old), "{paths:?}");
    });
}

#[test]
fn a_rescue_against_the_sweep_leaves_pairs() {
    explore_first(MANY, 2, |model| {
        let old = open(model, 1);
        model.wait(SECOND);
        let (new, ()) = model.race(|model| model.send(&syn(1)), Model::sweep);
        assert!(new.is_some_and(|new| new.destination != old.destination));
        assert_eq!(model.check(), [FlowState::SynSent]);
    });
}

#[test]
fn a_rescue_against_displacement_leaves_pairs() {
    explore_first(MANY, 2, |model| {
        let _ = (open(model, 1), open(model, 2));
        model.wait(SECOND);
        let (one, three) = model.race(|model| model.send(&syn(1)), |model| model.send(&syn(3)));
        assert!(one.is_some() || three.is_some());
        model.check();
    });
}

/// A connection of the one client that is remembered, from another port each.
fn staying(port: u16) -> Frame {
    let client = SocketAddr::new(client(1).ip(), port);
    Frame::tcp(client, staying_vip(), SYN)
}

#[test]
fn a_client_s_first_two_connections_agree_and_it_is_remembered_once() {
    explore_first(MANY, 2, |model| {
        let (one, two) = model.race(|model| model.send(&staying(1)), |model| model.send(&staying(2)));
        let (one, two) = (one.expect("room for both"), two.expect("room for both"));
        assert_eq!(one.destination, two.destination);
        assert_eq!(model.remembered().len(), 1);
        model.check();
    });
}

#[test]
fn two_connections_of_a_client_whose_stay_has_ended_leave_it_remembered_once() {
    explore_first(MANY, 2, |model| {
        model.send(&staying(1)).expect("a flow");
        model.end_stays();
        let (one, two) = model.race(|model| model.send(&staying(2)), |model| model.send(&staying(3)));
        let paths: Vec<_> = [one, two].into_iter().flatten().map(|path| path.destination).collect();
        assert!(!paths.is_empty() && paths.iter().all(|path| *path == paths[0]), "{paths:?}");
        assert_eq!(model.remembered().len(), 1);
        model.check();
    });
}

#[test]
fn a_change_of_the_ring_moves_no_client_that_is_remembered() {
    explore(2, |model| {
        let first = model.send(&staying(1)).expect("a flow");
        let (second, ()) = model.race(|model| model.send(&staying(2)), Model::change_ring);
        assert_eq!(second.map(|second| second.destination), Some(first.destination));
        assert_eq!(model.send(&staying(3)).map(|third| third.destination), Some(first.destination));
    });
}

#[test]
fn a_client_that_comes_while_the_ring_changes_stays_where_it_went() {
    explore(2, |model| {
        let (first, ()) = model.race(|model| model.send(&staying(1)), Model::change_ring);
        let first = first.expect("a flow");
        assert_eq!(model.send(&staying(2)).map(|second| second.destination), Some(first.destination));
    });
}

#[test]
fn two_errors_at_once_trip_a_backend_once() {
    explore(2, |model| {
        let one = model.send(&staying(1)).expect("a flow");
        let two = model.send(&staying(2)).expect("another one");
        assert_eq!(one.destination, two.destination);
        let backend = usize::from(one.destination.ip().to_string().ends_with('2')) + 1;
        model.race(
            move |model| model.verdict(&reply(&one, RST | ACK)),
            |model| model.verdict(&reply(&two, RST | ACK)),
        );
        assert_eq!(model.counted(Counter::BackendTripped), 1);
        assert_eq!(model.errors(backend), (0, true));
        assert_eq!(model.check(), [FlowState::Closed; 2]);
    });
}

#[test]
fn an_answer_between_two_errors_leaves_the_backend_tripped_or_with_fewer_errors() {
    explore(2, |model| {
        let one = model.send(&staying(1)).expect("a flow");
        let two = model.send(&staying(2)).expect("another one");
        let backend = usize::from(one.destination.ip().to_string().ends_with('2')) + 1;
        model.race(
            move |model| model.verdict(&reply(&one, RST | ACK)),
            |model| model.verdict(&reply(&two, SYN | ACK)),
        );
        assert_eq!(model.counted(Counter::BackendTripped), 0, "one error is not two in a row");
        assert!(matches!(model.errors(backend), (0 | 1, false)), "{:?}", model.errors(backend));
    });
}

#[test]
fn an_icmp_error_against_the_eviction_of_its_flow_reaches_its_client_or_nobody() {
    explore(2, |model| {
        let flow = establish(model, 1);
        model.expire();
        model.sweep();
        let (told, ()) = model.race(move |model| model.complain(&flow), Model::sweep);
        if let Some((to, about)) = told {
            assert_eq!((to.ip(), about), (client(1).ip(), client(1)));
        }
        model.check();
    });
}

#[test]
fn an_icmp_error_against_the_reuse_of_its_port_is_about_a_packet_of_whom_it_reaches() {
    explore_first(MANY, 2, |model| {
        model.leave_ports(1);
        let old = open(model, 1);
        model.send(&reply(&old, RST | ACK)).expect("the refusal");
        let (_, told) = model.race(|model| model.send(&syn(2)), |model| model.complain(&old));
        if let Some((to, about)) = told {
            assert!([client(1), client(2)].contains(&about) && to.ip() == about.ip(), "{to} about {about}");
        }
        model.check();
    });
}
