//! Kanmon's map ABI and packet program, shared by the kernel and the host.
//!
//! - [`abi`]: keys and values of every map.
//! - [`datapath`]: the life of a packet, generic over the packet and the maps.
//! - [`hash`], [`clock`]: the keyed flow hash and the coarse clock, used on both sides.
//! - `host` (with the feature of that name): packets, maps and frames for running the packet program in tests.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "host")]
extern crate std;

pub mod abi;
pub mod clock;
pub mod datapath;
pub mod hash;
#[cfg(feature = "host")]
pub mod host;
