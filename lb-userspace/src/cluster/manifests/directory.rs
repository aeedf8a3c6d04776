//! Reads the directory: the text of every manifest, by directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The manifests of one directory: the text of each file, or why it cannot be read.
pub(super) type Files = BTreeMap<PathBuf, Result<String, String>>;

/// What was found at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// The gateway's own manifests.
    pub(super) top: Files,
    /// Each cluster's, or why its directory cannot be read.
    pub(super) clusters: BTreeMap<String, Result<Files, String>>,
}

/// Reads everything below `root`. Hidden entries are skipped: editors' and Kubernetes' own (`..data`).
/// Symbolic links are followed, for a mounted ConfigMap consists of them.
///
/// # Errors
///
/// `root` itself cannot be listed.
pub(super) fn read(root: &Path) -> io::Result<Reading> {
    let mut reading = Reading::default();
    for path in entries(root)? {
        if path.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let files = entries(&path)
                .map(|paths| paths.into_iter().filter_map(read_manifest).collect())
                .map_err(|error| error.to_string());
            reading.clusters.insert(name, files);
        } else if let Some((path, text)) = read_manifest(path) {
            reading.top.insert(path, text);
        }
    }
    Ok(reading)
}

/// The directories that hold manifests: `root` and those of the clusters.
pub(super) fn directories(root: &Path) -> Vec<PathBuf> {
    let below = entries(root).unwrap_or_default().into_iter().filter(|path| path.is_dir());
    std::iter::once(root.to_owned()).chain(below).collect()
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The text of a file if it is a manifest. One that vanished since it was listed is not.
fn read_manifest(path: PathBuf) -> Option<(PathBuf, Result<String, String>)> {
    let extension = path.extension().and_then(OsStr::to_str)?;
    if !matches!(extension, "yaml" | "yml" | "json") || path.is_dir() {
        return None;
    }
    match fs::read_to_string(&path) {
        Ok(text) => Some((path, Ok(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => None,
        Err(error) => Some((path, Err(error.to_string()))),
    }
}
