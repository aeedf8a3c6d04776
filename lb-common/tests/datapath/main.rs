//! The packet program on the host, one subject a file. After each packet all counters are compared, and all
//! tables are checked against each other.

mod active_refusal;
mod affinity;
mod bed;
mod docs;
mod events;
mod floods;
mod flow_log;
mod flow_table;
mod fragments;
mod frames;
mod fuzz_cases;
mod histories;
mod icmp;
mod last_hops;
mod limit;
mod long_life;
mod members;
mod mss;
mod mtu;
mod passing;
mod ports;
mod properties;
mod refusal;
mod refusals;
mod reply;
mod rescue;
mod rewrite;
mod selection;
mod sources;
mod sweep;
mod tcp;
mod told;
mod trip;
mod udp;
