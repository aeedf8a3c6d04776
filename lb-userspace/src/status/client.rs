//! The command line's end of the socket.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{Answer, FlowFilter, Request};

/// How long the agent may take: a table of a million flows is read in a second or two.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the agent at `socket`: a [`Request`] or a [`Change`](super::protocol::Change).
///
/// # Errors
/// When no agent answers there, when the socket may not be used, or when the agent reports an error.
pub fn ask<T: DeserializeOwned>(socket: &Path, request: &impl Serialize) -> Result<T> {
    let mut stream = UnixStream::connect(socket).map_err(|error| explain(socket, error))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).context("the agent hung up")?;
    let mut text = String::new();
    BufReader::new(stream).read_line(&mut text).context("the agent does not answer")?;
    if text.is_empty() {
        bail!("the agent hung up without an answer; its log says why");
    }
    match serde_json::from_str(&text).context("the agent's answer is of another version of kanmon")? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(message) => bail!("the agent says: {message}"),
    }
}

/// Follows the flow log of the agent at `socket`: calls `line` with each record's, until that fails.
///
/// # Errors
/// As [`ask`]; when the agent ends; and what `line` says.
pub fn follow(socket: &Path, filter: FlowFilter, mut line: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let limited = filter.limit.is_some();
    let mut stream = UnixStream::connect(socket).map_err(|error| explain(socket, error))?;
    let mut request = serde_json::to_string(&Request::Follow(filter))?;
    request.push('\n');
    stream.write_all(request.as_bytes()).context("the agent hung up")?;
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next() else { bail!("the agent hung up without an answer; its log says why") };
    let answer: Answer<String> =
        serde_json::from_str(&first?).context("the agent's answer is of another version of kanmon")?;
    if let Answer::Error(message) = answer {
        bail!("the agent says: {message}");
    }
    for record in lines {
        line(&record.context("the agent hung up")?)?;
    }
    if limited { Ok(()) } else { bail!("the agent has ended, or hung up") }
}

fn explain(socket: &Path, error: std::io::Error) -> anyhow::Error {
    let socket = socket.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow!(
            "no agent is running: nobody answers at {socket}. Start one with `kanmon run --interface IFACE \
             --manifests DIR`, or name its socket with --socket"
        ),
        ErrorKind::PermissionDenied => {
            anyhow!("the socket {socket} belongs to root and its group: try again with sudo")
        }
        _ => anyhow::Error::new(error).context(format!("cannot talk to the agent at {socket}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_agent_the_error_says_how_to_start_one() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("agent.sock");
        let error = ask::<()>(&missing, &Request::Status).unwrap_err().to_string();
        assert!(error.contains("no agent is running") && error.contains("kanmon run"), "{error}");
    }
}
