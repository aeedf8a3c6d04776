//! Texts in, objects or located errors out.

use super::super::{ManifestError, Object, parse};
use super::{member, policy, service};

fn titles(text: &str) -> Vec<String> {
    parse(text).expect(text).objects.iter().map(Object::title).collect()
}

fn error(text: &str) -> ManifestError {
    parse(text).expect_err(text)
}

#[test]
fn documents_of_every_used_kind_are_read_in_order() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1}\n\
                 addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\nports: [{port: 80}]\n";
    let pool = "apiVersion: kanmon.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: p}\n\
                spec: {cidrs: [192.0.2.0/24], scope: Public}\n";
    let text =
        format!("# all of them\n{}---\n{slice}--- # next\n{pool}---\n{}---\n", service("web"), member("a"));
    assert_eq!(titles(&text), ["Service web", "EndpointSlice web-1", "AddressPool p", "MemberCluster a"]);
    assert_eq!(titles(&policy("p")), ["LoadBalancingPolicy p"]);
}

#[test]
fn a_policy_that_an_api_server_would_refuse_is_refused_here() {
    let bad = policy("p").replace("slowStart: 10s", "slowStart: 1d, drainTimeout: 25h");
    let text = format!("{}---\n{bad}", service("web"));
    let expected = "spec.drainTimeout: must be 24h at most; spec.slowStart: \"1d\" is not a duration; write it like \
                    500ms, 10s or 1m30s";
    let refused = error(&text);
    assert_eq!((refused.line, refused.what.as_str()), (6, expected));

    let indented = bad.lines().map(|line| format!("  {line}\n")).collect::<String>();
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {}", indented.trim_start());
    let refused = error(&list);
    assert_eq!(refused.line, 4);
    assert_eq!(refused.what, format!("in the LoadBalancingPolicy that begins here: {expected}"));
}

#[test]
fn nothing_and_comments_are_no_objects() {
    for text in ["", "\n\n", "# nothing\n", "---\n", "---\n# x\n---\n...\n", "--- # only a comment\n"] {
        assert_eq!(titles(text), Vec::<String>::new(), "{text:?}");
    }
}

#[test]
fn other_kinds_are_ignored_by_name() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {anything: [goes]}\n---\n\
                apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: y}\n";
    let manifest = parse(text).unwrap();
    assert_eq!(manifest.objects, []);
    assert_eq!(manifest.ignored, ["apps/v1/Deployment", "discovery.k8s.io/v1beta1/EndpointSlice"]);
}

#[test]
fn a_list_is_its_items() {
    let text = "apiVersion: v1\nkind: List\nitems:\n\
                - apiVersion: v1\n  kind: Service\n  metadata: {name: web}\n\
                - apiVersion: v1\n  kind: Secret\n  metadata: {name: s}\n\
                - apiVersion: kanmon.dev/v1alpha1\n  kind: MemberCluster\n  metadata: {name: a}\n  spec: {}\n";
    assert_eq!(titles(text), ["Service web", "MemberCluster a"]);
    assert_eq!(parse(text).unwrap().ignored, ["v1/Secret"]);
    assert_eq!(titles("apiVersion: v1\nkind: List\nitems: []\n"), Vec::<String>::new());
}

#[test]
fn json_is_yaml() {
    let text = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}"#;
    assert_eq!(titles(text), ["Service web"]);
}

#[test]
fn errors_say_where_in_the_file() {
    let first = service("web");
    for (text, line, column, expected) in [
        // Syntax, in the first and in a later document.
        ("apiVersion: v1\nkind: [\n".to_owned(), 2, 7, ""),
        (format!("{first}---\napiVersion: v1\nkind: Service\nspec:\n\tports: []\n"), 9, 2, "tabs"),
        // A value of the wrong type, deep inside.
        (first.replace("port: 80", "port: http"), 4, 78, "i32"),
        (format!("# x\n---\n{first}---\n{}", first.replace("port: 80", "port: http")), 11, 78, "i32"),
        // Unknown and missing fields of our own kinds.
        (member("a").replace("region", "regoin"), 4, 8, "regoin"),
        (member("a").replace("{region: cn-a}", "{state: Draining}"), 4, 15, "Draining"),
        // No object at all.
        ("\n# x\nmetadata: {name: x}\n".to_owned(), 3, 1, "has no kind"),
        (format!("{first}---\nkind: Service\n"), 6, 1, "has no apiVersion"),
        ("just text\n".to_owned(), 1, 1, ""),
        // The same key twice.
        ("apiVersion: v1\nkind: Service\nkind: Secret\n".to_owned(), 3, 1, "kind"),
        // An item of a list.
        (
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service}\n\
             - {apiVersion: v1, kind: Service, spec: 5}\n"
                .to_owned(),
            5,
            3,
            "in the Service that begins here",
        ),
    ] {
        let error = error(&text);
        assert_eq!((error.line, error.column), (line, column), "{text}\n{error}");
        assert!(error.what.contains(expected), "{error}");
        assert!(!error.what.contains(" at line "), "{error}");
        assert!(error.to_string().starts_with(&format!("line {line}, column {column}: ")), "{error}");
    }
}

#[test]
fn a_marker_inside_of_a_scalar_is_no_marker() {
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n    note: |\n      ---\n      x\n";
    assert_eq!(titles(text), ["Service web"]);
}

#[test]
fn thousands_of_endpoints_fit_into_one_document() {
    let mut text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1}\n\
                    addressType: IPv4\nendpoints:\n"
        .to_owned();
    for n in 0..20_000_u32 {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n);
        text += &format!(
            "- addresses: [{address}]\n  zone: a\n  conditions: {{ready: true, serving: true}}\n  \
             targetRef: {{kind: Pod, namespace: demo, name: pod-{n}}}\n"
        );
    }
    match parse(&text).unwrap().objects.as_slice() {
        [Object::Slice(slice)] => assert_eq!(slice.endpoints.as_ref().map(Vec::len), Some(20_000)),
        objects => panic!("{objects:?}"),
    }
}

#[test]
fn exports_of_both_versions_are_read_alone_and_in_lists() {
    let export = |version: &str, name: &str| {
        format!(
            "{{apiVersion: {version}, kind: ServiceExport, metadata: {{namespace: demo, name: {name}}}, \
             spec: {{exportedLabels: {{a: b}}}}}}"
        )
    };
    let (beta, alpha) = ("multicluster.x-k8s.io/v1beta1", "multicluster.x-k8s.io/v1alpha1");
    let text = format!(
        "{}\n---\n{}\n---\napiVersion: v1\nkind: List\nitems: [{}, {}]\n",
        export(beta, "one"),
        export(alpha, "two"),
        export(alpha, "three"),
        export("multicluster.example/v1", "other")
    );
    assert_eq!(titles(&text), ["ServiceExport one", "ServiceExport two", "ServiceExport three"]);
    let manifest = parse(&text).unwrap();
    assert_eq!(manifest.ignored, ["multicluster.example/v1/ServiceExport"]);
    let labelled = |object: &Object| matches!(object, Object::Export(export) if export.spec.exported_labels.as_ref().is_some_and(|l| l.len() == 1));
    assert!(manifest.objects.iter().all(labelled));
    assert!(manifest.objects.iter().all(|object| !object.is_of_gateway()));
}
