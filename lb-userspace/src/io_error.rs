//! Errors of the operating system, for sentences.

use std::io;

/// The error without the number that the standard library appends.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
