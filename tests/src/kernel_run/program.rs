//! Loading the program for test runs.

use std::{
    env, fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{
        DevMapHash, HashMap, Map, MapData, MapError, MapInfo, ProgramArray, RingBuf,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramFd, Xdp},
};
use lb_common::{
    abi::{Event, MOST_AFFINITY_BUCKETS, MOST_SYN_COPIES, SourceV4, SourceV6},
    host::Sizes,
};

use super::{KernelTables, Runner};

/// The program that packets enter by. The others call it too: it comes after them in `PROGRAMS`.
const ENTRY: &str = "kanmon";
/// The other programs, by their index in `PROGRAMS`.
const CALLED: [&str; 18] = [
    "kanmon_new_v4",
    "kanmon_new_v6",
    "kanmon_retry_v4",
    "kanmon_retry_v6",
    "kanmon_refused_v4",
    "kanmon_refused_v6",
    "kanmon_opened_v4",
    "kanmon_opened_v6",
    "kanmon_icmp_v4",
    "kanmon_icmp_v6",
    "kanmon_refuse_v4",
    "kanmon_refuse_v6",
    "kanmon_clamp",
    "kanmon_fragment_v4",
    "kanmon_fragment_v6",
    "kanmon_follow_v4",
    "kanmon_follow_v6",
    "kanmon_any",
];

/// Keys that a hash map of services, VIPs or backends has room for at least.
const LEAST_KEYS: u32 = 1024;
/// Room for source ranges of a family.
const SOURCE_RANGES: u32 = 8192;

/// What the program takes for the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The kernel's.
    Kernel,
    /// [`KernelTables::set_clock`].
    Injected,
}

/// The packet program, loaded for test runs.
pub struct KernelProgram {
    /// Its arrays.
    pub tables: KernelTables,
    entry: ProgramFd,
    called: Vec<ProgramFd>,
    programs: ProgramArray<MapData>,
    programs_fd: OwnedFd,
    pub(super) services_v4: HashMap<MapData, [u8; 8], u32>,
    pub(super) services_v6: HashMap<MapData, [u8; 20], u32>,
    pub(super) sources_v4: LpmTrie<MapData, [u8; 8], u32>,
    pub(super) sources_v6: LpmTrie<MapData, [u8; 20], u32>,
    pub(super) vips_v4: HashMap<MapData, [u8; 4], u32>,
    pub(super) vips_v6: HashMap<MapData, [u8; 16], u32>,
    pub(super) backends_v4: HashMap<MapData, [u8; 8], u32>,
    pub(super) backends_v6: HashMap<MapData, [u8; 20], u32>,
    egress: DevMapHash<MapData>,
    events: RingBuf<MapData>,
    maps: Vec<(String, MapInfo)>,
    /// Keeps the programs.
    ebpf: Ebpf,
}

impl KernelProgram {
    /// Loads it with tables of these sizes.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses the program.
    pub fn load(sizes: &Sizes, clock: Clock) -> Result<Self> {
        let inject = u32::from(clock == Clock::Injected);
        let mut loader = EbpfLoader::new();
        loader.override_global("INJECT_CLOCK", &inject, true);
        loader.override_global("TELL_DISPLACED", &1u32, true);
        for (name, elements) in elements(sizes) {
            loader.map_max_entries(name, elements);
        }
        let path = object_path();
        let object = fs::read(&path).with_context(|| {
            format!("cannot read the packet program {}: run `cargo xtask build-ebpf`", path.display())
        })?;
        let mut ebpf = loader.load(&object).context("cannot load the packet program (root is needed)")?;
        let mut maps = Vec::new();
        for (name, map) in ebpf.maps() {
            if let Some(data) = declared(map) {
                let info = data.info().with_context(|| format!("cannot look at the map {name}"))?;
                maps.push((name.to_owned(), info));
            }
        }
        maps.retain(|(name, _)| !name.starts_with('.'));
        maps.sort_by(|(a, _), (b, _)| a.cmp(b));
        let programs = ebpf.map("PROGRAMS").and_then(declared).context("the object has no PROGRAMS")?;
        let programs_fd = programs.fd().as_fd().try_clone_to_owned()?;
        let entry = load(&mut ebpf, ENTRY)?;
        let called = CALLED.iter().map(|name| load(&mut ebpf, name)).collect::<Result<Vec<_>>>()?;
        let mut program = Self {
            tables: KernelTables::take(&mut ebpf)?,
            entry,
            called,
            programs: take(&mut ebpf, "PROGRAMS")?,
            programs_fd,
            services_v4: take(&mut ebpf, "SERVICES_V4")?,
            services_v6: take(&mut ebpf, "SERVICES_V6")?,
            sources_v4: take(&mut ebpf, "SOURCES_V4")?,
            sources_v6: take(&mut ebpf, "SOURCES_V6")?,
            vips_v4: take(&mut ebpf, "VIPS_V4")?,
            vips_v6: take(&mut ebpf, "VIPS_V6")?,
            backends_v4: take(&mut ebpf, "BACKENDS_V4")?,
            backends_v6: take(&mut ebpf, "BACKENDS_V6")?,
            egress: take(&mut ebpf, "EGRESS")?,
            events: take(&mut ebpf, "EVENTS")?,
            maps,
            ebpf,
        };
        program.install_called_programs()?;
        Ok(program)
    }

    /// A runner of the entry program.
    ///
    /// # Errors
    /// When the process has too many files open.
    pub fn runner(&self) -> io::Result<Runner> {
        self.entry.as_fd().try_clone_to_owned().map(Runner::new)
    }

    /// The entry program.
    pub(crate) fn entry(&self) -> BorrowedFd<'_> {
        self.entry.as_fd()
    }

    /// The array `PROGRAMS`.
    pub(super) fn programs(&self) -> BorrowedFd<'_> {
        self.programs_fd.as_fd()
    }

    /// Where the entry program is in it.
    pub(super) fn entry_index(&self) -> i32 {
        self.called.len() as i32
    }

    /// How many instructions the verifier went through, of each program.
    pub(crate) fn verified_instructions(&self) -> Vec<(String, u32)> {
        verified_instructions(&self.ebpf)
    }

    /// What the kernel says about each map that the program declares, in the order of their names.
    pub fn maps(&self) -> impl Iterator<Item = (&str, &MapInfo)> {
        self.maps.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// Fills `PROGRAMS`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn install_called_programs(&mut self) -> Result<()> {
        for (index, program) in (0..).zip(self.called.iter().chain([&self.entry])) {
            self.programs.set(index, program, 0)?;
        }
        Ok(())
    }

    /// Empties `PROGRAMS`, as it is before an agent is ready.
    ///
    /// # Errors
    /// When they are not there.
    pub fn remove_called_programs(&mut self) -> Result<()> {
        for (index, _) in (0..).zip(self.called.iter().chain([&self.entry])) {
            self.programs.clear_index(&index)?;
        }
        Ok(())
    }

    /// Lets the program redirect to an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn add_egress(&mut self, ifindex: u32) -> Result<()> {
        Ok(self.egress.insert(ifindex, ifindex, None, 0)?)
    }

    /// Takes an interface out again.
    ///
    /// # Errors
    /// When it is not in.
    pub fn remove_egress(&mut self, ifindex: u32) -> Result<()> {
        Ok(self.egress.remove(ifindex)?)
    }

    /// Whether the trie of IPv4 source ranges has one that a client of a service is in, as the kernel's own lookup says.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn is_source_v4(&self, key: SourceV4) -> Result<bool> {
        found(self.sources_v4.get(&Key::new(64, bytemuck::cast(key)), 0))
    }

    /// The same for IPv6.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn is_source_v6(&self, key: SourceV6) -> Result<bool> {
        found(self.sources_v6.get(&Key::new(160, bytemuck::cast(key)), 0))
    }

    /// The next event that the program has sent.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.next().and_then(|bytes| bytemuck::try_pod_read_unaligned(&bytes).ok())
    }
}

fn found(result: Result<u32, MapError>) -> Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How many instructions the verifier went through, of each loaded program of an object.
pub(crate) fn verified_instructions(ebpf: &Ebpf) -> Vec<(String, u32)> {
    let counted = ebpf.programs().filter_map(|(name, program)| {
        Some((name.to_owned(), program.info().ok()?.verified_instruction_count()?))
    });
    let mut counted: Vec<_> = counted.collect();
    counted.sort();
    counted
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    let program: &mut Xdp = program.try_into()?;
    program.load().with_context(|| format!("the kernel refuses the program {name}"))?;
    Ok(program.fd()?.try_clone()?)
}

fn take<M: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<M>
where
    M::Error: std::error::Error + Send + Sync + 'static,
{
    let map = ebpf.take_map(name).with_context(|| format!("the packet program has no map {name}"))?;
    M::try_from(map).with_context(|| format!("cannot use the map {name}"))
}

/// A map of one of the kinds that the program declares.
fn declared(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::DevMapHash(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// The object that `cargo xtask build-ebpf` made, or the one that `KANMON_EBPF_OBJECT` names.
fn object_path() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/ebpf/kanmon.o");
    env::var_os("KANMON_EBPF_OBJECT").map_or_else(built, PathBuf::from)
}

/// The maps whose sizes are set at load. Hash maps are never smaller than the object declares them.
fn elements(sizes: &Sizes) -> [(&'static str, u32); 24] {
    let (services, backends) = (sizes.services.max(LEAST_KEYS), sizes.backends.max(LEAST_KEYS));
    [
        ("SERVICES_V4", services),
        ("SERVICES_V6", services),
        ("VIPS_V4", services),
        ("VIPS_V6", services),
        ("BACKENDS_V4", backends),
        ("BACKENDS_V6", backends),
        ("SOURCES_V4", SOURCE_RANGES),
        ("SOURCES_V6", SOURCE_RANGES),
        ("DESCRIPTORS", sizes.services),
        ("RINGS", sizes.ring_pairs),
        ("MEMBERS", sizes.members),
        ("BACKENDS", sizes.backends),
        ("PORTS", sizes.backends * sizes.snat_stride),
        ("FLOWS", sizes.flow_buckets),
        ("HANDSHAKES", sizes.flow_buckets),
        ("AFFINITY", sizes.flow_buckets.min(MOST_AFFINITY_BUCKETS)),
        ("SYNS", sizes.flow_buckets.min(MOST_SYN_COPIES)),
        ("FLOW_STATS", sizes.flow_stats),
        ("REVERSE_V4", sizes.reverse_v4_buckets),
        ("REVERSE_V6", sizes.reverse_v6_buckets),
        ("COUNTERS", sizes.cpus),
        ("MEMBER_STATS", sizes.cpus * sizes.members),
        ("EVENT_BUDGET", sizes.cpus),
        ("REFUSALS", sizes.cpus),
    ]
}
