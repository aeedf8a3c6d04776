//! What is drained by hand, in the agent's state directory: a restart must not give a pod new connections that
//! somebody is about to take down.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Drain, Drains, Name};

const FILE: &str = "drained.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    drained: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(flatten)]
    name: Name,
    #[serde(flatten)]
    drain: Drain,
}

/// What an earlier run kept in `directory`; nothing where there is no file.
///
/// # Errors
/// The file cannot be read, or is not one of ours.
pub(in crate::agent) fn load(directory: &Path) -> Result<Drains> {
    let path = directory.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Drains::default()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let kept: Kept = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} does not hold what is drained", path.display()))?;
    ensure!(kept.version == VERSION, "{} is of version {}, not {VERSION}", path.display(), kept.version);
    Ok(kept.drained.into_iter().map(|row| (row.name, row.drain)).collect())
}

/// Keeps it in `directory`, which is made if it is missing. A crash leaves the old file or the new one.
///
/// # Errors
/// The directory or the file cannot be written.
pub(super) fn store(directory: &Path, drains: &Drains) -> Result<()> {
    let (path, temporary) = (directory.join(FILE), directory.join(format!(".{FILE}.new")));
    let row = |(name, drain): (&Name, &Drain)| Row { name: name.clone(), drain: drain.clone() };
    let json =
        serde_json::to_vec_pretty(&Kept { version: VERSION, drained: drains.iter().map(row).collect() })?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
