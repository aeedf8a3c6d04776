//! Whether a gateway reaches a member cluster's endpoints at all. Pure: the agent asks it of its probes, `kanmon
//! preflight` of connections that it tries itself.

use std::net::SocketAddr;

/// How many endpoints a message names.
const NAMED: usize = 2;

/// What became of a try to reach an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answered.
    Answered,
    /// It did not, for this reason.
    Failed(String),
    /// Nothing is known yet, or it is not probed.
    Unknown,
}

/// Why none of a member's endpoints can be reached, as a sentence; `None`: one answers, or it is not known yet of all
/// of them.
#[must_use]
pub fn blocked<'a>(answers: impl IntoIterator<Item = (SocketAddr, &'a Answer)>) -> Option<String> {
    let mut failed = Vec::new();
    for (address, answer) in answers {
        match answer {
            Answer::Answered | Answer::Unknown => return None,
            Answer::Failed(reason) => failed.push((address, reason)),
        }
    }
    if failed.is_empty() {
        return None;
    }
    let named: Vec<String> =
        failed.iter().take(NAMED).map(|(address, reason)| format!("{address}: {reason}")).collect();
    let who = match failed.len() {
        1 => "its only ready endpoint does not answer".to_owned(),
        number => format!("none of its {number} ready endpoints answers"),
    };
    Some(format!(
        "{who} this gateway ({}{})",
        named.join("; "),
        if failed.len() > NAMED { "; …" } else { "" }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u8) -> SocketAddr {
        ([10, 0, 1, host], 8080).into()
    }

    #[test]
    fn a_member_is_blocked_only_if_every_endpoint_is_known_to_fail() {
        let failed = Answer::Failed("no answer within 1s".to_owned());
        let of =
            |answers: &[&Answer]| blocked((1..).zip(answers).map(|(host, answer)| (address(host), *answer)));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[&failed, &Answer::Answered]), None);
        assert_eq!(of(&[&failed, &Answer::Unknown]), None);
        let message = of(&[&failed, &failed, &failed]).unwrap();
        assert!(message.starts_with("none of its 3 ready endpoints answers this gateway (10.0.1.1:8080: no"));
        assert!(message.ends_with("; …)"), "{message}");
        let message = of(&[&failed]).unwrap();
        assert!(
            message.starts_with("its only ready endpoint does not answer this gateway (10.0.1.1:8080: no")
        );
    }
}
