//! Kanmon's agent: watches clusters, decides who gets traffic, and writes that decision into BPF maps.
