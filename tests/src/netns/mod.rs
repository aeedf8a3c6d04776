//! Network namespaces that the program makes, enters and removes by itself.
//!
//! `ip netns exec` would be shorter, but it remounts `/sys` and so hides every bpffs. A namespace here is a
//! file under the run directory on which a thread's network namespace is bind-mounted, and it is entered by
//! `setns` in a thread of its own: the calling thread never changes its namespace.

mod link;
mod offload;
mod process;
mod run_dir;
mod xdp_pass;

use std::{
    fs::{self, File},
    future::Future,
    net::{SocketAddr, TcpStream},
    os::{
        fd::AsFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

pub use link::{Link, Mac, veth};
pub use process::Process;
pub use run_dir::{BED_ROOT, RunDir, clean_on_signals, exit_code_after_signal, sweep};

/// A network namespace of a test bed. Clones are the same namespace.
///
/// It lives until the [`RunDir`] it was made in is cleaned and its last process and handle are gone.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: Arc<File>,
}

impl Netns {
    /// Makes a namespace called `name` in `run`, with its loopback up and the settings every test wants: no
    /// duplicate address detection, no router advertisements, no reverse path filter, IPv6 addresses that
    /// survive a link going down, and large listen queues.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`, or when `name` is taken in this run.
    pub fn create(run: &RunDir, name: &str) -> Result<Netns> {
        let path = run.path().join("ns").join(name);
        run.while_open(|| -> Result<()> {
            File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
            on_thread(|| {
                unshare(CloneFlags::CLONE_NEWNET)
                    .context("cannot make a network namespace (root is needed)")?;
                let own = "/proc/thread-self/ns/net";
                mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .with_context(|| format!("cannot bind a network namespace to {}", path.display()))
            })
        })?;
        let ns = Netns::open(run, name)?;
        ns.prepare().with_context(|| format!("cannot set up namespace {name}"))?;
        Ok(ns)
    }

    /// The namespace called `name` of a run, which another process may have made.
    ///
    /// # Errors
    /// When the run has none of that name.
    pub fn open(run: &RunDir, name: &str) -> Result<Netns> {
        Netns::at(name, run.path().join("ns").join(name))
    }

    /// The namespace this process is in.
    ///
    /// # Errors
    /// Without /proc.
    pub fn current() -> Result<Netns> {
        Netns::at("of this process", "/proc/self/ns/net".into())
    }

    /// Removes it from its run: it ends with its last process and handle.
    ///
    /// # Errors
    /// When it has been removed before.
    pub fn remove(self) -> Result<()> {
        umount2(&self.path, MntFlags::MNT_DETACH)
            .map_err(std::io::Error::from)
            .and_then(|()| fs::remove_file(&self.path))
            .with_context(|| format!("cannot remove namespace {}", self.path.display()))
    }

    /// Whether process `pid` is in it.
    pub(super) fn holds(&self, pid: i32) -> bool {
        let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
        match (fs::metadata(format!("/proc/{pid}/ns/net")), self.file.metadata()) {
            (Ok(its), Ok(own)) => identity(its) == identity(own),
            _ => false,
        }
    }

    /// Its name within the run.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file it is mounted on: what `nsenter --net=…` takes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` in this namespace, in a thread of its own, and waits for it. A panic in `f` goes on here.
    ///
    /// `/sys` still shows the caller's namespace in there; `/proc/sys/net` shows this one.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| {
                panic!("cannot enter namespace {}: {e} (root is needed)", self.path.display())
            });
            f()
        })
    }

    /// Runs a future to its end on a current-thread runtime in this namespace: sockets it opens belong to
    /// the namespace.
    pub fn block_on<T, F>(&self, make: impl FnOnce() -> F + Send) -> T
    where
        T: Send,
        F: Future<Output = T>,
    {
        self.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a tokio runtime needs an epoll and an event descriptor")
                .block_on(make())
        })
    }

    /// A command that runs in this namespace, in a process group of its own, so that a Ctrl-C in the
    /// terminal reaches only the bed, which then cleans up in order. Start it with [`RunDir::spawn`].
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = self.file.clone();
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe; the closure
        // owns the descriptor it uses and allocates nothing.
        unsafe {
            command.pre_exec(move || setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(Into::into));
        }
        command.process_group(0);
        command
    }

    /// Writes `value` to a `net.…` sysctl of this namespace; `key` is in dots or slashes.
    ///
    /// # Errors
    /// When the kernel does not have the key or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        ensure!(key.starts_with("net."), "only net.* sysctls belong to a namespace, {key} does not");
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(|| fs::write(&path, value))
            .with_context(|| format!("cannot set {key}={value} in namespace {}", self.name))
    }

    /// Waits until something in this namespace accepts TCP connections at `address`.
    ///
    /// # Errors
    /// When nothing does within `patience`.
    pub fn wait_for_tcp(&self, address: SocketAddr, patience: Duration) -> Result<()> {
        self.run(|| {
            let deadline = std::time::Instant::now() + patience;
            loop {
                match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
                    Ok(_) => return Ok(()),
                    Err(e) if std::time::Instant::now() >= deadline => {
                        return Err(e).with_context(|| format!("nothing listens at {address}"));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        })
        .with_context(|| format!("in namespace {}", self.name))
    }

    fn at(name: &str, path: PathBuf) -> Result<Netns> {
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Netns { name: name.to_owned(), path, file: Arc::new(file) })
    }

    fn prepare(&self) -> Result<()> {
        for scope in ["all", "default"] {
            for (key, value) in
                [("accept_dad", "0"), ("accept_ra", "0"), ("keep_addr_on_down", "1"), ("ndisc_notify", "1")]
            {
                self.sysctl(&format!("net.ipv6.conf.{scope}.{key}"), value)?;
            }
            for (key, value) in [("rp_filter", "0"), ("arp_notify", "1"), ("send_redirects", "0")] {
                self.sysctl(&format!("net.ipv4.conf.{scope}.{key}"), value)?;
            }
        }
        self.sysctl("net.core.somaxconn", "65535")?;
        self.sysctl("net.ipv4.tcp_max_syn_backlog", "65535")?;
        Link::loopback(self)?.up()
    }
}

/// Runs `f` in a new thread and waits for it, so that whatever `f` does to its thread ends with it.
fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(f).join().unwrap_or_else(|panic| resume_unwind(panic)))
}
