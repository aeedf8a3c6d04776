//! docs/benchmarks.md: a page in parts, each written by the benchmark that it is about.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result};

use crate::output::write_for_caller;

/// What `bench` measures without a subcommand.
pub(super) const DATA_PLANE: &str = "data plane";
/// What `bench control-plane` measures.
pub(super) const CONTROL_PLANE: &str = "control plane";

const FILE: &str = "benchmarks.md";
const TITLE: &str = "# Benchmarks\n";

/// Writes a part of the page in a directory; the others stay.
///
/// # Errors
/// When the page can't be read or written.
pub(super) fn put(directory: &Path, part: &str, text: &str) -> Result<()> {
    let path = directory.join(FILE);
    let page = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => TITLE.to_owned(),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    write_for_caller(&path, &with(&page, part, text))
}

/// The page with this text for a part, in its place, or at the end where there is none yet.
fn with(page: &str, part: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- {part} -->\n"), format!("<!-- end of the {part} -->\n"));
    let text = format!("{begin}\n{}\n\n{end}", text.trim());
    let place = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    match place {
        Some((before, after)) => format!("{before}{text}{after}"),
        None => format!("{}\n\n{text}", page.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_takes_its_own_place_and_leaves_the_others() {
        let page = with(&with(TITLE, DATA_PLANE, "packets"), CONTROL_PLANE, "changes");
        assert!(page.starts_with("# Benchmarks\n") && page.find("packets") < page.find("changes"), "{page}");
        let page = with(&page, DATA_PLANE, "more packets");
        assert!(page.contains("\nmore packets\n") && !page.contains("\npackets"), "{page}");
        assert!(page.find("more packets") < page.find("changes"), "{page}");
    }
}
