//! From a container's manifest to a command: program, arguments and environment, with the downward API.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use k8s_openapi::api::core::v1::{Container, EnvVar, ObjectFieldSelector, Pod, PodSpec, Volume};

use super::{image::entry_point, machine::Refusal};
use crate::{netns::Netns, topology::Dual};

/// Where a program named without a path is looked for, behind the directory of the workspace's own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    program: PathBuf,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    dir: Option<PathBuf>,
}

/// What of its pod and node a container may see.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) pod: &'a Pod,
    pub(super) pod_ips: Dual,
    pub(super) host_ips: &'a [IpAddr],
    /// What every container on this node has in its environment.
    pub(super) env: &'a [(String, String)],
}

impl Launch {
    /// What `container` runs.
    ///
    /// # Errors
    /// When its image is unknown, or its manifest wants what this kubelet does not do.
    pub(super) fn of(around: Surroundings<'_>, container: &Container) -> Result<Launch, Refusal> {
        let image = container.image.as_deref().unwrap_or_default();
        let entry = entry_point(image)?;
        refuse_what_is_missing(around.pod.spec.as_ref(), container)?;
        let env = environment(around, container)?;
        let given = |values: &Option<Vec<String>>| -> Vec<String> {
            values.iter().flatten().map(|value| expand(value, &env)).collect()
        };
        let mut args = given(&container.args);
        let mut command = given(&container.command).into_iter();
        let program = command.next().map(PathBuf::from);
        if program.is_some() {
            args = command.chain(args).collect();
        }
        let dir = container.working_dir.as_ref().map(PathBuf::from);
        Ok(Launch { program: program.unwrap_or(entry), args, env, dir })
    }

    /// The command, in a namespace.
    pub(super) fn command(&self, ns: &Netns) -> Command {
        self.prepare(ns.command(&self.program), &self.args)
    }

    /// Another command in the same surroundings; none: it is empty.
    pub(super) fn exec(&self, ns: &Netns, argv: &[String]) -> Option<Command> {
        let (program, args) = argv.split_first()?;
        Some(self.prepare(ns.command(program), args))
    }

    fn prepare(&self, mut command: Command, args: &[String]) -> Command {
        command.args(args).env_clear().envs(&self.env);
        command.current_dir(self.dir.as_deref().unwrap_or(Path::new("/")));
        command
    }
}

/// Refuses what a container would wrongly take for granted.
fn refuse_what_is_missing(pod: Option<&PodSpec>, container: &Container) -> Result<(), Refusal> {
    let missing = |what: &str| Err(not_done(what));
    if pod.is_some_and(|pod| pod.init_containers.as_ref().is_some_and(|init| !init.is_empty())) {
        return missing("init containers");
    }
    if pod.is_some_and(|pod| pod.host_network == Some(true)) {
        return missing("hostNetwork");
    }
    if container.env_from.as_ref().is_some_and(|from| !from.is_empty()) {
        return missing("envFrom");
    }
    if container.lifecycle.is_some() {
        return missing("lifecycle hooks");
    }
    let volumes: Vec<&Volume> = pod.iter().flat_map(|pod| pod.volumes.iter().flatten()).collect();
    let injected = |name: &str| {
        // What the API server's ServiceAccount admission adds to every pod.
        volumes.iter().any(|volume| volume.name == name && volume.projected.is_some())
            && name.starts_with("kube-api-access-")
    };
    match container.volume_mounts.iter().flatten().find(|mount| !injected(&mount.name)) {
        Some(mount) => missing(&format!("volumes, such as {} at {}", mount.name, mount.mount_path)),
        None => Ok(()),
    }
}

/// The refusal of something that Kubernetes has and this kubelet has not.
pub(super) fn not_done(what: &str) -> Refusal {
    Refusal {
        reason: "CreateContainerConfigError",
        message: format!("the test bed's kubelet does not do {what}"),
    }
}

fn environment(around: Surroundings<'_>, container: &Container) -> Result<BTreeMap<String, String>, Refusal> {
    let own = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.display().to_string()));
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), format!("{}:{PATH}", own.unwrap_or_default())),
        ("HOSTNAME".to_owned(), around.pod.metadata.name.clone().unwrap_or_default()),
    ]);
    env.extend(around.env.iter().cloned());
    for variable in container.env.iter().flatten() {
        let value = value(around, variable, &env)?;
        env.insert(variable.name.clone(), value);
    }
    Ok(env)
}

fn value(
    around: Surroundings<'_>,
    variable: &EnvVar,
    before: &BTreeMap<String, String>,
) -> Result<String, Refusal> {
    let Some(from) = &variable.value_from else {
        return Ok(expand(variable.value.as_deref().unwrap_or_default(), before));
    };
    match &from.field_ref {
        Some(field) => downward(around, field),
        None => Err(not_done(&format!("other sources than fieldRef, as variable {} has", variable.name))),
    }
}

/// The downward API.
fn downward(around: Surroundings<'_>, field: &ObjectFieldSelector) -> Result<String, Refusal> {
    let Surroundings { pod, pod_ips, host_ips, .. } = around;
    let spec = |get: fn(&PodSpec) -> &Option<String>| pod.spec.as_ref().and_then(|spec| get(spec).clone());
    let joined = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let meta = &pod.metadata;
    let found = match field.field_path.as_str() {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "spec.nodeName" => spec(|spec| &spec.node_name),
        "spec.serviceAccountName" => spec(|spec| &spec.service_account_name),
        "status.podIP" => Some(pod_ips.v4.to_string()),
        "status.podIPs" => Some(joined(&pod_ips.both())),
        "status.hostIP" => host_ips.first().map(IpAddr::to_string),
        "status.hostIPs" => Some(joined(host_ips)),
        path => {
            let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
            let map = match (keyed("metadata.labels"), keyed("metadata.annotations")) {
                (Some(key), _) => Some((key, &meta.labels)),
                (_, Some(key)) => Some((key, &meta.annotations)),
                _ => None,
            };
            let Some((key, map)) = map else {
                return Err(not_done(&format!("fieldPath {path}")));
            };
            map.as_ref().and_then(|map| map.get(key)).cloned()
        }
    };
    Ok(found.unwrap_or_default())
}

/// Replaces `$(NAME)` by the variable; `$$` is a `$`, and what is not set stays as it is.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(behind) = rest.strip_prefix('$') {
            out.push('$');
            rest = behind;
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|inner| Some(&inner[..inner.find(')')?]));
        match name.and_then(|name| Some((name, env.get(name)?))) {
            Some((name, value)) => {
                out.push_str(value);
                rest = &rest[name.len() + 2..];
            }
            None => out.push('$'),
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{EnvVarSource, VolumeMount};

    use super::*;

    fn launch(container: Container) -> Result<Launch, Refusal> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "web-1", "namespace": "demo", "labels": {"app": "web"}},
            "spec": {"nodeName": "hangzhou-a", "containers": []},
        }))
        .unwrap();
        let pod_ips = Dual { v4: [10, 0, 0, 2].into(), v6: "fd00:10::2".parse().unwrap() };
        let env = [("CLUSTER".to_owned(), "hangzhou".to_owned())];
        let around = Surroundings { pod: &pod, pod_ips, host_ips: &[[20, 0, 0, 10].into()], env: &env };
        Launch::of(around, &Container { image: Some("kanmon.dev/sleep".to_owned()), ..container })
    }

    fn field(name: &str, path: &str) -> EnvVar {
        let field_ref = ObjectFieldSelector { field_path: path.to_owned(), ..Default::default() };
        let from = EnvVarSource { field_ref: Some(field_ref), ..Default::default() };
        EnvVar { name: name.to_owned(), value_from: Some(from), ..EnvVar::default() }
    }

    #[test]
    fn a_container_sees_its_pod_by_the_downward_api() {
        let fields = [
            ("A", "metadata.name", "web-1"),
            ("B", "metadata.namespace", "demo"),
            ("C", "status.podIP", "10.0.0.2"),
            ("D", "status.podIPs", "10.0.0.2,fd00:10::2"),
            ("E", "spec.nodeName", "hangzhou-a"),
            ("F", "metadata.labels['app']", "web"),
            ("G", "metadata.annotations['none']", ""),
            ("H", "status.hostIP", "20.0.0.10"),
        ];
        let env = fields.iter().map(|(name, path, _)| field(name, path)).collect();
        let launch = launch(Container { env: Some(env), ..Container::default() }).unwrap();
        for (name, path, expected) in fields {
            assert_eq!(launch.env[name], expected, "{path}");
        }
        assert_eq!((launch.env["HOSTNAME"].as_str(), launch.env["CLUSTER"].as_str()), ("web-1", "hangzhou"));
    }

    #[test]
    fn arguments_name_variables_and_command_replaces_the_images_program() {
        let words = |all: &[&str]| Some(all.iter().map(|word| (*word).to_owned()).collect());
        let container = Container {
            args: words(&["$(HOSTNAME).$(CLUSTER)", "$$(HOSTNAME) $(NONE) $"]),
            ..Container::default()
        };
        let plain = launch(container.clone()).unwrap();
        assert_eq!(plain.program, PathBuf::from("/bin/sleep"));
        assert_eq!(plain.args, ["web-1.hangzhou", "$(HOSTNAME) $(NONE) $"]);
        let command = launch(Container { command: words(&["sh", "-c"]), ..container }).unwrap();
        assert_eq!(command.program, PathBuf::from("sh"));
        assert_eq!(command.args[..2], ["-c", "web-1.hangzhou"]);
    }

    #[test]
    fn what_this_kubelet_does_not_do_is_refused_by_name() {
        let mount = VolumeMount { name: "data".into(), mount_path: "/data".into(), ..VolumeMount::default() };
        for (container, named) in [
            (Container { volume_mounts: Some(vec![mount]), ..Container::default() }, "data at /data"),
            (Container { lifecycle: Some(Default::default()), ..Container::default() }, "lifecycle"),
            (Container { env: Some(vec![field("A", "spec.x")]), ..Container::default() }, "spec.x"),
        ] {
            let refusal = launch(container).unwrap_err();
            assert_eq!(refusal.reason, "CreateContainerConfigError");
            assert!(refusal.message.contains(named), "{}", refusal.message);
        }
    }
}
