//! Kubernetes' own programs: where they are and how they are started.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;

use super::pki::Pki;
use crate::{netns::Netns, topology::ControlPlane};

/// Names the directory with etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy and
/// kubectl.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The port of every API server.
pub(super) const API_PORT: u16 = 6443;
/// Where etcd takes requests, in plain text: it listens on loopback in its control plane's namespace only.
pub(super) const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// The directory with Kubernetes' programs.
///
/// # Errors
/// When the environment does not name it.
pub(crate) fn assets() -> Result<PathBuf> {
    env::var_os(ASSETS).map(PathBuf::from).with_context(|| {
        format!(
            "{ASSETS} is not set: it names the directory with Kubernetes' programs. \
             `cargo xtask setup` builds them, `cargo xtask test` and `cargo xtask demo --kubernetes` set it"
        )
    })
}

/// A command in a namespace for one of Kubernetes' programs. Of the environment it gets the path alone: a
/// proxy or a kubeconfig of the user's has no business in the bed.
///
/// # Errors
/// When the program is not where the environment says it is.
pub(super) fn command(ns: &Netns, name: &str) -> Result<Command> {
    let dir = assets()?;
    let program = dir.join(name);
    ensure!(
        program.is_file(),
        "there is no {name} in {} ({ASSETS}): run `cargo xtask setup`, which builds it",
        dir.display()
    );
    let mut command = ns.command(program);
    command.env_clear().envs(env::var_os("PATH").map(|path| ("PATH", path)));
    Ok(command)
}

/// etcd with its data in `data`. It does not wait for the disk: what a killed bed loses, nobody misses.
pub(super) fn etcd(ns: &Netns, data: &Path) -> Result<Command> {
    let mut command = command(ns, "etcd")?;
    let clients = format!("http://127.0.0.1:{ETCD_PORT}");
    let peers = format!("http://127.0.0.1:{ETCD_PEER_PORT}");
    command.arg("--data-dir").arg(data).args([
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--listen-client-urls",
        &clients,
        "--advertise-client-urls",
        &clients,
        "--listen-peer-urls",
        &peers,
        "--initial-advertise-peer-urls",
        &peers,
        "--initial-cluster",
        &format!("default={peers}"),
    ]);
    Ok(command)
}

/// The API server. It shares its port, so that another server can take its address in front of it.
pub(super) fn api_server(place: &ControlPlane, pki: &Pki) -> Result<Command> {
    let mut command = command(place.ns(), "kube-apiserver")?;
    command.args([
        "--bind-address=::",
        "--permit-port-sharing",
        "--allow-privileged",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc",
        &format!("--secure-port={API_PORT}"),
        &format!("--advertise-address={}", place.address().v4),
        &format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
        &format!("--service-cluster-ip-range={}", list(place.services())),
    ]);
    command.args([
        flag("--client-ca-file", &pki.file("ca.crt")),
        flag("--tls-cert-file", &pki.file("server.crt")),
        flag("--tls-private-key-file", &pki.file("server.key")),
        flag("--service-account-signing-key-file", &pki.file("service-accounts.key")),
        flag("--service-account-key-file", &pki.file("service-accounts.pub")),
    ]);
    Ok(command)
}

/// The controllers: all that Kubernetes runs by itself, each with its own service account.
pub(super) fn controller_manager(ns: &Netns, pki: &Pki, kubeconfig: &Path) -> Result<Command> {
    let mut command = command(ns, "kube-controller-manager")?;
    command.args([
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--allocate-node-cidrs=false",
        "--use-service-account-credentials",
    ]);
    command.args([
        flag("--kubeconfig", kubeconfig),
        flag("--root-ca-file", &pki.file("ca.crt")),
        flag("--service-account-private-key-file", &pki.file("service-accounts.key")),
    ]);
    Ok(command)
}

/// The scheduler.
pub(super) fn scheduler(ns: &Netns, kubeconfig: &Path) -> Result<Command> {
    let mut command = command(ns, "kube-scheduler")?;
    command.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
    command.arg(flag("--kubeconfig", kubeconfig));
    Ok(command)
}

/// kube-proxy for `node`, in the namespace `ns` of that node. Limits of connection tracking belong to the
/// machine, not to a namespace: it leaves them alone.
///
/// # Errors
/// When it is not built, or without `nft`, which it sets its rules with.
pub(super) fn proxy(ns: &Netns, node: &str, pods: [IpNet; 2], kubeconfig: &Path) -> Result<Command> {
    let path = env::var_os("PATH").unwrap_or_default();
    ensure!(
        env::split_paths(&path).any(|dir| dir.join("nft").is_file()),
        "kube-proxy needs nft, which is not in PATH: `cargo xtask setup` gets it (Debian's package is nftables)"
    );
    let mut command = command(ns, "kube-proxy")?;
    command.args([
        "--proxy-mode=nftables",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
        "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=127.0.0.1:10249",
        &format!("--hostname-override={node}"),
        &format!("--cluster-cidr={}", list(pods)),
    ]);
    command.arg(flag("--kubeconfig", kubeconfig));
    Ok(command)
}

/// kubectl, with its cache in `home`.
pub(super) fn kubectl(ns: &Netns, kubeconfig: &Path, home: &Path) -> Result<Command> {
    let mut command = command(ns, "kubectl")?;
    command.env("HOME", home).env("KUBECONFIG", kubeconfig);
    Ok(command)
}

fn list(nets: [IpNet; 2]) -> String {
    nets.map(|net| net.to_string()).join(",")
}

fn flag(name: &str, path: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push("=");
    flag.push(path);
    flag
}
