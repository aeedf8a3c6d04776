//! Why an API server does not give what it is asked for, in one word and one sentence. No I/O.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use kube::core::Status;
use kube::runtime::watcher;

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// One word for programs: the reason of the condition `Connected`.
    pub(super) kind: FaultKind,
    /// A sentence for people.
    pub(super) message: String,
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FaultKind {
    /// No connection.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// No trust between the two ends.
    Tls,
    /// The credentials are not accepted (401).
    Unauthorized,
    /// They are, but may not do this (403).
    Forbidden,
    /// The server does not know such objects (404).
    NotFound,
    /// The server asks for fewer requests (429).
    TooManyRequests,
    /// The server is in trouble (5xx).
    ServerError,
    /// The credentials cannot be used or read.
    BadCredentials,
    /// Anything else.
    Other,
}

impl FaultKind {
    /// The word.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "Unreachable",
            Self::Timeout => "Timeout",
            Self::Tls => "TLS",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::TooManyRequests => "TooManyRequests",
            Self::ServerError => "ServerError",
            Self::BadCredentials => "BadCredentials",
            Self::Other => "RequestFailed",
        }
    }
}

impl Fault {
    /// No answer within this time.
    pub(super) fn timeout(after: Duration) -> Self {
        let message = format!("the API server did not answer within {} s", after.as_secs_f32());
        Self { kind: FaultKind::Timeout, message }
    }

    /// Credentials that no client can be made of.
    pub(super) fn credentials(error: &dyn StdError) -> Self {
        Self {
            kind: FaultKind::BadCredentials,
            message: format!("cannot use the credentials: {}", root(error)),
        }
    }

    /// Why a request failed.
    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            kube::Error::RustlsTls(_) => Self { kind: FaultKind::Tls, message: root(error) },
            kube::Error::Auth(_) | kube::Error::InferKubeconfig(_) => Self::credentials(error),
            _ => Self { kind: transport(error), message: root(error) },
        }
    }

    /// Why a watch failed.
    pub(super) fn of_watch(error: &watcher::Error) -> Self {
        use watcher::Error::{
            InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
        };
        match error {
            InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => Self::of(error),
            WatchError(status) => Self::of_status(status),
            NoResourceVersion => Self { kind: FaultKind::Other, message: error.to_string() },
        }
    }

    fn of_status(status: &Status) -> Self {
        let kind = match status.code {
            401 => FaultKind::Unauthorized,
            403 => FaultKind::Forbidden,
            404 => FaultKind::NotFound,
            429 => FaultKind::TooManyRequests,
            500..=599 => FaultKind::ServerError,
            _ => FaultKind::Other,
        };
        let text = if status.message.is_empty() { &status.reason } else { &status.message };
        Self { kind, message: format!("the API server answered {}: {text}", status.code) }
    }
}

/// Whether a server refuses to begin a watch with what there is (streaming lists), so that a list is needed.
pub(super) fn refuses_streaming(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 400 | 422))
}

/// What went wrong on the way to the server.
fn transport(error: &(dyn StdError + 'static)) -> FaultKind {
    for error in chain(error).filter_map(|cause| cause.downcast_ref::<io::Error>()) {
        match innermost(error).kind() {
            io::ErrorKind::TimedOut => return FaultKind::Timeout,
            // What rustls refuses reaches us as invalid data.
            io::ErrorKind::InvalidData => return FaultKind::Tls,
            _ => {}
        }
    }
    FaultKind::Unreachable
}

/// Connectors wrap errors of the system in errors of the system, which [`StdError::source`] passes over.
fn innermost(mut error: &io::Error) -> &io::Error {
    while let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        error = inner;
    }
    error
}

/// The innermost cause, which says most.
fn root(error: &dyn StdError) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), cause)
}

fn cause<'a>(error: &&'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    let error: &'a (dyn StdError + 'static) = *error;
    error.source()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16) -> Fault {
        Fault::of(&kube::Error::Api(Status::failure("no", "Because").with_code(code).boxed()))
    }

    #[test]
    fn each_status_has_its_word() {
        let words: Vec<_> =
            [401, 403, 404, 429, 500, 503, 409].map(|code| answered(code).kind.name()).to_vec();
        let expected = [
            "Unauthorized",
            "Forbidden",
            "NotFound",
            "TooManyRequests",
            "ServerError",
            "ServerError",
            "RequestFailed",
        ];
        assert_eq!(words, expected);
        assert_eq!(answered(401).message, "the API server answered 401: no");
    }

    #[test]
    fn the_way_to_the_server_is_told_apart() {
        let failed =
            |kind: io::ErrorKind| Fault::of(&kube::Error::Service(Box::new(io::Error::from(kind)))).kind;
        assert_eq!(failed(io::ErrorKind::ConnectionRefused), FaultKind::Unreachable);
        assert_eq!(failed(io::ErrorKind::TimedOut), FaultKind::Timeout);
        assert_eq!(failed(io::ErrorKind::InvalidData), FaultKind::Tls);
        let wrapped = io::Error::other(io::Error::from(io::ErrorKind::InvalidData));
        assert_eq!(Fault::of(&kube::Error::Service(Box::new(wrapped))).kind, FaultKind::Tls);
    }

    #[test]
    fn only_a_refused_start_asks_for_a_list_instead() {
        let error = |code| kube::Error::Api(Status::failure("no", "x").with_code(code).boxed());
        assert!(refuses_streaming(&watcher::Error::WatchStartFailed(error(422))));
        assert!(!refuses_streaming(&watcher::Error::WatchStartFailed(error(403))));
        assert!(!refuses_streaming(&watcher::Error::InitialListFailed(error(422))));
    }
}
