//! The app that the stories deploy: echo servers behind a Service.

use std::fmt::Write;

use crate::topology::{Dual, HTTP_PORT, POD_PORT};

/// How long a server that was asked to end takes new connections: until everybody knows.
const DRAIN_SECONDS: u8 = 5;

/// A Deployment of echo servers and their Service, in the namespace `demo`.
#[derive(Clone, Debug)]
pub struct App {
    /// The Service's name, and the label `app` of its pods.
    pub name: String,
    /// Pods.
    pub replicas: u8,
    /// The label `version` of its pods, and the end of the Deployment's name, where there is one.
    pub version: Option<&'static str>,
    /// How the Service is reached.
    pub reach: Reach,
    /// The Service's port.
    pub port: u16,
    /// Whether a ServiceExport goes with it.
    pub exported: bool,
    /// Whether its kubelet asks a pod before it calls it ready; else it is ready as soon as it runs.
    pub checked: bool,
    /// Whether each zone gets as many pods as the others.
    pub spread: bool,
}

/// How a Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By its ClusterIPs.
    ClusterIp,
    /// By its pods' addresses.
    Headless,
    /// It is a load balancer of ours; its VIPs come from a pool.
    Assigned,
    /// It is a load balancer of ours that names its VIPs.
    At(Dual),
}

impl App {
    /// An app whose Service has no VIP of its own.
    pub fn new(name: &str, replicas: u8) -> App {
        App {
            name: name.to_owned(),
            replicas,
            version: None,
            reach: Reach::ClusterIp,
            port: HTTP_PORT,
            exported: false,
            checked: true,
            spread: false,
        }
    }

    /// Its Service is a load balancer at these VIPs.
    #[must_use]
    pub fn at(self, vip: Dual) -> App {
        App { reach: Reach::At(vip), ..self }
    }

    /// Its Service is a load balancer at VIPs from a pool.
    #[must_use]
    pub fn assigned(self) -> App {
        App { reach: Reach::Assigned, ..self }
    }

    /// Its Service is headless.
    #[must_use]
    pub fn headless(self) -> App {
        App { reach: Reach::Headless, ..self }
    }

    /// Its Service has this port.
    #[must_use]
    pub fn port(self, port: u16) -> App {
        App { port, ..self }
    }

    /// Its Service is exported.
    #[must_use]
    pub fn exported(self) -> App {
        App { exported: true, ..self }
    }

    /// Its pods are ready as soon as they run, whether they answer or not.
    #[must_use]
    pub fn unchecked(self) -> App {
        App { checked: false, ..self }
    }

    /// Its pods are spread over the zones evenly.
    #[must_use]
    pub fn over_zones(self) -> App {
        App { spread: true, ..self }
    }

    /// Its pods are of this version.
    #[must_use]
    pub fn version(self, version: &'static str) -> App {
        App { version: Some(version), ..self }
    }

    /// The Service, as the agent calls it: `demo/httpbin`.
    pub fn service(&self) -> String {
        format!("demo/{}", self.name)
    }

    /// The Deployment's name.
    pub fn deployment(&self) -> String {
        self.version.map_or_else(|| self.name.clone(), |version| format!("{}-{version}", self.name))
    }

    /// The Deployment and the Service, and the ServiceExport where it is exported.
    pub fn yaml(&self) -> String {
        let mut parts = vec![self.deployment_yaml(), self.service_yaml()];
        if self.exported {
            parts.push(export(&self.name, "v1beta1"));
        }
        parts.join("---\n")
    }

    fn deployment_yaml(&self) -> String {
        let App { name, replicas, .. } = self;
        let deployment = self.deployment();
        let version = self.version.unwrap_or("v1");
        let spread = if self.spread {
            format!(
                "      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: topology.kubernetes.io/zone
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {{matchLabels: {{app: {name}, version: {version}}}}}
"
            )
        } else {
            String::new()
        };
        let mut yaml = format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{namespace: demo, name: {deployment}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}, version: {version}}}}}
  template:
    metadata: {{labels: {{app: {name}, version: {version}}}}}
    spec:
      terminationGracePeriodSeconds: 30
{spread}      containers:
      - name: echo
        image: kanmon.dev/echo
        args: [--drain-delay={DRAIN_SECONDS}]
        ports: [{{name: http, containerPort: {POD_PORT}}}]
"
        );
        if self.checked {
            yaml.push_str(
                "        readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}\n",
            );
        }
        yaml
    }

    fn service_yaml(&self) -> String {
        let App { name, port, .. } = self;
        let is_front = matches!(self.reach, Reach::Assigned | Reach::At(_));
        let mut yaml =
            format!("apiVersion: v1\nkind: Service\nmetadata:\n  namespace: demo\n  name: {name}\n");
        if is_front {
            yaml.push_str("  annotations:\n");
            if let Reach::At(Dual { v4, v6 }) = self.reach {
                writeln!(yaml, "    kanmon.dev/addresses: \"{v4},{v6}\"")
                    .expect("a String takes what is written to it");
            }
            yaml.push_str(
                "    kanmon.dev/health-check: tcp
    kanmon.dev/health-check-interval: 500ms
    kanmon.dev/health-check-timeout: 300ms
",
            );
        }
        yaml.push_str("spec:\n");
        if is_front {
            yaml.push_str(
                "  type: LoadBalancer
  loadBalancerClass: kanmon.dev/xdp
  allocateLoadBalancerNodePorts: false
",
            );
        }
        if self.reach == Reach::Headless {
            yaml.push_str("  clusterIP: None\n");
        }
        write!(
            yaml,
            "  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  selector: {{app: {name}}}
  ports: [{{name: http, protocol: TCP, port: {port}, targetPort: http}}]
"
        )
        .expect("a String takes what is written to it");
        yaml
    }
}

/// A ServiceExport in the namespace `demo`, in a version of mcs-api.
pub fn export(name: &str, version: &str) -> String {
    format!(
        "apiVersion: multicluster.x-k8s.io/{version}
kind: ServiceExport
metadata: {{namespace: demo, name: {name}}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::VIP;

    #[test]
    fn an_app_with_a_vip_is_a_load_balancer_of_ours_and_another_one_is_not() {
        let plain = App::new("helloworld", 1).version("v2");
        assert_eq!(
            (plain.deployment().as_str(), plain.service().as_str()),
            ("helloworld-v2", "demo/helloworld")
        );
        assert!(!plain.yaml().contains("LoadBalancer"), "{}", plain.yaml());
        let yaml = plain.clone().at(VIP).yaml();
        assert!(yaml.contains("kanmon.dev/addresses: \"192.168.100.10,fd00:100::10\""), "{yaml}");
        assert!(yaml.contains("loadBalancerClass: kanmon.dev/xdp"), "{yaml}");
        let yaml = plain.assigned().port(8080).exported().yaml();
        assert!(!yaml.contains("kanmon.dev/addresses") && yaml.contains("port: 8080,"), "{yaml}");
        assert!(yaml.contains("loadBalancerClass") && yaml.contains("kind: ServiceExport"), "{yaml}");
    }

    #[test]
    fn an_app_is_checked_and_placed_as_asked() {
        let yaml = App::new("httpbin", 3).yaml();
        assert!(yaml.contains("readinessProbe") && !yaml.contains("topologySpread"), "{yaml}");
        let yaml = App::new("ratings", 3).unchecked().over_zones().yaml();
        assert!(!yaml.contains("readinessProbe") && yaml.contains("app: ratings, version: v1}}\n"), "{yaml}");
    }

    #[test]
    fn a_headless_app_has_no_cluster_ip() {
        let yaml = App::new("db", 1).headless().yaml();
        assert!(yaml.contains("clusterIP: None") && !yaml.contains("LoadBalancer"), "{yaml}");
    }
}
