//! One check of a probe, done for real: from the node to the pod's address, or a command in the pod.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    launch::{Launch, not_done},
    machine::Refusal,
};
use crate::netns::Netns;

/// The longest head of an answer that is read.
const HEAD_LIMIT: usize = 16 << 10;

/// What a probe checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// `GET`: an answer from 200 to 399 passes.
    Http { address: SocketAddr, request: String },
    /// A connection passes.
    Tcp(SocketAddr),
    /// Exit code 0 passes.
    Exec(Vec<String>),
}

impl Check {
    /// What a manifest asks for, at the pod's address.
    ///
    /// # Errors
    /// When it asks for gRPC or HTTPS, or names a port that the container has not.
    pub(super) fn of(probe: &Probe, container: &Container, pod: IpAddr) -> Result<Check, Refusal> {
        let address = |host: &Option<String>, port: &IntOrString| -> Result<SocketAddr, Refusal> {
            let ip = match host.as_deref() {
                None | Some("") => pod,
                Some(host) => host.parse().map_err(|_| not_done(&format!("probes of host name {host}")))?,
            };
            Ok(SocketAddr::new(ip, port_of(port, container)?))
        };
        if let Some(get) = &probe.http_get {
            if get.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
                return Err(not_done("HTTPS probes"));
            }
            let address = address(&get.host, &get.port)?;
            Ok(Check::Http { address, request: request(get, address) })
        } else if let Some(tcp) = &probe.tcp_socket {
            Ok(Check::Tcp(address(&tcp.host, &tcp.port)?))
        } else if let Some(exec) = &probe.exec {
            Ok(Check::Exec(exec.command.clone().unwrap_or_default()))
        } else {
            Err(not_done("gRPC probes"))
        }
    }

    /// Whether it passes within `limit`. Runs in the node's namespace, commands in the pod's.
    pub(super) async fn passes(&self, limit: Duration, launch: &Launch, ns: &Netns) -> bool {
        let checked = timeout(limit, async {
            match self {
                Check::Http { address, request } => http(*address, request).await,
                Check::Tcp(address) => Ok(TcpStream::connect(address).await.is_ok()),
                Check::Exec(argv) => exec(launch.exec(ns, argv)).await,
            }
        });
        matches!(checked.await, Ok(Ok(true)))
    }
}

fn port_of(port: &IntOrString, container: &Container) -> Result<u16, Refusal> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let named = ports.into_iter().find(|port| port.name.as_deref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| Refusal {
        reason: "CreateContainerConfigError",
        message: format!("container {} has no port {port:?}, which its probe names", container.name),
    })
}

fn request(get: &HTTPGetAction, address: SocketAddr) -> String {
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let headers = get.http_headers.iter().flatten();
    let given: String =
        headers.clone().map(|header| format!("{}: {}\r\n", header.name, header.value)).collect();
    let host = if headers.into_iter().any(|header| header.name.eq_ignore_ascii_case("host")) {
        String::new()
    } else {
        format!("Host: {address}\r\n")
    };
    format!("GET {path} HTTP/1.1\r\n{host}User-Agent: kube-probe/kanmon\r\nConnection: close\r\n{given}\r\n")
}

async fn http(address: SocketAddr, request: &str) -> Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut received = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        if response.parse(&received)?.is_complete() {
            return Ok(response.code.is_some_and(|code| (200..400).contains(&code)));
        }
        let read = stream.read_buf(&mut received).await?;
        anyhow::ensure!(read > 0 && received.len() < HEAD_LIMIT, "the answer's head has no end");
    }
}

async fn exec(command: Option<Command>) -> Result<bool> {
    let mut command = command.context("an exec probe without a command")?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe.
    unsafe {
        // A check is nothing without the kubelet that waits for it.
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Into::into)
        });
    }
    let mut command = tokio::process::Command::from(command);
    Ok(command.kill_on_drop(true).status().await?.success())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(probe: serde_json::Value) -> Result<Check, Refusal> {
        let container = json!({"name": "echo", "ports": [{"name": "http", "containerPort": 8080}]});
        let container: Container = serde_json::from_value(container).unwrap();
        Check::of(&serde_json::from_value(probe).unwrap(), &container, [10, 0, 0, 2].into())
    }

    #[test]
    fn a_probe_goes_to_the_pods_address_and_to_the_port_that_it_names() {
        let address: SocketAddr = "10.0.0.2:8080".parse().unwrap();
        assert_eq!(check(json!({"tcpSocket": {"port": "http"}})), Ok(Check::Tcp(address)));
        let Ok(Check::Http { address: to, request }) = check(
            json!({"httpGet": {"port": 8080, "path": "/healthz", "httpHeaders": [{"name": "X", "value": "1"}]}}),
        ) else {
            panic!("an HTTP check")
        };
        assert_eq!(to, address);
        assert!(request.starts_with("GET /healthz HTTP/1.1\r\nHost: 10.0.0.2:8080\r\n"), "{request}");
        assert!(request.ends_with("X: 1\r\n\r\n"), "{request}");
    }

    #[test]
    fn a_probe_that_cannot_be_done_is_refused() {
        for (probe, named) in [
            (json!({"tcpSocket": {"port": "admin"}}), "admin"),
            (json!({"httpGet": {"port": 1, "scheme": "HTTPS"}}), "HTTPS"),
            (json!({"grpc": {"port": 1}}), "gRPC"),
        ] {
            let refusal = check(probe).unwrap_err();
            assert!(refusal.message.contains(named), "{}", refusal.message);
        }
    }
}
