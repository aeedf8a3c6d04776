//! Kanmon's test bed.
//!
//! The bed builds story S1's network out of network namespaces that it makes itself, runs real servers in
//! them, and sends real traffic through a gateway. Nothing it does touches the machine's own network.
//!
//! - [`netns`]: namespaces, links, processes in namespaces, and the cleaning up of all of it;
//! - [`topology`]: story S1's network, its pods, its faults and its manifests;
//! - [`agent`]: the `kanmon` agent in the gateway's namespace, and what its CLI says;
//! - [`client`]: the load generator in the client's namespace;
//! - [`demo`]: what `cargo xtask demo` shows;
//! - [`mod@bench`]: what `cargo xtask bench` measures;
//! - [`kube`]: real Kubernetes control planes on that network, and their faults;
//! - [`kubelet`]: the pods of a real Kubernetes control plane as processes in namespaces;
//! - [`stage`]: such clusters with pods, registered with agents as a user registers them;
//! - [`kernel_run`]: the packet program in the kernel, on frames from memory;
//! - [`wire`]: frames of our own making on a link of the bed;
//! - [`scenario`]: what scenario tests share;
//! - [`scene`]: an app in two member clusters, for tests of what the agent does when something fails.
//!
//! A test reads like this:
//!
//! ```no_run
//! use tests::{agent::AgentOptions, client::TcpLoad, topology::{Bed, Options}};
//!
//! # fn main() -> anyhow::Result<()> {
//! let bed = Bed::s1(Options::default())?;
//! let _agent = bed.start_agent(AgentOptions::default())?;
//! let report = bed.client().tcp(TcpLoad::new(bed.vip_http(), 100))?;
//! assert_eq!(report.tally().failed, 0);
//! # Ok(())
//! # }
//! ```

pub mod agent;
pub mod bench;
pub mod client;
pub mod demo;
pub mod kernel_run;
pub mod kube;
pub mod kubelet;
pub mod netns;
mod output;
pub mod scenario;
pub mod scene;
pub mod stage;
pub mod topology;
pub mod wire;
