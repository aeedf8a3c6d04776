//! The flow log over the socket: a line a record, for as long as both sides like.

use std::sync::Arc;

use anyhow::Result;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::protocol::{Answer, FlowFilter};
use super::view::{FlowRecord, RecordState};

/// Sends the records that pass the filter until the client hangs up or there are no more. Who reads too slowly loses
/// records, and is told how many.
///
/// # Errors
/// The client is gone.
pub(super) async fn follow(
    stream: UnixStream,
    filter: &FlowFilter,
    mut records: Receiver<Arc<FlowRecord>>,
    allowed: bool,
) -> Result<()> {
    let (mut read, mut write) = stream.into_split();
    if !allowed {
        let refusal = Answer::<()>::Error("too many clients follow the flow log already".to_owned());
        return send(&mut write, &refusal).await;
    }
    send(&mut write, &Answer::Ok("following")).await?;
    let mut left = filter.limit.unwrap_or(usize::MAX);
    let mut ignored = [0; 64];
    while left > 0 {
        let record = tokio::select! {
            record = records.recv() => record,
            // What a client says while it follows means nothing; that it hangs up does.
            said = read.read(&mut ignored) => match said? {
                0 => return Ok(()),
                _ => continue,
            },
        };
        match record {
            Ok(record) if is_wanted(&record, filter) => send(&mut write, &*record).await?,
            Ok(_) => continue,
            Err(RecvError::Lagged(count)) => {
                let time = format!("{:.3}", Timestamp::now());
                send(&mut write, &FlowRecord::lost(time, count, "follower")).await?;
            }
            Err(RecvError::Closed) => return Ok(()),
        }
        left -= 1;
    }
    Ok(())
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), what: &impl serde::Serialize) -> Result<()> {
    let mut line = serde_json::to_string(what)?;
    line.push('\n');
    write.write_all(line.as_bytes()).await?;
    Ok(())
}

/// What was lost may have been wanted.
fn is_wanted(record: &FlowRecord, filter: &FlowFilter) -> bool {
    let service = || filter.wants_service(record.service.as_deref(), record.vip);
    let client =
        || filter.client.is_none_or(|wanted| record.client.is_some_and(|client| client.ip() == wanted));
    record.state == RecordState::Lost || (service() && client())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::sync::broadcast;

    use super::*;

    fn record(client: &str) -> Arc<FlowRecord> {
        Arc::new(FlowRecord {
            client: Some(client.parse().unwrap()),
            service: Some("demo/httpbin".into()),
            ..FlowRecord::of("2026-01-01T00:00:00.000Z".into(), RecordState::Opened)
        })
    }

    async fn lines(filter: FlowFilter, records: Receiver<Arc<FlowRecord>>, allowed: bool) -> Vec<String> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let served = tokio::spawn(async move { follow(ours, &filter, records, allowed).await });
        let mut lines = BufReader::new(theirs).lines();
        let mut all = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            all.push(line);
        }
        served.await.unwrap().unwrap();
        all
    }

    #[tokio::test]
    async fn a_follower_gets_what_it_wants_and_hears_what_it_lost() {
        let (sender, records) = broadcast::channel(2);
        for client in ["198.51.100.9:1", "198.51.100.1:1", "198.51.100.1:2", "198.51.100.2:3"] {
            sender.send(record(client)).unwrap();
        }
        drop(sender);
        let client = Some("198.51.100.1".parse().unwrap());
        let filter = FlowFilter { client, service: Some("httpbin".into()), limit: None };
        let all = lines(filter, records, true).await;
        assert_eq!(all[0], r#"{"ok":"following"}"#);
        let lost: FlowRecord = serde_json::from_str(&all[1]).unwrap();
        assert_eq!((lost.lost, lost.lost_in.as_deref()), (Some(2), Some("follower")));
        assert_eq!(serde_json::from_str::<FlowRecord>(&all[2]).unwrap(), *record("198.51.100.1:2"));
        assert_eq!(all.len(), 3);
    }

    #[tokio::test]
    async fn one_follower_too_many_is_refused() {
        let (_sender, records) = broadcast::channel(2);
        let all = lines(FlowFilter::default(), records, false).await;
        assert_eq!(all, [r#"{"error":"too many clients follow the flow log already"}"#]);
    }

    #[tokio::test]
    async fn a_follower_that_hangs_up_is_let_go_though_nothing_happens() {
        let (_sender, records) = broadcast::channel(2);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let served = tokio::spawn(async move { follow(ours, &FlowFilter::default(), records, true).await });
        drop(theirs);
        let _ = served.await.unwrap();
    }
}
