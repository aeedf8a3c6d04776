//! The last good state on disk: for a start at which the directory cannot be read.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::desired::{Allocations, ClusterObjects, GatewayObjects};

const FILE: &str = "last-good.json";
const VERSION: u32 = 1;

/// What the next start begins with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LastGood {
    /// What belongs to the gateway.
    pub gateway: GatewayObjects,
    /// The clusters, by name.
    pub clusters: BTreeMap<String, Arc<ClusterObjects>>,
    /// The VIPs that came from pools, so that a restart moves none.
    pub allocations: Allocations,
}

/// Why the last good state cannot be kept or read.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is not one of ours, or of another version.
    #[error("{path} does not hold a last good state ({what}); remove it", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
}

/// The file: the fields of [`LastGood`] and a version. Not by `#[serde(flatten)]`: that would compile every
/// Kubernetes type for one more form of input and of output.
#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    gateway: &'a GatewayObjects,
    clusters: &'a BTreeMap<String, Arc<ClusterObjects>>,
    allocations: &'a Allocations,
}

/// What every version of the file has.
#[derive(Deserialize)]
struct Header {
    version: u32,
}

/// Keeps the state in `directory`, which is made if it is missing. A crash leaves the old file or the new one.
///
/// # Errors
///
/// The directory or the file cannot be written.
pub fn store_last_good(directory: &Path, state: &LastGood) -> Result<(), CacheError> {
    let path = directory.join(FILE);
    let temporary = directory.join(format!(".{FILE}.new"));
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| CacheError::Io { action, path, source }
    };
    fs::create_dir_all(directory).map_err(failed("make", directory))?;
    let LastGood { gateway, clusters, allocations } = state;
    let json = serde_json::to_vec(&Written { version: VERSION, gateway, clusters, allocations })
        .map_err(|error| failed("write", &temporary)(error.into()))?;
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&json)?;
        file.sync_all()
    };
    write().map_err(failed("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(failed("replace", &path))
}

/// The state that is kept in `directory`; `None` if there is none.
///
/// # Errors
///
/// The file cannot be read, or is not one of ours.
pub fn load_last_good(directory: &Path) -> Result<Option<LastGood>, CacheError> {
    let path = directory.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CacheError::Io { action: "read", path, source }),
    };
    let foreign = |what: String| CacheError::Foreign { path: path.clone(), what };
    let header: Header = serde_json::from_slice(&bytes).map_err(|error| foreign(error.to_string()))?;
    if header.version != VERSION {
        return Err(foreign(format!("version {}, not {VERSION}", header.version)));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| foreign(error.to_string()))
}
