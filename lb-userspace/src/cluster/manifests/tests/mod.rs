//! Directories of manifests, parsed and followed.

mod manifests;
mod watching;

use super::super::tests::{member, policy, service};
