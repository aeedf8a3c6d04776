//! The container of a pod as a process at a gateway, which has no kubelet: with the arguments, environment, mounts and
//! capabilities that the pod says, in a mount namespace of its own. The image is this machine's own `/usr` with the
//! agent beside it; the processes and the network are the node's.

use std::{
    fmt::Write,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{GATEWAY, Gateway, KubeStage};
use crate::{agent::Agent, topology::program};

/// Where the agent is in its image.
const ENTRYPOINT: &str = "/kanmon";
/// The node's BPF file system: the run has one of its own.
const BPFFS: &str = "/sys/fs/bpf";
/// Where the agent's socket is in its container.
const SOCKET: &str = "/run/kanmon/kanmon.sock";

/// A pod with one container, and what becomes of it on this machine.
struct Container<'a> {
    stage: &'a KubeStage,
    pod: &'a Value,
    /// Its root and its volumes are here.
    dir: PathBuf,
}

impl KubeStage {
    /// Runs the agent that is the one container of a pod of the cluster `gateway`, as the kubelet of `gateway` would.
    /// It is to be waited for; its health is not looked at.
    ///
    /// # Errors
    /// When the pod asks for something that is not known here, or the agent is not built.
    pub fn run_pod(&self, gateway: &Gateway, pod: &Value) -> Result<Agent> {
        let name = pod["metadata"]["name"].as_str().context("a pod has a name")?;
        let container = Container { stage: self, pod, dir: self.run().path().join("pods").join(name) };
        let command = container.command(gateway)?;
        let socket = container.host_path(SOCKET);
        Agent::start(self.run(), name, command, socket)
    }
}

impl Container<'_> {
    fn spec(&self) -> &Value {
        &self.pod["spec"]["containers"][0]
    }

    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A path of the node. What outlives pods is where other pods find it.
    fn host_path(&self, path: &str) -> PathBuf {
        if path == BPFFS {
            return self.stage.bed().bpffs();
        }
        self.stage.run().path().join("node").join(path.trim_start_matches('/'))
    }

    fn command(&self, gateway: &Gateway) -> Result<Command> {
        let containers = self.pod["spec"]["containers"].as_array().map_or(0, Vec::len);
        ensure!(containers == 1, "the pod has {containers} containers");
        ensure!(self.pod["spec"]["hostNetwork"] == true, "the pod has a network of its own");
        fs::create_dir_all(self.root())?;
        let script = self.dir.join("start.sh");
        fs::write(&script, self.script()?)?;
        let mut command = gateway.ns().command("unshare");
        command.args(["--mount", "--propagation", "private", "bash"]).arg(script);
        command.env_clear().envs(self.environment()?);
        Ok(command)
    }

    fn environment(&self) -> Result<Vec<(String, String)>> {
        let api = self.stage.kube(GATEWAY)?.server();
        let (host, port) =
            api.trim_start_matches("https://").rsplit_once(':').context("a server has a port")?;
        // A kubelet names the Service's address, which kube-proxy would bring there.
        let mut all = vec![
            ("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("KUBERNETES_SERVICE_HOST".to_owned(), host.to_owned()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_owned()),
        ];
        for variable in self.spec()["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some(path) => self.field(path),
                None => variable["value"].as_str(),
            };
            let value = value.with_context(|| format!("a variable that is not known here: {variable}"))?;
            all.push((variable["name"].as_str().unwrap_or_default().to_owned(), value.to_owned()));
        }
        Ok(all)
    }

    /// A field of the pod: `spec.nodeName`.
    fn field(&self, path: &str) -> Option<&str> {
        path.split('.').fold(self.pod, |value, name| &value[name]).as_str()
    }

    /// What makes the container and becomes its process.
    fn script(&self) -> Result<String> {
        let root = self.root();
        let context = &self.spec()["securityContext"];
        let mut script = format!(
            "set -eu\nmount --bind {0} {0}\ncd {0}\nmkdir -p usr proc sys dev .old\ntouch dev/null {1}\n",
            root.display(),
            ENTRYPOINT.trim_start_matches('/'),
        );
        let mut bind = |from: &Path, to: &str, read_only: bool| {
            let to = root.join(to.trim_start_matches('/'));
            let to = to.display();
            writeln!(script, "mount --bind {} {to}", from.display()).expect("a String takes it");
            if read_only {
                writeln!(script, "mount -o remount,bind,ro {to}").expect("a String takes it");
            }
        };
        bind(Path::new("/usr"), "usr", true);
        for name in ["bin", "sbin", "lib", "lib64"] {
            match fs::read_link(Path::new("/").join(name)) {
                Ok(target) => symlink(target, root.join(name))?,
                Err(_) => {
                    fs::create_dir_all(root.join(name))?;
                    bind(&Path::new("/").join(name), name, true);
                }
            }
        }
        bind(&program("kanmon")?, ENTRYPOINT, true);
        bind(Path::new("/dev/null"), "dev/null", false);
        // As container engines have it where a container is not privileged.
        bind(Path::new("/proc"), "proc", false);
        bind(Path::new("/proc/sys"), "proc/sys", true);
        script.push_str("mount -t sysfs -o ro sysfs sys\n");
        self.mount_volumes(&mut script)?;
        if context["readOnlyRootFilesystem"] == true {
            writeln!(script, "mount -o remount,bind,ro {}", root.display())?;
        }
        script.push_str("pivot_root . .old\ncd /\numount -l /.old\n");
        writeln!(script, "exec setpriv {} {ENTRYPOINT} {}", privileges(context)?, self.arguments()?)?;
        Ok(script)
    }

    fn mount_volumes(&self, script: &mut String) -> Result<()> {
        for mount in self.spec()["volumeMounts"].as_array().into_iter().flatten() {
            let volumes = self.pod["spec"]["volumes"].as_array().into_iter().flatten();
            let volume = volumes.into_iter().find(|volume| volume["name"] == mount["name"]);
            let from = self.volume(volume.with_context(|| format!("there is no volume for {mount}"))?)?;
            let path = mount["mountPath"].as_str().context("a mount has a path")?;
            let to = self.root().join(path.trim_start_matches('/'));
            // What is below /sys is there already.
            if !path.starts_with("/sys/") {
                fs::create_dir_all(&to)?;
            }
            writeln!(script, "mount --bind {} {}", from.display(), to.display())?;
            if mount["readOnly"] == true {
                writeln!(script, "mount -o remount,bind,ro {}", to.display())?;
            }
        }
        Ok(())
    }

    /// The directory that is a volume.
    fn volume(&self, volume: &Value) -> Result<PathBuf> {
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            let directory = self.host_path(path);
            if volume["hostPath"]["type"] == "DirectoryOrCreate" {
                fs::create_dir_all(&directory)?;
            }
            return Ok(directory);
        }
        let directory = self.dir.join(volume["name"].as_str().context("a volume has a name")?);
        fs::create_dir_all(&directory)?;
        if volume["configMap"].is_object() {
            self.write_config_map(&volume["configMap"], &directory)?;
            return Ok(directory);
        }
        let Some(sources) = volume["projected"]["sources"].as_array() else {
            bail!("a volume of a kind that is not known here: {volume}");
        };
        for source in sources {
            self.project(source, &directory)?;
        }
        Ok(directory)
    }

    fn write_config_map(&self, reference: &Value, directory: &Path) -> Result<()> {
        let namespace = self.field("metadata.namespace").context("a pod has a namespace")?;
        let name = reference["name"].as_str().context("a ConfigMap has a name")?;
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
        let found = self.stage.kube(GATEWAY)?.look(&path)?;
        let data = found["data"].as_object().with_context(|| format!("there is no ConfigMap {name}"))?;
        for (file, text) in data {
            fs::write(directory.join(file), text.as_str().unwrap_or_default())?;
        }
        Ok(())
    }

    /// A part of a volume of several sources: what every pod gets of its account.
    fn project(&self, source: &Value, directory: &Path) -> Result<()> {
        let [namespace, name] = ["metadata.namespace", "metadata.name"].map(|path| self.field(path));
        let (namespace, name) = namespace.zip(name).context("a pod has a name")?;
        if let Some(path) = source["serviceAccountToken"]["path"].as_str() {
            let account = self.field("spec.serviceAccountName").context("the pod has no account")?;
            let kind = "--bound-object-kind=Pod";
            let bound = format!("--bound-object-name={name}");
            let token = self
                .stage
                .kube(GATEWAY)?
                .kubectl(&["-n", namespace, "create", "token", account, kind, &bound], "")?;
            fs::write(directory.join(path), token.trim())?;
        } else if source["configMap"].is_object() {
            self.write_config_map(&source["configMap"], directory)?;
        } else if let Some(items) = source["downwardAPI"]["items"].as_array() {
            for item in items {
                let value = item["fieldRef"]["fieldPath"].as_str().and_then(|path| self.field(path));
                let (path, value) =
                    item["path"].as_str().zip(value).context("an item is a field of the pod")?;
                fs::write(directory.join(path), value)?;
            }
        } else {
            bail!("a source that is not known here: {source}");
        }
        Ok(())
    }

    fn arguments(&self) -> Result<String> {
        let all = self.spec()["args"].as_array().context("the container has no arguments")?;
        let quoted = all.iter().map(|argument| {
            let argument = argument.as_str().context("an argument is text")?;
            ensure!(!argument.contains('\''), "an argument with a quote: {argument}");
            Ok(format!("'{argument}'"))
        });
        Ok(quoted.collect::<Result<Vec<_>>>()?.join(" "))
    }
}

/// What `setpriv` is told: the user, the capabilities that stay, and whether more can be had.
fn privileges(context: &Value) -> Result<String> {
    ensure!(context["privileged"] != true, "the container is privileged");
    ensure!(
        context["capabilities"]["drop"][0] == "ALL",
        "the container keeps capabilities that it does not name"
    );
    let added = context["capabilities"]["add"].as_array().into_iter().flatten();
    let mut kept = "-all".to_owned();
    for capability in added {
        let name = capability.as_str().context("a capability is a name")?;
        write!(kept, ",+{}", name.to_ascii_lowercase())?;
    }
    let user = context["runAsUser"].as_u64().context("the container does not say its user")?;
    let mut privileges = format!("--reuid={user} --clear-groups --inh-caps=-all --bounding-set={kept}");
    if context["allowPrivilegeEscalation"] == false {
        privileges.push_str(" --no-new-privs");
    }
    Ok(privileges)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_keeps_the_capabilities_that_it_names_and_gets_no_others() {
        let mut context = json!({"runAsUser": 0, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN"]}});
        assert_eq!(
            privileges(&context).unwrap(),
            "--reuid=0 --clear-groups --inh-caps=-all --bounding-set=-all,+bpf,+net_admin --no-new-privs"
        );
        context["privileged"] = json!(true);
        assert!(privileges(&context).is_err());
        assert!(privileges(&json!({"runAsUser": 0})).is_err());
    }
}
