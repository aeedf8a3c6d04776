//! The judgements: facts in, findings out.

pub(super) mod host;
pub(super) mod interfaces;
pub(super) mod networks;
pub(super) mod paths;
pub(super) mod ports;
pub(super) mod servers;
