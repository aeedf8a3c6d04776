//! How a person or a supervisor ends the agent.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Why the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// SIGINT, a person's Ctrl-C: take everything away.
    CleanUp,
    /// SIGTERM, a restart: leave everything pinned and forwarding.
    Leave,
}

/// The signals that end the agent.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// When the kernel refuses a handler.
    pub(super) fn take() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the first signal.
    pub(super) async fn ending(&mut self) -> Ending {
        tokio::select! {
            _ = self.interrupt.recv() => Ending::CleanUp,
            _ = self.terminate.recv() => Ending::Leave,
        }
    }

    /// From now on any further signal ends the process at once.
    pub(super) fn force_on_next(mut self) {
        tokio::spawn(async move {
            self.ending().await;
            tracing::warn!("a second signal: ending at once; `kanmon cleanup` removes what is left");
            std::process::exit(130);
        });
    }
}
