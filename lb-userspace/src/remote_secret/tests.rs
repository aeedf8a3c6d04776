//! What is made, field by field.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use super::objects::{self, Account, Credentials, Form};
use super::{is_loopback, server_url};
use crate::cluster::kubernetes::WRITES;
use crate::cluster::kubernetes::kubeconfig::Policy;
use crate::cluster::kubernetes::remote_secret::entries;

fn account(form: Form) -> Account {
    Account {
        form,
        namespace: form.namespace().to_owned(),
        service_account: form.service_account().to_owned(),
    }
}

fn credentials() -> Credentials {
    Credentials {
        server: "https://198.51.100.1:6443".to_owned(),
        tls_server_name: None,
        ca: b"CA".to_vec(),
        token: "t0ken".to_owned(),
    }
}

fn long_token() -> String {
    "t0ken.".repeat(200)
}

fn value(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap()
}

#[test]
fn the_istio_secret_is_what_istiod_reads() {
    let secret = objects::remote_secret(&account(Form::Istio), "cluster1", &credentials()).unwrap();
    let mut found = value(&secret);
    let kubeconfig = found["stringData"]["cluster1"].take();
    assert_eq!(
        found,
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": "istio-remote-secret-cluster1",
                "namespace": "istio-system",
                "labels": {"istio/multiCluster": "true"},
                "annotations": {"networking.istio.io/cluster": "cluster1"},
            },
            "stringData": {"cluster1": null},
        })
    );
    let kubeconfig: Value = serde_saphyr::from_str(kubeconfig.as_str().unwrap()).unwrap();
    assert_eq!(
        kubeconfig,
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "preferences": {},
            "clusters": [{"name": "cluster1", "cluster": {
                // "CA" in base64.
                "certificate-authority-data": "Q0E=",
                "server": "https://198.51.100.1:6443",
            }}],
            "contexts": [{"name": "cluster1", "context": {"cluster": "cluster1", "user": "cluster1"}}],
            "current-context": "cluster1",
            "users": [{"name": "cluster1", "user": {"token": "t0ken"}}],
        })
    );
}

#[test]
fn our_own_secret_differs_in_name_namespace_and_label_only() {
    let istio = objects::remote_secret(&account(Form::Istio), "c", &credentials()).unwrap();
    let ours = objects::remote_secret(&account(Form::Kanmon), "c", &credentials()).unwrap();
    assert_eq!(
        value(&ours.metadata),
        json!({
            "name": "kanmon-remote-secret-c",
            "namespace": "kanmon-system",
            "labels": {"kanmon.dev/member-cluster": "true"},
            "annotations": {"networking.istio.io/cluster": "c"},
        })
    );
    assert_eq!(ours.string_data, istio.string_data);
}

#[test]
fn what_is_printed_registers_the_cluster_with_a_gateway() {
    for form in [Form::Kanmon, Form::Istio] {
        let secret = objects::remote_secret(&account(form), "ack-hangzhou", &credentials()).unwrap();
        let yaml = objects::to_yaml(&secret).unwrap();
        assert!(yaml.starts_with("# ") && yaml.ends_with("\n---\n"), "{yaml}");
        let printed: Vec<Option<Secret>> = serde_saphyr::from_multiple(&yaml).unwrap();
        let found = entries(printed[0].as_ref().unwrap());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].key.as_str(), found[0].member.as_str()), ("ack-hangzhou", "ack-hangzhou"));
        assert_eq!(found[0].check(Policy::default()).unwrap().server, "https://198.51.100.1:6443");
    }
}

#[test]
fn the_kubeconfig_is_printed_as_text_that_people_can_read() {
    let long = Credentials { token: long_token(), ..credentials() };
    let secret = objects::remote_secret(&account(Form::Kanmon), "c", &long).unwrap();
    let yaml = objects::to_yaml(&secret).unwrap();
    assert!(yaml.contains("  c: |\n    apiVersion: v1\n"), "{yaml}");
    assert!(yaml.contains(&format!("        token: {}\n", long_token())), "{yaml}");
}

#[test]
fn a_name_of_the_servers_certificate_is_kept() {
    let named = Credentials { tls_server_name: Some("kubernetes".to_owned()), ..credentials() };
    let secret = objects::remote_secret(&account(Form::Kanmon), "c", &named).unwrap();
    let kubeconfig: Value = serde_saphyr::from_str(&secret.string_data.unwrap()["c"]).unwrap();
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["tls-server-name"], "kubernetes");
}

#[test]
fn our_account_may_do_all_that_the_agent_asks_for() {
    let rules = account(Form::Kanmon).role().rules.unwrap();
    let has =
        |list: Option<&Vec<String>>, item: &str| list.is_some_and(|list| list.iter().any(|i| i == item));
    for (verb, group, resource) in WRITES {
        let granted = rules.iter().any(|rule| {
            has(rule.api_groups.as_ref(), group)
                && has(rule.resources.as_ref(), resource)
                && has(Some(&rule.verbs), verb)
        });
        assert!(granted, "{verb} {resource} of {group:?}");
    }
}

#[test]
fn our_account_is_the_one_that_deploy_member_has() {
    let account = account(Form::Kanmon);
    let made = [
        value(&account.namespace_object()),
        value(&account.service_account_object()),
        value(&account.role()),
        value(&account.binding()),
        value(&account.token_object()),
    ];
    let deployed: Vec<Value> =
        serde_saphyr::from_multiple(include_str!("../../../deploy/member/account.yaml")).unwrap();
    assert_eq!(made[..], deployed[..]);
}

#[test]
fn the_istio_account_has_the_names_and_the_rights_of_istioctls() {
    let account = account(Form::Istio);
    assert_eq!(value(&account.service_account_object())["metadata"]["name"], "istio-reader-service-account");
    assert_eq!(
        value(&account.token_object())["metadata"]["name"],
        "istio-reader-service-account-istio-remote-secret-token"
    );
    assert_eq!(value(&account.binding())["roleRef"]["name"], "istio-reader-clusterrole-istio-system");
    let role = value(&account.role());
    assert_eq!(role["metadata"]["name"], "istio-reader-clusterrole-istio-system");
    let allows = |group: &str, resource: &str, verb: &str| {
        let has = |list: &Value, text: &str| list.as_array().unwrap().contains(&json!(text));
        role["rules"].as_array().unwrap().iter().any(|rule| {
            has(&rule["apiGroups"], group) && has(&rule["resources"], resource) && has(&rule["verbs"], verb)
        })
    };
    for (group, resource) in [
        ("", "services"),
        ("", "endpoints"),
        ("", "pods"),
        ("", "nodes"),
        ("", "namespaces"),
        ("", "secrets"),
        ("", "configmaps"),
        ("", "replicationcontrollers"),
        ("apps", "replicasets"),
        ("discovery.k8s.io", "endpointslices"),
        ("networking.istio.io", "*"),
        ("networking.istio.io", "workloadentries"),
        ("gateway.networking.k8s.io", "gateways"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        ("multicluster.x-k8s.io", "serviceexports"),
        ("multicluster.x-k8s.io", "serviceimports"),
    ] {
        for verb in ["get", "list", "watch"] {
            assert!(allows(group, resource, verb), "{verb} {resource} of {group:?}");
        }
    }
    assert!(allows("authentication.k8s.io", "tokenreviews", "create"));
    assert!(allows("authorization.k8s.io", "subjectaccessreviews", "create"));
    assert!(!allows("", "secrets", "create"));
}

#[test]
fn another_account_has_a_role_of_its_own() {
    let account = Account { service_account: "other".to_owned(), ..account(Form::Kanmon) };
    assert_eq!(account.role_name(), "other-kanmon-system");
    assert_eq!(value(&account.binding())["subjects"][0]["name"], "other");
}

#[test]
fn a_token_counts_once_both_its_parts_are_there() {
    let secret = |data: &[(&str, &str)]| Secret {
        data: Some(
            data.iter()
                .map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec())))
                .collect(),
        ),
        ..Secret::default()
    };
    for incomplete in [
        Secret::default(),
        secret(&[("ca.crt", "CA")]),
        secret(&[("token", "t")]),
        secret(&[("ca.crt", "CA"), ("token", "")]),
    ] {
        assert_eq!(objects::credentials(&incomplete), None);
    }
    let found = objects::credentials(&secret(&[("ca.crt", "CA"), ("token", "t0ken")])).unwrap();
    assert_eq!((found.ca.as_slice(), found.token.as_str()), (&b"CA"[..], "t0ken"));
    assert!(!format!("{found:?}").contains("t0ken"));
}

#[test]
fn the_server_is_the_contexts_unless_one_is_named_and_always_https() {
    let config = kube::Config::new("https://203.0.113.1:6443/".parse().unwrap());
    let found = server_url(None, &config).unwrap();
    assert_eq!((found.url.as_str(), found.given), ("https://203.0.113.1:6443", false));
    let found = server_url(Some("https://api.example:443"), &config).unwrap();
    assert_eq!((found.url.as_str(), found.given), ("https://api.example:443", true));
    assert!(server_url(Some("http://api.example"), &config).is_err());
}

#[test]
fn addresses_that_only_this_machine_reaches_are_known() {
    for url in ["https://127.0.0.1:6443", "https://localhost:6443", "https://[::1]:6443"] {
        assert!(is_loopback(url), "{url}");
    }
    assert!(!is_loopback("https://198.51.100.1:6443"));
}
