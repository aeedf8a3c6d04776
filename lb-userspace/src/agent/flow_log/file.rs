//! The flow log in a file, or on standard output: a record a line, in JSON.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::record;
use crate::status::view::FlowRecord;

/// How long after an error the file is opened again.
const RETRY: Duration = Duration::from_secs(1);

/// Where the flow log is written.
#[derive(Debug)]
pub(in crate::agent) struct Output {
    /// `None`: standard output.
    path: Option<PathBuf>,
    open: Option<Box<dyn Stream>>,
    /// Records that were not written since the last error.
    failed: u64,
    tried: Instant,
}

trait Stream: Write + Send + std::fmt::Debug {}

impl<W: Write + Send + std::fmt::Debug> Stream for W {}

impl Output {
    /// Opens it; `-` is standard output.
    ///
    /// # Errors
    /// It can't be written to.
    pub(in crate::agent) fn open(path: &Path) -> io::Result<Self> {
        let path = (path != Path::new("-")).then(|| path.to_owned());
        let open = Some(stream(path.as_deref())?);
        Ok(Self { path, open, failed: 0, tried: Instant::now() })
    }

    /// Writes all records in a thread of its own. SIGHUP makes it open the file anew, as rotation asks for.
    ///
    /// # Errors
    /// The kernel refuses a handler, or a thread.
    pub(in crate::agent) fn follow(mut self, mut records: Receiver<Arc<FlowRecord>>) -> io::Result<()> {
        let reopen = Arc::new(AtomicBool::new(false));
        let mut hangups = signal(SignalKind::hangup())?;
        let asked = reopen.clone();
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                asked.store(true, Ordering::Relaxed);
            }
        });
        thread::Builder::new().name("flow-log".into()).spawn(move || {
            loop {
                let record = match records.try_recv() {
                    Ok(record) => record,
                    Err(TryRecvError::Lagged(count)) => lagged(count),
                    Err(TryRecvError::Closed) => return self.flush(),
                    Err(TryRecvError::Empty) => {
                        self.flush();
                        match records.blocking_recv() {
                            Ok(record) => record,
                            Err(RecvError::Lagged(count)) => lagged(count),
                            Err(RecvError::Closed) => return,
                        }
                    }
                };
                if reopen.swap(false, Ordering::Relaxed) {
                    self.flush();
                    self.open = None;
                    self.tried = Instant::now() - RETRY;
                }
                self.write(&record);
            }
        })?;
        Ok(())
    }

    fn write(&mut self, record: &FlowRecord) {
        let written = self.stream().and_then(|stream| {
            serde_json::to_writer(&mut *stream, record)?;
            stream.write_all(b"\n")
        });
        self.judge(written, 1);
    }

    fn flush(&mut self) {
        let flushed = self.open.as_mut().map_or(Ok(()), Write::flush);
        self.judge(flushed, 0);
    }

    fn stream(&mut self) -> io::Result<&mut Box<dyn Stream>> {
        if self.open.is_none() {
            if self.tried.elapsed() < RETRY {
                return Err(io::Error::other("not tried again yet"));
            }
            self.tried = Instant::now();
            self.open = Some(stream(self.path.as_deref())?);
        }
        self.open.as_mut().ok_or_else(|| io::Error::other("not open"))
    }

    /// Says once that it goes wrong, and once that it goes on.
    fn judge(&mut self, result: io::Result<()>, records: u64) {
        let name = self.path.as_ref().map_or("standard output".into(), |path| path.display().to_string());
        match result {
            Ok(()) if self.failed > 0 && records > 0 => {
                tracing::info!("the flow log goes on in {name}; {} records are missing there", self.failed);
                self.failed = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.failed == 0 {
                    tracing::error!("the flow log can't be written to {name}: {error}; it is tried again");
                    self.tried = Instant::now();
                }
                self.failed += records.max(1);
                self.open = None;
            }
        }
    }
}

fn stream(path: Option<&Path>) -> io::Result<Box<dyn Stream>> {
    Ok(match path {
        None => Box::new(BufWriter::new(io::stdout())),
        Some(path) => {
            let file: File = OpenOptions::new().create(true).append(true).open(path)?;
            Box::new(BufWriter::new(file))
        }
    })
}

fn lagged(count: u64) -> Arc<FlowRecord> {
    Arc::new(FlowRecord::lost(record::now(), count, "file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::view::RecordState;

    fn record(time: &str) -> FlowRecord {
        FlowRecord::of(time.to_owned(), RecordState::Opened)
    }

    fn lines(path: &Path) -> Vec<FlowRecord> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn records_are_lines_of_json_behind_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows.jsonl");
        for run in ["1", "2"] {
            let mut output = Output::open(&path).unwrap();
            output.write(&record(run));
            output.flush();
        }
        assert_eq!(lines(&path), [record("1"), record("2")]);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows.jsonl");
        let mut output = Output::open(&path).unwrap();
        let directory = dir.path().join("gone");
        output.path = Some(directory.join("flows.jsonl"));
        output.open = None;
        output.tried = Instant::now() - RETRY;
        output.write(&record("1"));
        output.write(&record("2"));
        assert_eq!(output.failed, 2);
        std::fs::create_dir(&directory).unwrap();
        output.tried = Instant::now() - RETRY;
        output.write(&record("3"));
        output.flush();
        assert_eq!((output.failed, lines(&directory.join("flows.jsonl"))), (0, vec![record("3")]));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Output::open(&dir.path().join("missing/flows.jsonl")).is_err());
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_what_it_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows.jsonl");
        let (records, followed) = tokio::sync::broadcast::channel(2);
        for time in ["1", "2", "3", "4", "5"] {
            records.send(Arc::new(record(time))).unwrap();
        }
        Output::open(&path).unwrap().follow(followed).unwrap();
        let found = loop {
            let found = lines(&path);
            if found.len() == 3 {
                break found;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!((found[0].state, found[0].lost), (RecordState::Lost, Some(3)));
        assert_eq!(found[1..], [record("4"), record("5")]);
    }
}
