//! Loading the packet program, over maps that are new or found pinned.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{
    Array, DevMapHash, HashMap, Map, MapData, MapError, MapInfo, MapType, ProgramArray, RingBuf,
};
use aya::programs::{ProgramError, ProgramFd, RawTracePoint, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use lb_common::abi::Config;

use super::host::{self, HostError};
use super::layout::{MapKind, MapLayout, SizeError, TableSizes};
use super::lock::AgentLock;
use super::memory::{MappedArray, Memory};
use super::pins::{self, PinDir, PinError};
use super::settings::{Settings, SettingsError, random_flow_key};

/// The packet program, as `cargo xtask build-ebpf` made it.
pub static EBPF_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KANMON_EBPF_OBJECT_PATH"));

/// `BPF_F_RDONLY_PROG`, which the kernel adds to device maps by itself.
const RDONLY_PROG: u32 = 1 << 7;
/// The program that links run. The others call it too: it comes after them in [`PROGRAM_ARRAY`].
pub(super) const ENTRY_PROGRAM: &str = "kanmon";
/// The map of programs that the entry program calls.
const PROGRAM_ARRAY: &str = "PROGRAMS";
/// Those programs, by index.
const CALLED_PROGRAMS: [&str; 18] = [
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

/// The program that counts redirects which fail, and the map by which it knows ours.
const REDIRECTS_PROGRAM: &str = "kanmon_redirects";
const EGRESS_ID: &str = "EGRESS_ID";
/// The tracepoint that tells of them.
const REDIRECT_ERROR: &str = "xdp_redirect_err";

/// The loaded packet program with its maps. Dropping it closes descriptors and nothing else: what is pinned
/// and attached stays so.
pub struct Kernel {
    pub(super) pins: PinDir,
    pub(super) sizes: TableSizes,
    pub(super) memory: Arc<Memory>,
    pub(super) config: Config,
    pub(super) hashes: Hashes,
    pub(super) egress: DevMapHash<MapData>,
    pub(super) events: Option<RingBuf<MapData>>,
    pub(super) entry: ProgramFd,
    /// Where this program version's array is pinned.
    pub(super) program_array: PathBuf,
    adopted: bool,
    /// Why redirects that fail are not counted; `None`: they are, as long as this lives.
    redirects_uncounted: Option<String>,
    /// Held as long as the maps are.
    _lock: AgentLock,
    /// Keeps the programs open.
    _ebpf: Ebpf,
}

/// The hash maps and tries.
pub(super) struct Hashes {
    pub(super) services_v4: HashMap<MapData, [u8; 8], u32>,
    pub(super) services_v6: HashMap<MapData, [u8; 20], u32>,
    pub(super) sources_v4: LpmTrie<MapData, [u8; 8], u32>,
    pub(super) sources_v6: LpmTrie<MapData, [u8; 20], u32>,
    pub(super) vips_v4: HashMap<MapData, [u8; 4], u32>,
    pub(super) vips_v6: HashMap<MapData, [u8; 16], u32>,
    pub(super) backends_v4: HashMap<MapData, [u8; 8], u32>,
    pub(super) backends_v6: HashMap<MapData, [u8; 20], u32>,
}

/// Why the packet program can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The machine or the process lacks something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A table size can't be.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The pin directory can't be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A pinned map is not what this agent would make.
    #[error(
        "the pinned map {} has {property} {found}, but these settings need {wanted}: set the table sizes it was \
         made with, or remove all of them (which ends all flows) with `kanmon cleanup --pin-dir {}`",
        .pin.display(), .pin_dir.display()
    )]
    Mismatch {
        /// The pin.
        pin: PathBuf,
        /// The pin directory.
        pin_dir: PathBuf,
        /// What differs.
        property: &'static str,
        /// As it is.
        found: String,
        /// As it must be.
        wanted: String,
    },
    /// aya can't load the object.
    #[error("can't load the packet program: {0}")]
    Object(#[from] EbpfError),
    /// The kernel refuses a program.
    #[error("the kernel refuses the program {name}: {source}")]
    Program {
        /// The program.
        name: &'static str,
        /// Why, with the verifier's log.
        source: ProgramError,
    },
    /// The object lacks a map or a program.
    #[error("the packet program has no {0}: build it anew with `cargo xtask build-ebpf`")]
    Missing(&'static str),
    /// A map can't be used.
    #[error("can't use the map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// A map can't be mapped into memory.
    #[error("can't map {name} into memory: {source}")]
    Memory {
        /// The map.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Kernel {
    /// Loads the packet program over the maps in a pin directory, which it makes where they are missing.
    /// Nothing is attached. The lock must be that of `pin_dir`.
    ///
    /// # Errors
    ///
    /// When the machine can't serve, when pins of another layout or other sizes are there, or when the
    /// kernel refuses. Maps that this call made are removed again.
    pub fn load(pin_dir: &Path, sizes: TableSizes, lock: AgentLock) -> Result<Self, LoadError> {
        host::check()?;
        sizes.validate()?;
        let pins = PinDir::prepare(pin_dir)?;
        let adopted = !pins::entries(&pins.maps())?.is_empty();
        let loaded = load(&pins, sizes, lock, adopted);
        if loaded.is_err() && !adopted {
            for pin in pins::entries(&pins.maps()).unwrap_or_default() {
                let _ = fs::remove_file(pin);
            }
        }
        loaded
    }

    /// Whether the maps were found rather than made: then they may hold flows, and must be reconciled.
    #[must_use]
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// Why redirects that fail after the program's verdict are not counted; `None`: they are.
    #[must_use]
    pub fn redirects_uncounted(&self) -> Option<&str> {
        self.redirects_uncounted.as_deref()
    }

    /// The table sizes.
    #[must_use]
    pub const fn sizes(&self) -> &TableSizes {
        &self.sizes
    }

    /// The pin directory.
    #[must_use]
    pub const fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// The arrays. They may be kept longer than the `Kernel` and used by several tasks.
    #[must_use]
    pub fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }

    /// The settings that the packet program reads.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Writes the settings. The flow table's key and the numbers of SNAT addresses stay what they were.
    ///
    /// # Errors
    ///
    /// When they can't be, or when flows in adopted tables could not survive them; nothing is written then.
    pub fn configure(&mut self, settings: &Settings) -> Result<(), SettingsError> {
        let config = settings.encode(&self.config, &self.sizes)?;
        self.memory.write_config(&config);
        self.config = config;
        Ok(())
    }
}

fn load(pins: &PinDir, sizes: TableSizes, lock: AgentLock, adopted: bool) -> Result<Kernel, LoadError> {
    let layouts = sizes.maps();
    for layout in &layouts {
        let pin = pins.map(layout.name);
        if pin.exists() {
            check_pin(pins, &pin, layout)?;
        }
    }
    let Programs { mut ebpf, entry, called } =
        load_programs(pins, &layouts, true).or_else(|error| without_displaced(pins, &layouts, error))?;
    let redirects_uncounted = count_redirects(&mut ebpf).err().map(|error| error.to_string());
    if let Some(why) = &redirects_uncounted {
        tracing::warn!("packets that are lost after the program's verdict are not counted: {why}");
    }
    let memory = map_arrays(&mut ebpf, &layouts)?;
    let mut config = memory.read_config();
    if config == bytemuck::Zeroable::zeroed() {
        config.flow_key = random_flow_key();
        memory.write_config(&config);
    }
    let hashes = Hashes::take(&mut ebpf)?;
    let egress = take(&mut ebpf, "EGRESS")?;
    let events = Some(take(&mut ebpf, "EVENTS")?);
    // Last, because nothing removes its pin should something fail after it.
    let program_array = fill_program_array(&mut ebpf, pins, called.iter().chain([&entry]))?;
    Ok(Kernel {
        hashes,
        egress,
        events,
        pins: pins.clone(),
        sizes,
        memory: Arc::new(memory),
        config,
        entry,
        program_array,
        adopted,
        redirects_uncounted,
        _lock: lock,
        _ebpf: ebpf,
    })
}

/// The programs, over maps that nobody has taken yet.
struct Programs {
    ebpf: Ebpf,
    entry: ProgramFd,
    /// By index in [`PROGRAM_ARRAY`].
    called: Vec<ProgramFd>,
}

/// Loads the programs. `tell_displaced`: the flow log hears of flows that make room for new ones.
fn load_programs(pins: &PinDir, layouts: &[MapLayout], tell_displaced: bool) -> Result<Programs, LoadError> {
    let tell = u32::from(tell_displaced);
    let mut loader = EbpfLoader::new();
    loader.override_global("TELL_DISPLACED", &tell, true);
    for layout in layouts {
        loader.map_max_entries(layout.name, layout.max_entries);
        loader.map_pin_path(layout.name, pins.map(layout.name));
    }
    let mut ebpf = loader.load(EBPF_OBJECT)?;
    for layout in layouts {
        if ebpf.map(layout.name).is_none() {
            return Err(LoadError::Missing(layout.name));
        }
        check_pin(pins, &pins.map(layout.name), layout)?;
    }
    // Before the maps are taken: loading a program needs all their descriptors open.
    let entry = load_program(&mut ebpf, ENTRY_PROGRAM)?;
    let mut called = Vec::new();
    for name in CALLED_PROGRAMS {
        called.push(load_program(&mut ebpf, name)?);
    }
    Ok(Programs { ebpf, entry, called })
}

/// Attaches the program that counts redirects which fail. It serves nothing but a counter, and so stops nobody where the
/// kernel refuses it.
fn count_redirects(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let missing = |name| move || LoadError::Missing(name);
    let Some(Map::DevMapHash(egress)) = ebpf.map("EGRESS") else { return Err(LoadError::Missing("EGRESS")) };
    let id = egress.info().map_err(|source| LoadError::Map { name: "EGRESS", source })?.id();
    let failed = |source| LoadError::Map { name: EGRESS_ID, source };
    let map = ebpf.map_mut(EGRESS_ID).ok_or_else(missing(EGRESS_ID))?;
    Array::<_, u32>::try_from(map).and_then(|mut array| array.set(0, id, 0)).map_err(failed)?;
    let failed = |source| LoadError::Program { name: REDIRECTS_PROGRAM, source };
    let program = ebpf.program_mut(REDIRECTS_PROGRAM).ok_or_else(missing(REDIRECTS_PROGRAM))?;
    let program: &mut RawTracePoint = program.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    program.attach(REDIRECT_ERROR).map_err(failed)?;
    Ok(())
}

/// Loads what the verifiers of old kernels (6.1) can follow too, after they refused the whole.
fn without_displaced(pins: &PinDir, layouts: &[MapLayout], error: LoadError) -> Result<Programs, LoadError> {
    if !matches!(error, LoadError::Program { .. }) {
        return Err(error);
    }
    let programs = load_programs(pins, layouts, false).map_err(|_| error)?;
    tracing::warn!(
        "this kernel's verifier can't follow the whole packet program: the flow log will not tell of connections \
         that make room for new ones in full tables; everything else is as on newer kernels"
    );
    Ok(programs)
}

/// Compares a pinned map with what this agent would make: aya adopts a pin without looking at it.
fn check_pin(pins: &PinDir, pin: &Path, layout: &MapLayout) -> Result<(), LoadError> {
    let failed = |source| LoadError::Map { name: layout.name, source };
    let info = MapInfo::from_pin(pin).map_err(failed)?;
    let kind = match layout.kind {
        MapKind::Hash => MapType::Hash,
        MapKind::Trie => MapType::LpmTrie,
        MapKind::Array => MapType::Array,
        MapKind::RingBuffer => MapType::RingBuf,
        MapKind::DeviceHash => MapType::DevMapHash,
    };
    let found_kind = info.map_type().map_err(failed)?;
    let numbers = [
        ("key size", info.key_size(), layout.key_size),
        ("value size", info.value_size(), layout.value_size),
        ("a number of entries of", info.max_entries(), layout.max_entries),
        ("flags", info.map_flags() & !RDONLY_PROG, layout.flags),
    ];
    let different = (found_kind != kind)
        .then(|| ("type", format!("{found_kind:?}"), format!("{kind:?}")))
        .or_else(|| {
            numbers
                .into_iter()
                .find(|(_, found, wanted)| found != wanted)
                .map(|(property, found, wanted)| (property, found.to_string(), wanted.to_string()))
        });
    match different {
        None => Ok(()),
        Some((property, found, wanted)) => Err(LoadError::Mismatch {
            pin: pin.to_owned(),
            pin_dir: pins.root().to_owned(),
            property,
            found,
            wanted,
        }),
    }
}

fn map_arrays(ebpf: &mut Ebpf, layouts: &[MapLayout]) -> Result<Memory, LoadError> {
    let mut map = |name: &'static str| {
        let layout = layouts.iter().find(|layout| layout.name == name).ok_or(LoadError::Missing(name))?;
        let Some(Map::Array(data)) = ebpf.take_map(name) else {
            return Err(LoadError::Missing(name));
        };
        MappedArray::map(std::os::fd::AsFd::as_fd(data.fd()), layout)
            .map_err(|source| LoadError::Memory { name, source })
    };
    Ok(Memory {
        address_filter: map("ADDRESS_FILTER")?,
        descriptors: map("DESCRIPTORS")?,
        rings: map("RINGS")?,
        members: map("MEMBERS")?,
        backends: map("BACKENDS")?,
        ports: map("PORTS")?,
        flows: map("FLOWS")?,
        handshakes: map("HANDSHAKES")?,
        locks: map("LOCKS")?,
        reverse_v4: map("REVERSE_V4")?,
        reverse_v6: map("REVERSE_V6")?,
        last_hops: map("LAST_HOPS")?,
        config: map("CONFIG")?,
        counters: map("COUNTERS")?,
        member_stats: map("MEMBER_STATS")?,
        flow_stats: map("FLOW_STATS")?,
    })
}

impl Hashes {
    fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            services_v4: take(ebpf, "SERVICES_V4")?,
            services_v6: take(ebpf, "SERVICES_V6")?,
            sources_v4: take(ebpf, "SOURCES_V4")?,
            sources_v6: take(ebpf, "SOURCES_V6")?,
            vips_v4: take(ebpf, "VIPS_V4")?,
            vips_v6: take(ebpf, "VIPS_V6")?,
            backends_v4: take(ebpf, "BACKENDS_V4")?,
            backends_v6: take(ebpf, "BACKENDS_V6")?,
        })
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("pins", &self.pins)
            .field("sizes", &self.sizes)
            .field("adopted", &self.adopted)
            .finish_non_exhaustive()
    }
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    M::try_from(map).map_err(|source| LoadError::Map { name, source })
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, LoadError> {
    let failed = |source| LoadError::Program { name, source };
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    let program: &mut Xdp = program.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(failed)
}

/// Fills the array of called programs and pins it: unpinned, it would be emptied when the agent ends, under a
/// program that is still attached. Each program version has one of its own, so that an update never shows an
/// old program a new callee.
fn fill_program_array<'a>(
    ebpf: &mut Ebpf,
    pins: &PinDir,
    programs: impl Iterator<Item = &'a ProgramFd>,
) -> Result<PathBuf, LoadError> {
    let failed = |source| LoadError::Map { name: PROGRAM_ARRAY, source };
    let Some(Map::ProgramArray(data)) = ebpf.take_map(PROGRAM_ARRAY) else {
        return Err(LoadError::Missing(PROGRAM_ARRAY));
    };
    let path = pins.programs().join(data.info().map_err(failed)?.id().to_string());
    let mut array = ProgramArray::try_from(Map::ProgramArray(data)).map_err(failed)?;
    for (index, program) in (0..).zip(programs) {
        array.set(index, program, 0).map_err(failed)?;
    }
    array.pin(&path).map_err(|error| failed(MapError::PinError { name: None, error }))?;
    Ok(path)
}
