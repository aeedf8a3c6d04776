//! `baseline-lru`, loaded: benches/baseline-lru has the program.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData},
    programs::{ProgramFd, Xdp},
};
use lb_common::abi::{TCP, UDP};

use super::flows::{Net, Serving};
use crate::kernel_run::verified_instructions;

/// An element of its array of backends.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Backend {
    address: [u8; 16],
    macs: [u8; 12],
    port: [u8; 2],
    pad: u16,
}

/// Its settings.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Settings {
    snat_v6: [u8; 16],
    snat_v4: [u8; 4],
    backends: u32,
    client_macs: [u8; 12],
    pad: u32,
}

// SAFETY: of integers, without padding of the compiler's.
unsafe impl aya::Pod for Backend {}
// SAFETY: as above.
unsafe impl aya::Pod for Settings {}

/// The loaded program.
pub(super) struct Baseline {
    program: ProgramFd,
    ebpf: Ebpf,
}

impl Baseline {
    /// With room for so many flows, and one service of TCP and UDP with `net`'s backends.
    ///
    /// # Errors
    /// When it was not built, or the kernel refuses it.
    pub(super) fn load(net: Net, flows: u32) -> Result<Self> {
        let path = object();
        let bytes = fs::read(&path)
            .with_context(|| format!("cannot read {}: run `cargo xtask build-ebpf`", path.display()))?;
        let mut loader = EbpfLoader::new();
        let (used, unused) = if net == Net::V6 {
            (["FLOWS_V6", "REPLIES_V6"], ["FLOWS_V4", "REPLIES_V4"])
        } else {
            (["FLOWS_V4", "REPLIES_V4"], ["FLOWS_V6", "REPLIES_V6"])
        };
        used.iter().for_each(|name| {
            loader.map_max_entries(name, flows);
        });
        unused.iter().for_each(|name| {
            loader.map_max_entries(name, 1);
        });
        let mut ebpf = loader.load(&bytes).context("cannot load baseline-lru (root is needed)")?;
        let program: &mut Xdp =
            ebpf.program_mut("baseline").context("the object has no program")?.try_into()?;
        program.load().context("the kernel refuses baseline-lru")?;
        let program = program.fd()?.try_clone()?;
        let mut baseline = Self { program, ebpf };
        baseline.configure(net)?;
        Ok(baseline)
    }

    /// The program.
    pub(super) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// Its maps.
    pub(super) fn maps(&self) -> impl Iterator<Item = &Map> {
        self.ebpf.maps().map(|(_, map)| map)
    }

    /// How many instructions the verifier went through.
    pub(super) fn verified_instructions(&self) -> Vec<(String, u32)> {
        verified_instructions(&self.ebpf)
    }

    fn configure(&mut self, net: Net) -> Result<()> {
        let macs = [2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 2];
        let backends = net.backends(Serving::ONE, 0);
        let mut settings =
            Settings { client_macs: macs, backends: backends.len() as u32, ..Settings::default() };
        match net.snat() {
            IpAddr::V4(address) => settings.snat_v4 = address.octets(),
            IpAddr::V6(address) => settings.snat_v6 = address.octets(),
        }
        let first = if net == Net::V6 { settings.backends } else { 0 };
        self.array("SETTINGS")?.set(0, settings, 0)?;
        let mut array = self.array("BACKENDS")?;
        for (index, backend) in (first..).zip(&backends) {
            let port = backend.port().to_be_bytes();
            array.set(index, Backend { address: octets(backend.ip()), macs, port, pad: 0 }, 0)?;
        }
        for protocol in [TCP, UDP] {
            self.add_service(net.vip(), protocol)?;
        }
        Ok(())
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(Array::try_from(self.ebpf.map_mut(name).with_context(|| format!("it has no map {name}"))?)?)
    }

    fn add_service(&mut self, vip: SocketAddr, protocol: u8) -> Result<()> {
        let mut rest = [0; 8];
        rest[..2].copy_from_slice(&vip.port().to_be_bytes());
        rest[4] = protocol;
        match vip.ip() {
            IpAddr::V4(address) => {
                let mut key = [0; 12];
                key[..4].copy_from_slice(&address.octets());
                key[4..].copy_from_slice(&rest);
                let map = self.ebpf.map_mut("SERVICES_V4").context("it has no map SERVICES_V4")?;
                HashMap::<_, [u8; 12], u32>::try_from(map)?.insert(key, 1, 0)?;
            }
            IpAddr::V6(address) => {
                let mut key = [0; 24];
                key[..16].copy_from_slice(&address.octets());
                key[16..].copy_from_slice(&rest);
                let map = self.ebpf.map_mut("SERVICES_V6").context("it has no map SERVICES_V6")?;
                HashMap::<_, [u8; 24], u32>::try_from(map)?.insert(key, 1, 0)?;
            }
        }
        Ok(())
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// The object that `cargo xtask build-ebpf` made.
fn object() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/ebpf/baseline-lru.o")
}
