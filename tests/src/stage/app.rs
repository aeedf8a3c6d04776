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
    /// The Service's VIPs; none: an ordinary ClusterIP.
    pub vip: Option<Dual>,
}

impl App {
    /// An app whose Service has no VIP of its own.
    pub fn new(name: &str, replicas: u8) -> App {
        App { name: name.to_owned(), replicas, version: None, vip: None }
    }

    /// Its Service is a load balancer at these VIPs.
    #[must_use]
    pub fn at(self, vip: Dual) -> App {
        App { vip: Some(vip), ..self }
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

    /// The Deployment and the Service.
    pub fn yaml(&self) -> String {
        let mut yaml = self.deployment_yaml();
        yaml.push_str("---\n");
        yaml.push_str(&self.service_yaml());
        yaml
    }

    fn deployment_yaml(&self) -> String {
        let App { name, replicas, .. } = self;
        let deployment = self.deployment();
        let version = self.version.unwrap_or("v1");
        format!(
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
      containers:
      - name: echo
        image: kanmon.dev/echo
        args: [--drain-delay={DRAIN_SECONDS}]
        ports: [{{name: http, containerPort: {POD_PORT}}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}
"
        )
    }

    fn service_yaml(&self) -> String {
        let App { name, .. } = self;
        let mut yaml =
            format!("apiVersion: v1\nkind: Service\nmetadata:\n  namespace: demo\n  name: {name}\n");
        if let Some(Dual { v4, v6 }) = self.vip {
            let annotations = format!(
                "  annotations:
    kanmon.dev/addresses: \"{v4},{v6}\"
    kanmon.dev/health-check: tcp
    kanmon.dev/health-check-interval: 500ms
    kanmon.dev/health-check-timeout: 300ms
"
            );
            yaml.push_str(&annotations);
        }
        yaml.push_str("spec:\n");
        if self.vip.is_some() {
            yaml.push_str(
                "  type: LoadBalancer
  loadBalancerClass: kanmon.dev/xdp
  allocateLoadBalancerNodePorts: false
",
            );
        }
        write!(
            yaml,
            "  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  selector: {{app: {name}}}
  ports: [{{name: http, protocol: TCP, port: {HTTP_PORT}, targetPort: http}}]
"
        )
        .expect("a String takes what is written to it");
        yaml
    }
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
        let yaml = plain.at(VIP).yaml();
        assert!(yaml.contains("kanmon.dev/addresses: \"192.168.100.10,fd00:100::10\""), "{yaml}");
        assert!(yaml.contains("loadBalancerClass: kanmon.dev/xdp"), "{yaml}");
    }
}
