//! A SYN that its backend refuses, or leaves unanswered, while something else happens to its flow on the other CPU.

use std::thread;

use lb_common::{
    abi::{Counter, ReactionWord},
    host::{Gateway, SYN, Seen},
};
use tests::kernel_run::{Runner, pin_to_cpu};

use super::{
    bed::{Bed, Path, Steps, ack, client, insist, path_of, refusal, send, syn, syn_ack},
    pace::{Leaves, Pace},
};

/// Clients of each test, and how many of them until the tables are looked at.
const CLIENTS: u32 = 40_000;
const ROUND: u32 = 2000;
const PORT: u16 = 40_000;
/// After so long without an answer a client sends its SYN again.
const PATIENCE_NS: u64 = 1_000_000_000;

/// What happens to a flow on the second CPU while its backend refuses it on the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rival {
    /// The client sends its SYN again.
    Syn,
    /// The refusal comes twice.
    Refusal,
    /// The backend's own SYN-ACK, as from a listener that fills up.
    Answer,
}

impl Rival {
    const fn of(client: u32) -> Self {
        match client / 2 % 3 {
            0 => Self::Syn,
            1 => Self::Refusal,
            _ => Self::Answer,
        }
    }
}

/// What a thread saw of one client's flow.
#[derive(Debug)]
struct Story {
    first: Path,
    /// What became of what it sent at the same moment as the other one.
    raced: Option<Seen>,
    /// Where the flow is when all is over; none where it was reset.
    last: Option<Path>,
}

/// Both threads tell the story of each client; in between, the tables must agree.
fn race(
    bed: &Bed,
    steps: u32,
    tell: impl Fn(&mut Runner, &mut Steps<'_>, usize, u32) -> Story + Sync,
) -> [Vec<Story>; 2] {
    let pace = Pace::new(0);
    thread::scope(|scope| {
        let _leaves = Leaves(&pace.limit);
        let threads = [0, 1].map(|cpu| {
            let (pace, tell) = (&pace, &tell);
            scope.spawn(move || {
                let _leaves = Leaves(&pace.threads[cpu]);
                pin_to_cpu(cpu).expect("two CPUs");
                let mut runner = bed.kernel.runner().expect("a runner");
                let mut steps = Steps::new(pace, cpu);
                let stories = (0..CLIENTS).map(|n| tell(&mut runner, &mut steps, cpu, n)).collect();
                steps.done();
                stories
            })
        });
        for round in 1..=CLIENTS / ROUND {
            pace.run_to(round * ROUND * steps);
            let flows = bed.check_and_forget(&format!("round {round}"));
            assert!(flows > ROUND as usize / 2, "round {round}: {flows} flows");
        }
        threads.map(|thread| thread.join().expect("no thread panics"))
    })
}

/// Flags of a RST that acknowledges a SYN.
const RST_ACK: u8 = 0x14;

#[test]
fn a_refused_syn_ends_on_one_other_backend_whatever_else_happens_to_it() {
    let bed = Bed::load(4, |gateway: &mut Gateway, service| {
        gateway.set_reaction(service, ReactionWord::new(0, 0, true));
    });
    let [ones, others] = race(&bed, 3, |runner, steps, cpu, n| {
        let (from, rival) = (client(n, PORT), Rival::of(n));
        steps.meet();
        let first = insist(runner, &syn(from));
        steps.meet();
        let frame = match (cpu, rival) {
            (0, _) | (_, Rival::Refusal) => refusal(first),
            (_, Rival::Syn) => syn(from),
            (_, Rival::Answer) => syn_ack(first),
        };
        let raced = send(runner, &frame);
        steps.meet();
        let answered = rival == Rival::Answer && cpu == 1 && raced.is_some();
        let last = match (cpu, rival) {
            // Who has heard a SYN-ACK goes on with the connection, if it was not reset at once.
            (1, Rival::Answer) if answered => send(runner, &ack(from)).and_then(|seen| path_of(&seen)),
            // That is for the other one to say.
            (0, Rival::Answer) => None,
            _ => Some(insist(runner, &syn(from))),
        };
        Story { first, raced, last }
    });
    let (mut answered, mut told_of) = (0, 0);
    for (n, (one, other)) in (0..).zip(ones.iter().zip(&others)) {
        let told = || format!("client {n}, {:?}: {one:?}, {other:?}", Rival::of(n));
        assert_eq!(one.first, other.first, "{}", told());
        let refused = one.first.backend;
        let to_backend = |story: &Story| story.raced.as_ref().and_then(path_of);
        let to_client = |story: &Story| {
            story.raced.as_ref().filter(|seen| path_of(seen).is_none()).map(|seen| seen.flags)
        };
        match Rival::of(n) {
            Rival::Answer if to_client(other).is_some() => {
                answered += 1;
                // The client has heard this backend: its connection is nobody else's, and a SYN that is put together of
                // the refusal beside that goes to the same.
                assert!(to_backend(one).is_none_or(|path| path == one.first), "{}", told());
                assert!(other.last.is_none_or(|last| last == one.first), "{}", told());
            }
            // Others' SYNs took the place of this one's copy, so the refusal went on to the client.
            _ if [one, other].map(to_client).contains(&Some(RST_ACK)) => told_of += 1,
            rival => {
                let last = other.last.unwrap_or_else(|| panic!("{}", told()));
                assert!(last.backend != refused, "{}", told());
                assert!(rival == Rival::Answer || one.last == Some(last), "{}", told());
                let paths = [to_backend(one), to_backend(other)];
                assert!(
                    paths.into_iter().flatten().all(|path| path == last || path == one.first),
                    "{}",
                    told()
                );
                if rival == Rival::Refusal {
                    assert!(paths.into_iter().flatten().count() <= 1, "the SYN went on twice: {}", told());
                }
                // There is another backend, so no client hears of the refusal.
                assert_eq!((to_client(one), to_client(other)), (None, None), "{}", told());
            }
        }
    }
    let moved = bed.kernel.tables.counter(Counter::FlowRescued);
    println!(
        "{CLIENTS} clients: {moved} flows moved, {answered} answered first, {told_of} told of the refusal"
    );
    assert!(told_of < CLIENTS / 100, "{told_of} clients were told of the refusal");
    assert!(moved > u64::from(CLIENTS) / 2, "{moved} flows moved");
}

#[test]
fn a_syn_sent_again_and_a_late_answer_leave_the_client_with_one_backend() {
    let bed = Bed::load(4, |_, _| {});
    let begin = bed.gateway.maps.clock();
    let [ones, others] = race(&bed, 3, |runner, steps, cpu, n| {
        let from = client(n, PORT);
        steps.meet();
        let first = insist(runner, &syn(from));
        steps.meet();
        // Both have made sure that the flow is there, and nobody sends anything yet.
        if cpu == 0 {
            bed.kernel.tables.set_clock(begin + u64::from(n + 1) * PATIENCE_NS);
        }
        let raced = send(runner, &if cpu == 0 { syn(from) } else { syn_ack(first) });
        steps.meet();
        let last = match (cpu, &raced) {
            (0, _) => None,
            (_, Some(_)) => Some(insist(runner, &ack(from))),
            (_, None) => Some(insist(runner, &syn(from))),
        };
        Story { first, raced, last }
    });
    let (mut answered, mut stayed) = (0, 0);
    for (n, (one, other)) in (0..).zip(ones.iter().zip(&others)) {
        let told = || format!("client {n}: {one:?}, {other:?}");
        assert_eq!(one.first, other.first, "{}", told());
        let last = other.last.unwrap_or_else(|| panic!("{}", told()));
        if let Some(seen) = &other.raced {
            answered += 1;
            assert_eq!((seen.destination, seen.flags & SYN), (client(n, PORT), SYN), "{}", told());
            assert_eq!(last, one.first, "the client's ACK went to another: {}", told());
        } else {
            // An answer that comes while the flow is being moved is lost, though the move may come to nothing then. The
            // server says it again.
            stayed += u32::from(last.backend == one.first.backend);
        }
        let again = one.raced.as_ref().and_then(path_of);
        assert!(again.is_none_or(|path| path == last), "the SYN went to a third: {}", told());
    }
    let moved = bed.kernel.tables.counter(Counter::FlowRescued);
    println!("{CLIENTS} clients: {moved} flows moved, {answered} answered first");
    assert!(stayed < CLIENTS / 1000, "{stayed} answers were lost and nothing moved");
    assert!(moved > 100 && answered > 100, "{moved} flows moved, {answered} answered");
}
