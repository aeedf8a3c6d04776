//! A network namespace with a veth pair and a BPF file system of its own, for one test.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::thread;

use lb_common::abi::Timeouts;
use lb_userspace::bpf::{AgentLock, Kernel, LoadError, Settings, TableSizes};
use netlink_packet_route::link::{LinkAttribute, LinkXdp};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, new_connection};

/// The end that the program is attached to, and the other one.
pub(crate) const NEAR: &str = "near";
/// See [`NEAR`].
pub(crate) const FAR: &str = "far";

/// Where a test keeps its pins and locks. Both vanish with the test's thread, whatever happens to it.
pub(crate) struct Bed {
    directory: tempfile::TempDir,
}

impl Bed {
    /// Runs a test in a thread with a network and a mount namespace of its own.
    pub(crate) fn run(test: impl FnOnce(&Self) + Send + 'static) {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("bpf")).expect("a directory");
        let bed = Self { directory };
        let result = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
            let bpf_fs = bed.directory.path().join("bpf");
            mount(Some("bpf"), &bpf_fs, Some("bpf"), MsFlags::empty(), none).expect("a BPF file system");
            bed.make_veth();
            test(&bed);
        })
        .join();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    /// The BPF file system.
    pub(crate) fn bpf_fs(&self) -> PathBuf {
        self.directory.path().join("bpf")
    }

    /// The pin directory.
    pub(crate) fn pins(&self) -> PathBuf {
        self.bpf_fs().join("kanmon")
    }

    /// Takes the lock of a pin directory.
    pub(crate) fn lock(&self, pins: &Path) -> AgentLock {
        AgentLock::acquire(&self.directory.path().join("locks"), pins).expect("the lock is free")
    }

    /// Loads the packet program over the test's pin directory.
    pub(crate) fn load(&self, sizes: TableSizes) -> Result<Kernel, LoadError> {
        Kernel::load(&self.pins(), sizes, self.lock(&self.pins()))
    }

    /// Loads with small tables and settings.
    pub(crate) fn kernel(&self) -> Kernel {
        let mut kernel = self.load(sizes()).expect("the kernel takes the packet program");
        kernel.configure(&settings()).expect("the settings are valid");
        kernel
    }

    /// A veth pair, both ends up.
    pub(crate) fn make_veth(&self) {
        netlink(|handle| async move {
            handle.link().add(LinkVeth::new(NEAR, FAR).build()).execute().await.expect("a veth pair");
            for name in [NEAR, FAR] {
                let up = LinkUnspec::new_with_index(index(name)).up().build();
                handle.link().set(up).execute().await.expect("the link comes up");
            }
        });
    }

    /// Removes the pair.
    pub(crate) fn remove_veth(&self) {
        netlink(|handle| async move {
            handle.link().del(index(NEAR)).execute().await.expect("the pair goes");
        });
    }

    /// Sets an interface's MTU.
    pub(crate) fn set_mtu(&self, name: &str, mtu: u32) {
        netlink(|handle| async move {
            let message = LinkUnspec::new_with_index(index(name)).mtu(mtu).build();
            handle.link().set(message).execute().await.expect("the MTU is taken");
        });
    }

    /// Id of the XDP program on an interface.
    pub(crate) fn program_on(&self, name: &str) -> Option<u32> {
        netlink(|handle| async move {
            use futures::TryStreamExt;
            let mut links = handle.link().get().match_index(index(name)).execute();
            let link = links.try_next().await.expect("an answer").expect("the link");
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Xdp(xdp) => xdp.iter().find_map(|xdp| match xdp {
                    LinkXdp::ProgId(id) => Some(*id),
                    _ => None,
                }),
                _ => None,
            })
        })
    }

    /// Everything below the BPF file system, by paths relative to it; without `maps.debug` and
    /// `progs.debug`, which the kernel puts there.
    pub(crate) fn tree(&self) -> Vec<String> {
        fn walk(root: &Path, directory: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                let relative = path.strip_prefix(root).expect("below the root");
                found.push(relative.to_string_lossy().into_owned());
                if path.is_dir() {
                    walk(root, &path, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.bpf_fs(), &self.bpf_fs(), &mut found);
        found.retain(|path| !path.ends_with(".debug"));
        found.sort();
        found
    }
}

impl Drop for Bed {
    /// Before the directory is removed, which a mount in it would prevent.
    fn drop(&mut self) {
        let _ = umount2(&self.bpf_fs(), MntFlags::MNT_DETACH);
    }
}

/// Index of an interface.
pub(crate) fn index(name: &str) -> u32 {
    if_nametoindex(name).expect("the interface exists")
}

/// Tables that cost little.
pub(crate) fn sizes() -> TableSizes {
    TableSizes {
        flows: 1024,
        flows_v6: 1024,
        services: 64,
        backends: 64,
        members: 64,
        ring_slots: 4096,
        flow_counters: 1024,
        source_ranges: 64,
        snat_count: 1,
        cpus: aya::util::nr_cpus().expect("the number of CPUs") as u32,
    }
}

/// Settings for both families.
pub(crate) fn settings() -> Settings {
    Settings {
        cluster_set_id: "test".to_owned(),
        snat_addresses: ["192.168.0.10", "fd00::10"].map(|text| text.parse().expect("an address")).into(),
        port_base: 12_288,
        port_count: 16_384,
        timeouts: Timeouts {
            half_open: 38,
            established: 13_412,
            closed: 224,
            reset: 38,
            udp_new: 38,
            udp_replied: 224,
        },
        events_per_tick: 110,
        flow_events_per_tick: 100,
        refusals_per_tick: 269,
    }
}

/// Runs one task with a netlink handle in the thread's network namespace.
fn netlink<T, F: Future<Output = T>>(task: impl FnOnce(Handle) -> F) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().expect("a netlink socket");
        let connection = tokio::spawn(connection);
        let result = task(handle).await;
        connection.abort();
        result
    })
}
