//! The packet program, generic over the packet and the maps: compiled for the kernel and for the host.

mod tables;

pub use tables::{Cells, Maps, Tables};
