//! A number of TCP connections, so many at a time.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures::{StreamExt, stream};

use super::{
    Client, Sources,
    conversation::{Conversation, within},
    outcome::{Answer, Failure, Live, Outcome, Report},
    raise_open_files, udp,
};

/// How a connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Close {
    /// The client ends it; TIME_WAIT stays with the client.
    #[default]
    Client,
    /// The server ends it (`Connection: close`) and the client follows; the client's port is free at once.
    Server,
    /// The client resets it.
    Reset,
}

/// TCP connections, each with one HTTP request.
#[derive(Clone, Debug)]
pub struct TcpLoad {
    /// Where to.
    pub target: SocketAddr,
    /// How many.
    pub connections: usize,
    /// How many at a time.
    pub concurrency: usize,
    /// For each, from its SYN to its answer.
    pub timeout: Duration,
    /// How each ends.
    pub close: Close,
    /// Where from; none: the client's addresses in turn.
    pub sources: Option<Sources>,
    /// Counts while it runs.
    pub live: Live,
}

impl TcpLoad {
    /// `connections` to `target`, 32 at a time, with a timeout of 2 s.
    pub fn new(target: SocketAddr, connections: usize) -> TcpLoad {
        TcpLoad {
            target,
            connections,
            concurrency: 32,
            timeout: Duration::from_secs(2),
            close: Close::default(),
            sources: None,
            live: Live::default(),
        }
    }
}

/// UDP requests, each from a socket of its own and never sent twice.
#[derive(Clone, Debug)]
pub struct UdpLoad {
    /// Where to.
    pub target: SocketAddr,
    /// How many.
    pub requests: usize,
    /// How many at a time.
    pub concurrency: usize,
    /// For each, from its datagram to its answer.
    pub timeout: Duration,
    /// Where from; none: the client's addresses in turn.
    pub sources: Option<Sources>,
    /// Counts while it runs.
    pub live: Live,
}

impl UdpLoad {
    /// `requests` to `target`, 32 at a time, with a timeout of 2 s.
    pub fn new(target: SocketAddr, requests: usize) -> UdpLoad {
        UdpLoad {
            target,
            requests,
            concurrency: 32,
            timeout: Duration::from_secs(2),
            sources: None,
            live: Live::default(),
        }
    }
}

impl Client {
    /// Makes TCP connections and waits for all of them.
    ///
    /// # Errors
    /// When the limit of open files cannot be raised; what fails on the network is in the report.
    pub fn tcp(&self, load: TcpLoad) -> Result<Report> {
        raise_open_files()?;
        let sources = load.sources.clone().unwrap_or_else(|| self.sources(load.target));
        let one = |n: usize| {
            let source = sources.nth(n);
            connection(source, load.target, load.close, load.timeout)
        };
        Ok(self.all(load.connections, load.concurrency, &load.live, one))
    }

    /// Sends UDP requests and waits for all of them.
    ///
    /// # Errors
    /// When the limit of open files cannot be raised; what fails on the network is in the report.
    pub fn udp(&self, load: UdpLoad) -> Result<Report> {
        raise_open_files()?;
        let sources = load.sources.clone().unwrap_or_else(|| self.sources(load.target));
        let one = |n: usize| within(load.timeout, udp::request(sources.nth(n), load.target, n));
        Ok(self.all(load.requests, load.concurrency, &load.live, one))
    }

    fn all<F>(
        &self,
        count: usize,
        concurrency: usize,
        live: &Live,
        one: impl Fn(usize) -> F + Send + Sync,
    ) -> Report
    where
        F: Future<Output = Result<Answer, Failure>>,
    {
        self.ns().block_on(|| async {
            let request = async |n| {
                let outcome = timed(one(n)).await;
                live.add(&outcome.result);
                outcome
            };
            Report { outcomes: stream::iter((0..count).map(request)).buffered(concurrency).collect().await }
        })
    }
}

/// One connection with one request.
pub(super) async fn connection(
    source: SocketAddr,
    target: SocketAddr,
    close: Close,
    limit: Duration,
) -> Result<Answer, Failure> {
    within(limit, async {
        let mut conversation = Conversation::connect(source, target).await?;
        let syn_retransmissions = conversation.retransmissions()?;
        let answer = Answer { syn_retransmissions, ..conversation.ask(close == Close::Server).await? };
        match close {
            Close::Client => drop(conversation),
            Close::Server => conversation.after_server().await?,
            Close::Reset => conversation.reset()?,
        }
        Ok(answer)
    })
    .await
}

/// Times a request.
pub(super) async fn timed(request: impl Future<Output = Result<Answer, Failure>>) -> Outcome {
    let started = Instant::now();
    let result = request.await;
    Outcome { started, finished: Instant::now(), result }
}
