//! What goes over the socket: the client sends one line of JSON and reads one line of JSON.
//!
//! ```text
//! {"get":"flows","service":"demo/httpbin","limit":10}
//! {"ok":[{"client":…},…]}
//! ```
//!
//! `{"error":"…"}` is the answer to what could not be served. What changes something says `do` instead of `get`:
//!
//! ```text
//! {"do":"drain","what":"hangzhou"}
//! ```

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest request, in bytes: a client that sends more is not one of ours.
pub const MAX_REQUEST: u64 = 4096;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "get", rename_all = "lowercase")]
pub enum Request {
    /// [`super::view::Status`].
    Status,
    /// A list of [`super::view::Service`].
    Services,
    /// A list of [`super::view::Backend`].
    Backends,
    /// A list of [`super::view::Flow`].
    Flows(FlowFilter),
    /// `{"ok":"following"}`, and then each [`super::view::FlowRecord`] as it comes, a line each, until one side hangs
    /// up.
    Follow(FlowFilter),
}

/// What a client wants changed. The answer is [`super::view::Drained`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Change {
    /// No new flows for this.
    Drain(Named),
    /// New flows again, unless something else keeps them away.
    Undrain(Named),
}

/// What is to be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// A cluster's name, or a backend's address and port, perhaps with its protocol: `10.0.1.10:8080/TCP`.
    pub what: String,
}

/// Whatever a client may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A question.
    Get(Request),
    /// An order.
    Do(Change),
}

impl Message {
    /// Reads a client's line.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(line: &str) -> serde_json::Result<Self> {
        let value: Value = serde_json::from_str(line)?;
        // Tried one after the other, the error would name neither's words.
        if value.get("do").is_some() {
            serde_json::from_value(value).map(Self::Do)
        } else {
            serde_json::from_value(value).map(Self::Get)
        }
    }
}

/// Which flows a client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowFilter {
    /// Only those of this service: `name`, `namespace/name`, `vip` or `vip:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only those of this client address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// At most so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl FlowFilter {
    /// Whether it wants what belongs to this service, as far as that is known.
    #[must_use]
    pub fn wants_service(&self, service: Option<&str>, vip: Option<SocketAddr>) -> bool {
        self.service.as_deref().is_none_or(|wanted| {
            let named = service.is_some_and(|name| {
                name == wanted || name.split_once('/').is_some_and(|(_, name)| name == wanted)
            });
            named || vip.is_some_and(|vip| vip.to_string() == wanted || vip.ip().to_string() == wanted)
        })
    }
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer<T> {
    /// What was asked for.
    Ok(T),
    /// Why it can't be had.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_single_lines_that_a_person_can_type() {
        assert_eq!(serde_json::from_str::<Request>(r#"{"get":"status"}"#).unwrap(), Request::Status);
        let flows =
            Request::Flows(FlowFilter { client: Some([198, 51, 100, 2].into()), ..Default::default() });
        assert_eq!(serde_json::to_string(&flows).unwrap(), r#"{"get":"flows","client":"198.51.100.2"}"#);
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"get":"flows"}"#).unwrap(),
            Request::Flows(FlowFilter::default())
        );
    }

    #[test]
    fn an_order_is_told_from_a_question() {
        let drain = Change::Drain(Named { what: "hangzhou".into() });
        assert_eq!(serde_json::to_string(&drain).unwrap(), r#"{"do":"drain","what":"hangzhou"}"#);
        assert_eq!(Message::parse(r#"{"do":"drain","what":"hangzhou"}"#).unwrap(), Message::Do(drain));
        assert_eq!(Message::parse(r#"{"get":"status"}"#).unwrap(), Message::Get(Request::Status));
    }

    #[test]
    fn an_unknown_request_is_an_error_that_names_the_known_ones() {
        for (line, known) in [(r#"{"get":"everything"}"#, "backends"), (r#"{"do":"everything"}"#, "undrain")]
        {
            let error = Message::parse(line).unwrap_err().to_string();
            assert!(error.contains(known), "{line}: {error}");
        }
        assert!(Message::parse("GET / HTTP/1.1").is_err());
    }
}
