//! Kanmon's agent: watches clusters, decides who gets traffic, and writes that decision into BPF maps.
//!
//! Data flows one way: [`cluster`] → [`desired`] → [`health`] → [`locality`] → [`maglev`] → [`plan`] → [`bpf`].
//! What stands between the I/O edges is pure: plain data in, plain data out, time passed in.

pub mod agent;
pub mod bpf;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod desired;
pub mod health;
mod io_error;
pub mod locality;
pub mod maglev;
pub mod network;
pub mod plan;
pub mod preflight;
pub mod remote_secret;
pub mod status;
