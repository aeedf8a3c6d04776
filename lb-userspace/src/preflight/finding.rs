//! What a check says.

use serde::{Deserialize, Serialize};

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it must be.
    Ok,
    /// It works, or it cannot be seen from here; a person should look.
    Warning,
    /// Traffic will fail.
    Failed,
}

impl Status {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// A number of things, in words: `1 network`, `2 networks`.
#[must_use]
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which check: one word, stable.
    pub check: String,
    /// What was looked at: an interface, a member, a network.
    pub subject: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do; `None` where all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &str, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            subject: subject.into(),
            status: Status::Ok,
            message: message.into(),
            fix: None,
        }
    }

    pub(super) fn warning(
        check: &str,
        subject: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { status: Status::Warning, fix: Some(fix.into()), ..Self::ok(check, subject, message) }
    }

    pub(super) fn failed(
        check: &str,
        subject: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { status: Status::Failed, fix: Some(fix.into()), ..Self::ok(check, subject, message) }
    }
}

/// All findings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In the order of the table.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of it.
    #[must_use]
    pub fn worst(&self) -> Status {
        self.findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok)
    }

    /// How many findings have this status.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }
}
