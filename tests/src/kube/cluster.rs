//! One cluster's control plane.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Error, Result, bail, ensure};
use hyper::Request;
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRoleBinding, RoleRef, Subject},
};
use kube::{Api, Client, api::ObjectMeta};

use super::{
    answers::Answers,
    audit::Audit,
    kubeconfig,
    pki::Pki,
    programs::{self, API_PORT},
    wait::{in_namespace, poll},
};
use crate::{
    netns::{Netns, Process, RunDir},
    topology::ControlPlane,
};

/// How long a control plane may take to get ready: generous, for a machine that is busy compiling.
const START: Duration = Duration::from_secs(120);

/// The user that the bed's kubelets of a cluster are: one certificate for all nodes of a process, which the
/// API server's node authorizer would not allow. RBAC gives it what a kubelet may do.
const KUBELET: &str = "kanmon-kubelet";

/// A cluster's control plane, as it runs. Methods take `&self`: it can be shared between threads.
pub struct KubeCluster {
    name: String,
    pki: Pki,
    /// Where its files are.
    dir: PathBuf,
    /// The administrator's, for use from anywhere in the bed.
    kubeconfig: PathBuf,
    /// The administrator's, for use in the control plane's namespace.
    pub(super) local_kubeconfig: PathBuf,
    pub(super) api: Mutex<Option<Process>>,
    /// What answers in the API server's place, where something does.
    pub(super) answers: Mutex<Option<Answers>>,
    others: Mutex<Vec<Process>>,
    pub(super) place: ControlPlane,
    /// Where the API server writes down who asked for what, where it does.
    pub(super) audit: Option<Audit>,
    /// Further flags of the API server, from its next start on.
    pub(super) flags: Mutex<Vec<String>>,
    run: Arc<RunDir>,
}

impl KubeCluster {
    /// Starts the control plane called `name` at `place` and waits until it is ready.
    pub(super) fn start(
        run: Arc<RunDir>,
        name: &str,
        place: ControlPlane,
        audited: bool,
    ) -> Result<KubeCluster> {
        let dir = run.path().join("kube").join(name);
        let pki = Pki::create(dir.join("pki"), name, &api_addresses(&place))?;
        let audit = audited.then(|| Audit::prepare(&dir)).transpose()?;
        let cluster = KubeCluster {
            name: name.to_owned(),
            pki,
            kubeconfig: dir.join("admin.kubeconfig"),
            local_kubeconfig: dir.join("local.kubeconfig"),
            dir,
            api: Mutex::new(None),
            answers: Mutex::new(None),
            others: Mutex::new(Vec::new()),
            place,
            audit,
            flags: Mutex::new(Vec::new()),
            run,
        };
        cluster.write_administrators()?;
        cluster.start_programs()?;
        cluster.in_namespace(async |client| {
            allow_kubelets(client.clone()).await?;
            poll("the controllers make the first service account", START, async || {
                Ok(Api::<ServiceAccount>::namespaced(client.clone(), "default").get_opt("default").await?)
            })
            .await
        })?;
        Ok(cluster)
    }

    /// Its name: `gateway`, `hangzhou` or `shanghai`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kubeconfig of its administrator, for use from anywhere in the bed. All is within the file.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where its API server is: `https://20.0.1.10:6443`.
    pub fn server(&self) -> String {
        server(self.place.address().v4)
    }

    /// The certificate of its authority, in PEM.
    pub fn authority(&self) -> &str {
        self.pki.authority()
    }

    /// The namespace of its control plane.
    pub fn ns(&self) -> &Netns {
        self.place.ns()
    }

    /// The prefixes its Services get their addresses from, IPv4 first.
    pub fn services(&self) -> [IpNet; 2] {
        self.place.services()
    }

    /// Writes a kubeconfig with a new client certificate of `user`, who is in `group`, for use from anywhere
    /// in the bed. What that user may do is up to RBAC; of a user nobody has heard of that is next to
    /// nothing.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn credentials(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let users = self.dir.join("users");
        fs::create_dir_all(&users).with_context(|| format!("cannot create {}", users.display()))?;
        let path = users.join(format!("{}.kubeconfig", user.replace([':', '/'], "-")));
        self.write_kubeconfig(&path, &self.server(), user, group)?;
        Ok(path)
    }

    /// Writes the kubeconfig of the bed's kubelet, which may do what a kubelet may, for all nodes.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn kubelet_credentials(&self) -> Result<PathBuf> {
        self.credentials(KUBELET, None)
    }

    /// Runs `work` to its end in the control plane's namespace, with an administrator's client that reaches
    /// the API server over loopback: also while the cluster is cut off.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn in_namespace<T: Send>(&self, work: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        in_namespace(self.ns(), &self.local_kubeconfig, work)
    }

    /// Asks the API server, in the control plane's namespace, until there is an answer.
    ///
    /// # Errors
    /// When there is none within `patience`.
    pub fn wait_for<T: Send>(
        &self,
        what: &str,
        patience: Duration,
        mut ask: impl AsyncFnMut(Client) -> Result<Option<T>> + Send,
    ) -> Result<T> {
        self.in_namespace(async |client| poll(what, patience, async || ask(client.clone()).await).await)
            .with_context(|| format!("cluster {}", self.name))
    }

    /// Runs kubectl as administrator in the control plane's namespace, with `input` as its standard input,
    /// and returns its standard output.
    ///
    /// # Errors
    /// When kubectl fails, with what it said.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = programs::kubectl(self.ns(), &self.local_kubeconfig, &self.dir)?;
        command.args(args);
        let output = self.run.output(command, input)?;
        let shown = args.join(" ");
        ensure!(
            output.status.success(),
            "`kubectl {shown}` in cluster {} failed ({}): {}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        String::from_utf8(output.stdout).with_context(|| format!("`kubectl {shown}` printed no text"))
    }

    /// `kubectl apply` of objects in YAML.
    ///
    /// # Errors
    /// When the API server refuses one of them.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl(&["apply", "-f", "-"], yaml)
    }

    /// The log of one of its programs: `etcd`, `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`.
    pub fn log(&self, program: &str) -> PathBuf {
        self.run.path().join("logs").join(format!("{}.log", self.log_name(program)))
    }

    pub(super) fn start_proxy(&self, ns: &Netns, node: &str, pods: [IpNet; 2]) -> Result<()> {
        let kubeconfig = self.credentials("system:kube-proxy", None)?;
        self.keep("kube-proxy", programs::proxy(ns, node, pods, &kubeconfig)?)
    }

    /// Starts the API server and waits until it is ready.
    pub(super) fn start_api_server(&self) -> Result<()> {
        let name = self.log_name("kube-apiserver");
        let mut command = programs::api_server(&self.place, &self.pki)?;
        command.args(self.audit.iter().flat_map(Audit::flags)).args(&*lock(&self.flags));
        let process = self.run.spawn(&name, command)?;
        *lock(&self.api) = Some(process);
        let ready = self.wait_for("the API server is ready", START, async |client| {
            if let Some(end) = self.end_of_api_server()? {
                return Ok(Some(Err(end)));
            }
            client.request_text(Request::get("/readyz").body(Vec::new())?).await?;
            Ok(Some(Ok(())))
        });
        ready.and_then(|ended| ended).with_context(|| self.log_tail("kube-apiserver"))
    }

    /// Where the server in front of the API server listens, and its certificate and key.
    pub(super) fn front(&self) -> ([SocketAddr; 2], PathBuf, PathBuf) {
        let addresses = self.place.address().both().map(|ip| SocketAddr::new(ip, API_PORT));
        (addresses, self.pki.file("server.crt"), self.pki.file("server.key"))
    }

    fn start_programs(&self) -> Result<()> {
        let ns = self.ns();
        self.keep("etcd", programs::etcd(ns, &self.dir.join("etcd"))?)?;
        self.start_api_server().with_context(|| self.log_tail("etcd"))?;
        // They give up when there is no API server yet.
        let kubeconfig = self.local_credentials("system:kube-controller-manager")?;
        self.keep("kube-controller-manager", programs::controller_manager(ns, &self.pki, &kubeconfig)?)?;
        let kubeconfig = self.local_credentials("system:kube-scheduler")?;
        self.keep("kube-scheduler", programs::scheduler(ns, &kubeconfig)?)
    }

    /// Starts a program that runs as long as the cluster.
    fn keep(&self, program: &str, command: Command) -> Result<()> {
        let process = self.run.spawn(&self.log_name(program), command)?;
        lock(&self.others).push(process);
        Ok(())
    }

    /// What became of the API server, if it does not run any more.
    fn end_of_api_server(&self) -> Result<Option<Error>> {
        let status = match lock(&self.api).as_mut() {
            Some(process) => process.try_wait()?,
            None => bail!("the API server of cluster {} was not started", self.name),
        };
        Ok(status.map(|status| anyhow::anyhow!("the API server ended: {status}")))
    }

    fn write_administrators(&self) -> Result<()> {
        let local = server(Ipv4Addr::LOCALHOST);
        for (path, server) in [(&self.kubeconfig, self.server()), (&self.local_kubeconfig, local)] {
            self.write_kubeconfig(path, &server, "kubernetes-admin", Some("system:masters"))?;
        }
        Ok(())
    }

    /// The kubeconfig of one of the control plane's own programs.
    fn local_credentials(&self, user: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{}.kubeconfig", user.replace(':', "-")));
        self.write_kubeconfig(&path, &server(Ipv4Addr::LOCALHOST), user, None)?;
        Ok(path)
    }

    fn write_kubeconfig(&self, path: &Path, server: &str, user: &str, group: Option<&str>) -> Result<()> {
        let identity = self.pki.client(user, group)?;
        let text = kubeconfig::render(&self.name, server, self.pki.authority(), user, &identity);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn log_name(&self, program: &str) -> String {
        format!("{}-{program}", self.name)
    }

    /// The end of a program's log, for an error.
    fn log_tail(&self, program: &str) -> String {
        let text = fs::read(self.log(program)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(10)..].join("\n  ");
        format!("the end of the log of {}:\n  {end}\n", self.log_name(program))
    }
}

impl std::fmt::Debug for KubeCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeCluster").field("name", &self.name).field("place", &self.place).finish()
    }
}

/// A panic while the lock is held leaves a process or none: both are states like any other.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn server(address: Ipv4Addr) -> String {
    format!("https://{address}:{API_PORT}")
}

/// Every address by which the API server is reached: the bed's, loopback, and the first of each service
/// prefix, which is the Service `kubernetes`.
fn api_addresses(place: &ControlPlane) -> Vec<IpAddr> {
    let services = place.services().into_iter().filter_map(|net| net.hosts().next());
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    place.address().both().into_iter().chain(loopback).chain(services).collect()
}

/// Lets the bed's kubelets do what Kubernetes lets a kubelet do.
async fn allow_kubelets(client: Client) -> Result<()> {
    let binding = ClusterRoleBinding {
        metadata: ObjectMeta { name: Some(KUBELET.to_owned()), ..ObjectMeta::default() },
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".to_owned()),
            kind: "ClusterRole".to_owned(),
            name: "system:node".to_owned(),
        },
        subjects: Some(vec![Subject {
            api_group: Some("rbac.authorization.k8s.io".to_owned()),
            kind: "User".to_owned(),
            name: KUBELET.to_owned(),
            namespace: None,
        }]),
    };
    let bindings = Api::<ClusterRoleBinding>::all(client);
    bindings.create(&Default::default(), &binding).await.context("cannot give the kubelet its rights")?;
    Ok(())
}
