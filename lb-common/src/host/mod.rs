//! The packet program on the host: what tests run it with.
//!
//! - [`HostPacket`]: a frame in a buffer with head room.
//! - [`HostMaps`]: every map, as plain atomics and hash maps; [`HostCpu`] is one processor that works on them.
//! - [`Gateway`]: fills the maps as the agent would: services, rings, members, backends, SNAT addresses.
//! - [`Frame`]: builds packets; [`Seen`]: reads them, with all checksums recomputed in full.
//! - [`fragments()`], [`reassemble`]: packets in fragments, and put together again.
//! - [`ledger`]: checks that the tables agree with each other: forward and reverse in pairs, ports taken once.
//! - [`fuzzing`]: what the fuzz targets run.
//!
//! ```
//! use lb_common::{abi::TCP, datapath::Verdict, host::{Frame, Gateway, GatewayConfig, HostPacket, SYN}};
//!
//! let mut gateway = Gateway::new(&GatewayConfig::default(), 1);
//! let vip = "203.0.113.10:80".parse().unwrap();
//! gateway.add_service(vip, TCP, &["10.0.0.1:8080".parse().unwrap()]);
//! let frame = Frame::tcp("198.51.100.7:40000".parse().unwrap(), vip, SYN);
//! let mut packet = HostPacket::new(&frame.build());
//! assert_eq!(gateway.maps.cpu(0).process(&mut packet), Verdict::Transmit);
//! ```

mod fragments;
mod frame;
pub mod fuzzing;
mod gateway;
pub mod ledger;
mod maps;
mod packet;
mod seen;

pub use fragments::{FRAGMENT_HEADER, fragment, fragments, identification, reassemble};
pub use frame::{ACK, FIN, Frame, RST, SYN, TAG_8021AD, TAG_8021Q, Transport, checksum, ones_complement_sum};
pub use gateway::{Gateway, GatewayConfig, NextHop};
pub use maps::{Array, HostCells, HostCpu, HostMaps, Sizes};
pub use packet::{HEAD_ROOM, HostPacket};
pub use seen::Seen;
