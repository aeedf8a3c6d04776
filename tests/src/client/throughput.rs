//! How much goes through connections that stand.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use futures::future::{join_all, try_join_all};

use super::{Client, Failure, conversation::Conversation, raise_open_files};

impl Client {
    /// Keeps so many connections open, each of which asks again as soon as it has its answer, for a time; how long
    /// each answer took.
    ///
    /// # Errors
    /// When a connection can't be made, or ends.
    pub fn keep_asking(
        &self,
        target: SocketAddr,
        connections: usize,
        time: Duration,
    ) -> Result<Vec<Duration>> {
        let asked = self.conversations(target, connections, async |conversation| {
            let begun = Instant::now();
            let mut took = Vec::new();
            while begun.elapsed() < time {
                let asked = Instant::now();
                conversation.ask(false).await?;
                took.push(asked.elapsed());
            }
            Ok(took)
        })?;
        Ok(asked.0.concat())
    }

    /// Gets so many bytes over each of so many connections at once; how long all of it took.
    ///
    /// # Errors
    /// When a connection can't be made, or ends.
    pub fn fetch(&self, target: SocketAddr, connections: usize, bytes: usize) -> Result<Duration> {
        let fetched = self.conversations(target, connections, async |it| it.fetch(bytes).await)?;
        Ok(fetched.1)
    }

    /// Connects all, then lets all do something at once; what came of it, and how long it took.
    fn conversations<T: Send>(
        &self,
        target: SocketAddr,
        connections: usize,
        each: impl AsyncFn(&mut Conversation) -> Result<T, Failure> + Send,
    ) -> Result<(Vec<T>, Duration)> {
        raise_open_files()?;
        let sources = self.sources(target);
        let done = self.ns().block_on(|| async move {
            let connect = |n| Conversation::connect(sources.nth(n), target);
            let mut all = try_join_all((0..connections).map(connect)).await?;
            let begun = Instant::now();
            let done = join_all(all.iter_mut().map(|one| each(one))).await;
            let took = begun.elapsed();
            Ok::<_, Failure>((done.into_iter().collect::<Result<Vec<T>, Failure>>()?, took))
        });
        done.map_err(|failure| anyhow!("a connection to {target} failed: {failure}"))
    }
}
