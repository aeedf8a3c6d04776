//! The node's network: next hops, SNAT addresses and ports.
