//! Kanmon's map ABI and packet program, shared by the kernel and the host.
//!
//! - [`abi`]: keys and values of every map.
//! - [`datapath`]: the life of a packet, generic over the packet and the maps.
//! - [`hash`], [`clock`]: the keyed flow hash and the coarse clock, used on both sides.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod clock;
pub mod datapath;
pub mod hash;
