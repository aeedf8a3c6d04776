//! What became of requests, and counts of it.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use serde::Serialize;

/// Who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The pod's name.
    pub pod: String,
    /// The name of its cluster.
    pub cluster: String,
    /// The client's address and port as the pod saw it.
    pub client: String,
    /// How often the client's kernel sent its SYN again; 0 for UDP.
    pub syn_retransmissions: u32,
}

impl Answer {
    /// Reads an echo server's line, `pod=… cluster=… client=…`.
    ///
    /// # Errors
    /// [`Failure::WrongAnswer`] for anything else.
    pub(super) fn parse(line: &str) -> Result<Answer, Failure> {
        let field = |name: &str| {
            line.split_whitespace()
                .find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
        };
        match (field("pod"), field("cluster"), field("client")) {
            (Some(pod), Some(cluster), Some(client)) => {
                Ok(Answer { pod, cluster, client, syn_retransmissions: 0 })
            }
            _ => Err(Failure::WrongAnswer(line.chars().take(80).collect())),
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection was refused (TCP RST to the SYN, or ICMP port unreachable).
    Refused,
    /// The connection was reset or ended before the answer.
    Reset,
    /// Nothing came in time.
    Timeout,
    /// A router said that the destination cannot be reached.
    Unreachable,
    /// Something answered, but not what was asked for.
    WrongAnswer(String),
    /// The client itself could not: its addresses, ports or descriptors ran out.
    Local(String),
}

impl Failure {
    /// The class, without particulars.
    pub fn class(&self) -> &'static str {
        match self {
            Failure::Refused => "refused",
            Failure::Reset => "reset",
            Failure::Timeout => "timeout",
            Failure::Unreachable => "unreachable",
            Failure::WrongAnswer(_) => "wrong answer",
            Failure::Local(_) => "client's own",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::WrongAnswer(what) | Failure::Local(what) => write!(f, "{}: {what}", self.class()),
            _ => f.write_str(self.class()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        use io::ErrorKind as Kind;
        match e.kind() {
            Kind::ConnectionRefused => Failure::Refused,
            Kind::ConnectionReset | Kind::BrokenPipe | Kind::UnexpectedEof | Kind::NotConnected => {
                Failure::Reset
            }
            Kind::TimedOut => Failure::Timeout,
            Kind::HostUnreachable | Kind::NetworkUnreachable => Failure::Unreachable,
            _ => Failure::Local(e.to_string()),
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// When its first packet was sent.
    pub started: Instant,
    /// When it had its answer or had failed.
    pub finished: Instant,
    /// Who answered, or why nobody did.
    pub result: Result<Answer, Failure>,
}

/// Counts over requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Requests that have an outcome.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Answers by cluster.
    pub by_cluster: BTreeMap<String, u64>,
    /// Answers by pod.
    pub by_pod: BTreeMap<String, u64>,
    /// Failures by class; those of the client itself with what the system said.
    pub failures: BTreeMap<String, u64>,
    /// Answers whose SYN was sent again, by how often.
    pub syn_retransmissions: BTreeMap<u32, u64>,
}

impl Tally {
    /// Counts one more.
    pub fn add(&mut self, result: &Result<Answer, Failure>) {
        self.requests += 1;
        match result {
            Ok(answer) => {
                *self.by_cluster.entry(answer.cluster.clone()).or_default() += 1;
                *self.by_pod.entry(answer.pod.clone()).or_default() += 1;
                if answer.syn_retransmissions > 0 {
                    *self.syn_retransmissions.entry(answer.syn_retransmissions).or_default() += 1;
                }
            }
            Err(failure) => {
                self.failed += 1;
                // The client's own ones are few and say what the test bed lacks.
                let kind = match failure {
                    Failure::Local(_) => failure.to_string(),
                    _ => failure.class().to_owned(),
                };
                *self.failures.entry(kind).or_default() += 1;
            }
        }
    }

    /// How often the SYNs of those that were answered were sent again, all together.
    pub fn repeated_syns(&self) -> u64 {
        self.syn_retransmissions.iter().map(|(times, connections)| u64::from(*times) * connections).sum()
    }

    /// The same, of the connection that needed most.
    pub fn most_repeated_syns(&self) -> u32 {
        self.syn_retransmissions.keys().next_back().copied().unwrap_or(0)
    }

    /// The share of a cluster among the answers, 0 to 1.
    pub fn cluster_share(&self, cluster: &str) -> f64 {
        let answered: u64 = self.by_cluster.values().sum();
        let own = self.by_cluster.get(cluster).copied().unwrap_or(0);
        if answered == 0 { 0.0 } else { own as f64 / answered as f64 }
    }
}

impl<'a> FromIterator<&'a Outcome> for Tally {
    fn from_iter<I: IntoIterator<Item = &'a Outcome>>(outcomes: I) -> Tally {
        let mut tally = Tally::default();
        outcomes.into_iter().for_each(|outcome| tally.add(&outcome.result));
        tally
    }
}

/// A tally that somebody else can look at while it grows. Clones are the same tally.
#[derive(Clone, Debug, Default)]
pub struct Live(Arc<Mutex<Tally>>);

impl Live {
    /// The counts as they are now.
    pub fn now(&self) -> Tally {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add(&self, result: &Result<Answer, Failure>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(result);
    }
}

/// What became of a number of requests, in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One a request.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Counts over all of them.
    pub fn tally(&self) -> Tally {
        self.outcomes.iter().collect()
    }

    /// The pod that answered each, none where the request failed.
    pub fn pods(&self) -> Vec<Option<&str>> {
        self.outcomes.iter().map(|outcome| outcome.result.as_ref().ok().map(|a| a.pod.as_str())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_anything_else_is_wrong() {
        let answer = Answer::parse("pod=hangzhou-1 cluster=hangzhou client=192.168.0.10:12345\n").unwrap();
        assert_eq!((answer.pod.as_str(), answer.cluster.as_str()), ("hangzhou-1", "hangzhou"));
        assert_eq!(answer.client, "192.168.0.10:12345");
        assert_eq!(Answer::parse("ok"), Err(Failure::WrongAnswer("ok".into())));
    }

    #[test]
    fn a_tally_counts_by_pod_cluster_and_failure() {
        let answer = |line: &str| Answer::parse(line);
        let mut tally = Tally::default();
        tally.add(&answer("pod=a-1 cluster=a client=x"));
        tally.add(&answer("pod=b-1 cluster=b client=x"));
        for times in [0, 1, 1, 2] {
            let again =
                Answer { syn_retransmissions: times, ..answer("pod=a-2 cluster=a client=x").unwrap() };
            tally.add(&Ok(again));
        }
        tally.add(&Err(Failure::Timeout));
        assert_eq!((tally.requests, tally.failed), (7, 1));
        assert_eq!(tally.by_cluster["a"], 5);
        assert_eq!(tally.by_pod["a-2"], 4);
        assert_eq!(tally.syn_retransmissions, [(1, 2), (2, 1)].into());
        assert_eq!((tally.repeated_syns(), tally.most_repeated_syns()), (4, 2));
        assert_eq!(tally.failures["timeout"], 1);
        assert!((tally.cluster_share("a") - 5.0 / 6.0).abs() < 1e-9);
    }
}
