//! The gateway's settings: flags and file.
