//! A steady stream of connections, so many a second whatever becomes of them, while something is broken.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Client, Close, Sources,
    load::{connection, timed},
    outcome::{Answer, Live, Outcome, Report},
    raise_open_files,
};

/// Connections at a steady rate.
#[derive(Clone, Debug)]
pub struct SteadyLoad {
    /// Where to.
    pub target: SocketAddr,
    /// Connections started each second.
    pub per_second: u32,
    /// For each, from its SYN to its answer.
    pub timeout: Duration,
    /// How each ends.
    pub close: Close,
    /// Where from; none: the client's addresses in turn.
    pub sources: Option<Sources>,
    /// Counts while it runs.
    pub live: Live,
}

impl SteadyLoad {
    /// `per_second` connections to `target`, with a timeout of 1 s.
    pub fn new(target: SocketAddr, per_second: u32) -> SteadyLoad {
        SteadyLoad {
            target,
            per_second,
            timeout: Duration::from_secs(1),
            close: Close::default(),
            sources: None,
            live: Live::default(),
        }
    }
}

/// A steady load that runs in a thread of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    /// By number; none: it has no outcome yet.
    outcomes: Arc<Mutex<Vec<Option<Outcome>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Where a row of requests that went as expected begins, and when it was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The number of its first request.
    pub first: usize,
    /// When its first request started.
    pub began: Instant,
    /// When the last answer of the row was there.
    pub complete: Instant,
}

impl Client {
    /// Starts a steady load.
    ///
    /// # Errors
    /// When the limit of open files cannot be raised; what fails on the network is among the outcomes.
    pub fn load(&self, load: SteadyLoad) -> Result<Running> {
        raise_open_files()?;
        let sources = load.sources.clone().unwrap_or_else(|| self.sources(load.target));
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (ns, list, ended) = (self.ns().clone(), outcomes.clone(), stop.clone());
        let thread =
            thread::spawn(move || ns.block_on(|| async { drive(&load, &sources, &list, &ended).await }));
        Ok(Running { outcomes, stop, thread: Some(thread) })
    }
}

impl Running {
    /// The outcomes so far, in the order of their starts, up to the first request that has none yet.
    pub fn settled(&self) -> Vec<Outcome> {
        self.lock().iter().map_while(Clone::clone).collect()
    }

    /// Looks at the settled outcomes until `found` finds what it looks for or `deadline` has passed.
    pub fn wait_for<T>(&self, deadline: Instant, found: impl Fn(&[Outcome]) -> Option<T>) -> Option<T> {
        loop {
            let late = Instant::now() >= deadline;
            let result = found(&self.settled());
            if result.is_some() || late {
                return result;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the load, waits for what is under way, and reports on all of it.
    pub fn stop(mut self) -> Report {
        self.end();
        Report { outcomes: self.settled() }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<Outcome>>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.end();
        }
    }
}

async fn drive(
    load: &SteadyLoad,
    sources: &Sources,
    outcomes: &Mutex<Vec<Option<Outcome>>>,
    stop: &AtomicBool,
) {
    let lock = || outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tick = interval(Duration::from_secs(1) / load.per_second.max(1));
    // A client that was late catches up: the rate is the promise.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = FuturesUnordered::new();
    let finish = |(n, outcome): (usize, Outcome)| {
        load.live.add(&outcome.result);
        lock()[n] = Some(outcome);
    };
    for n in 0.. {
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => break,
                Some(done) = under_way.next() => finish(done),
            }
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        lock().push(None);
        let request = connection(sources.nth(n), load.target, load.close, load.timeout);
        under_way.push(async move { (n, timed(request).await) });
    }
    while let Some(done) = under_way.next().await {
        finish(done);
    }
}

/// The first `len` requests in a row, all started at `from` or later, that each succeed and are `expected`.
pub fn row(
    outcomes: &[Outcome],
    from: Instant,
    len: usize,
    expected: impl Fn(&Answer) -> bool,
) -> Option<Row> {
    let start = outcomes.partition_point(|outcome| outcome.started < from);
    let mut first = start;
    for (n, outcome) in outcomes.iter().enumerate().skip(start) {
        if !outcome.result.as_ref().is_ok_and(&expected) {
            first = n + 1;
        } else if n + 1 - first == len {
            let complete = outcomes[first..=n].iter().map(|outcome| outcome.finished).max()?;
            return Some(Row { first, began: outcomes[first].started, complete });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Failure;

    /// One outcome a letter, 1 ms apart: a letter is a pod, a dot a failure.
    fn outcomes(zero: Instant, letters: &str) -> Vec<Outcome> {
        let answer = |letter: char| Answer {
            pod: letter.to_string(),
            cluster: String::new(),
            client: String::new(),
            syn_retransmissions: 0,
        };
        (0..)
            .zip(letters.chars())
            .map(|(ms, letter)| Outcome {
                started: zero + Duration::from_millis(ms),
                finished: zero + Duration::from_millis(ms + 5),
                result: if letter == '.' { Err(Failure::Timeout) } else { Ok(answer(letter)) },
            })
            .collect()
    }

    #[test]
    fn a_row_begins_after_the_last_failure_and_the_last_unexpected_answer() {
        let zero = Instant::now();
        let not_x = |answer: &Answer| answer.pod != "x";
        let found = row(&outcomes(zero, "aaaa.aaxaaaa"), zero, 4, not_x).unwrap();
        assert_eq!(found.first, 0);
        let later = zero + Duration::from_millis(2);
        let found = row(&outcomes(zero, "aaaa.aaxaaaa"), later, 4, not_x).unwrap();
        assert_eq!(found.first, 8);
        assert_eq!(found.began, zero + Duration::from_millis(8));
        assert_eq!(found.complete, zero + Duration::from_millis(16));
        assert_eq!(row(&outcomes(zero, "aaaa.aaxaaa"), later, 4, not_x), None);
    }
}
