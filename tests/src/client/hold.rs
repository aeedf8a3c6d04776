//! Connections that stay open: each asks from time to time and must be answered by the pod it began with.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use futures::future::join_all;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    Client, Sources,
    conversation::{Conversation, within},
    outcome::{Answer, Failure, Live},
    raise_open_files,
};

/// Connections to hold open.
#[derive(Clone, Debug)]
pub struct Hold {
    /// Where to.
    pub target: SocketAddr,
    /// How many.
    pub connections: usize,
    /// The time between two requests of one connection.
    pub every: Duration,
    /// For connecting and for each answer.
    pub timeout: Duration,
    /// Where from; none: the client's addresses in turn.
    pub sources: Option<Sources>,
    /// Counts while it runs: requests, not connections.
    pub live: Live,
}

impl Hold {
    /// `connections` to `target`, each asking twice a second, with a timeout of 3 s.
    pub fn new(target: SocketAddr, connections: usize) -> Hold {
        Hold {
            target,
            connections,
            every: Duration::from_millis(500),
            timeout: Duration::from_secs(3),
            sources: None,
            live: Live::default(),
        }
    }
}

/// What became of the connections.
#[derive(Clone, Debug, Default)]
pub struct HeldReport {
    /// How many were to be held.
    pub connections: usize,
    /// One text a broken one: why.
    pub broken: Vec<String>,
    /// How many are on each pod.
    pub by_pod: BTreeMap<String, u64>,
}

/// Connections that are held open by a thread of their own. Dropping it closes them.
#[derive(Debug)]
pub struct Held {
    state: Arc<Mutex<HeldReport>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Opens connections, a hundred at a time, and returns when each has had its first answer or has failed.
    ///
    /// # Errors
    /// When the limit of open files cannot be raised; what fails on the network is in the report.
    pub fn hold(&self, hold: Hold) -> Result<Held> {
        raise_open_files()?;
        let sources = hold.sources.clone().unwrap_or_else(|| self.sources(hold.target));
        let state =
            Arc::new(Mutex::new(HeldReport { connections: hold.connections, ..HeldReport::default() }));
        let (stop, stopped) = watch::channel(false);
        let (opened, all_opened) = mpsc::channel();
        let worker = Worker { hold, state: state.clone(), stopped, opening: Semaphore::new(100) };
        let ns = self.ns().clone();
        let thread = thread::spawn(move || {
            ns.block_on(|| async {
                let all = (0..worker.hold.connections).map(|n| worker.keep(sources.nth(n), opened.clone()));
                join_all(all).await;
            });
        });
        let held = Held { state, stop, thread: Some(thread) };
        for _ in 0..held.now().connections {
            all_opened.recv().context("the thread that holds the connections ended")?;
        }
        Ok(held)
    }
}

impl Held {
    /// How it stands.
    pub fn now(&self) -> HeldReport {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets each connection ask once more, closes them, and says what became of them.
    pub fn stop(mut self) -> HeldReport {
        self.end();
        self.now()
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.end();
        }
    }
}

struct Worker {
    hold: Hold,
    state: Arc<Mutex<HeldReport>>,
    stopped: watch::Receiver<bool>,
    opening: Semaphore,
}

impl Worker {
    /// Keeps one connection until told to stop; tells `opened` once its first answer or failure is counted.
    async fn keep(&self, source: SocketAddr, opened: mpsc::Sender<()>) {
        let first = self.open(source).await;
        match &first {
            Ok((_, answer)) => {
                self.hold.live.add(&Ok(answer.clone()));
                *self.report().by_pod.entry(answer.pod.clone()).or_default() += 1;
            }
            Err(failure) => self.broken(source, "before its first answer", failure),
        }
        // Nobody waits any more when the caller has given up.
        let _ = opened.send(());
        if let Ok((conversation, answer)) = first
            && let Err(failure) = self.converse(conversation, &answer).await
        {
            self.broken(source, &format!("with {}", answer.pod), &failure);
        }
    }

    async fn open(&self, source: SocketAddr) -> Result<(Conversation, Answer), Failure> {
        let _turn = self.opening.acquire().await;
        within(self.hold.timeout, async {
            let mut conversation = Conversation::connect(source, self.hold.target).await?;
            let answer = conversation.ask(false).await?;
            Ok((conversation, answer))
        })
        .await
    }

    fn broken(&self, source: SocketAddr, when: &str, failure: &Failure) {
        self.hold.live.add(&Err(failure.clone()));
        self.report().broken.push(format!("{source} {when}: {failure}"));
    }

    async fn converse(&self, mut conversation: Conversation, first: &Answer) -> Result<(), Failure> {
        loop {
            let last = *self.stopped.borrow();
            let answer = within(self.hold.timeout, conversation.ask(false)).await?;
            if answer.pod != first.pod {
                return Err(Failure::WrongAnswer(format!("{} answered", answer.pod)));
            }
            self.hold.live.add(&Ok(answer));
            if last {
                return Ok(());
            }
            self.pause().await;
        }
    }

    /// Waits for the next request's time or the end.
    async fn pause(&self) {
        let mut stopped = self.stopped.clone();
        // Either way it is time for the next request.
        let _ = timeout(self.hold.every, stopped.wait_for(|stopped| *stopped)).await;
    }

    fn report(&self) -> MutexGuard<'_, HeldReport> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
