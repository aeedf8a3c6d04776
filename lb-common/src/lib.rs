//! Kanmon's map ABI and packet program, shared by the kernel and the host.
#![no_std]
#![forbid(unsafe_code)]
