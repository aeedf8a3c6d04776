//! What a running agent tells about itself: the views, the local socket that answers with them, and the
//! client that the command line uses.
//!
//! - [`view`]: the answers, with stable field names;
//! - [`protocol`]: one request, one answer, each a line of JSON; `follow`: many lines to one request;
//! - [`server`] and [`client`]: the two ends of the socket.

pub mod client;
mod follow;
pub mod health;
pub mod protocol;
pub mod server;
pub mod view;

/// Where the agent listens by default.
pub const DEFAULT_SOCKET: &str = "/run/kanmon/kanmon.sock";

#[cfg(test)]
mod tests {
    use crate::config::{Options, Settings};

    #[test]
    fn agent_and_command_line_meet_at_the_same_socket() {
        let options =
            Options { interfaces: vec!["eth0".into()], manifests: Some("dir".into()), ..Options::default() };
        let settings = Settings::try_from(options).unwrap();
        assert_eq!(settings.socket.to_str(), Some(super::DEFAULT_SOCKET));
        assert_eq!(settings.pin_dir.to_str(), Some(crate::bpf::PIN_DIR));
    }
}
