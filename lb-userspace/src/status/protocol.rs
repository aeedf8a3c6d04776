//! What goes over the socket: the client sends one line of JSON and reads one line of JSON.
//!
//! ```text
//! {"get":"flows","service":"demo/httpbin","limit":10}
//! {"ok":[{"client":…},…]}
//! ```
//!
//! `{"error":"…"}` is the answer to what could not be served.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

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
    fn an_unknown_request_is_an_error() {
        assert!(serde_json::from_str::<Request>(r#"{"get":"everything"}"#).is_err());
    }
}
