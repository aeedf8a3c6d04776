//! The maps. Sizes here are placeholders: the benchmark sets them at load.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap},
    macros::btf_map,
};

/// Who talks to whom. Everything as it is in the packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Tuple<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    /// Source and destination, in this order in memory.
    pub(crate) ports: u32,
    pub(crate) protocol: u32,
}

/// Where a service is.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Place<A> {
    pub(crate) address: A,
    pub(crate) port: u32,
    pub(crate) protocol: u32,
}

/// Where a flow's packets go.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) backend: u32,
    /// The SNAT address's, in network order.
    pub(crate) port: u16,
    pub(crate) pad: u16,
}

/// Where a reply goes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Client<A> {
    pub(crate) address: A,
    pub(crate) vip: A,
    /// Source and destination of what goes to the client.
    pub(crate) ports: u32,
}

/// A pod: the address's first four bytes where it is of IPv4.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) address: [u64; 2],
    /// Destination and source.
    pub(crate) macs: [u32; 3],
    /// In network order.
    pub(crate) port: u16,
    pub(crate) pad: u16,
}

/// What holds for all.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) snat_v6: [u64; 2],
    pub(crate) snat_v4: u32,
    /// Backends of each family: IPv4's come first.
    pub(crate) backends: u32,
    /// Towards clients: destination and source.
    pub(crate) client_macs: [u32; 3],
    pub(crate) pad: u32,
}

#[btf_map]
pub(crate) static SERVICES_V4: HashMap<Place<u32>, u32, 1024> = HashMap::new();
#[btf_map]
pub(crate) static SERVICES_V6: HashMap<Place<[u64; 2]>, u32, 1024> = HashMap::new();
#[btf_map]
pub(crate) static FLOWS_V4: LruHashMap<Tuple<u32>, Flow, 1024> = LruHashMap::new();
#[btf_map]
pub(crate) static FLOWS_V6: LruHashMap<Tuple<[u64; 2]>, Flow, 1024> = LruHashMap::new();
#[btf_map]
pub(crate) static REPLIES_V4: HashMap<Tuple<u32>, Client<u32>, 1024> = HashMap::new();
#[btf_map]
pub(crate) static REPLIES_V6: HashMap<Tuple<[u64; 2]>, Client<[u64; 2]>, 1024> = HashMap::new();
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, 1024> = Array::new();
#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();
