//! Where and what of a YAML error, apart from each other.

/// Line and column, both from 1, and the message without them.
pub(crate) fn locate(error: &serde_saphyr::Error) -> (u64, u64, String) {
    let error = error.without_snippet();
    let what = error.to_string();
    let Some(at) = error.location() else { return (1, 1, what) };
    let suffix = format!(" at line {}, column {}", at.line(), at.column());
    (at.line(), at.column(), what.strip_suffix(&suffix).map(str::to_owned).unwrap_or(what))
}
