//! ServiceExports: what they let take part, and what the import looks like.

use super::super::exports::{gather, open_ports};
use super::super::mcs::{ImportPort, ImportType};
use super::super::problems::Problems;
use super::super::{ExportState, Judgement, Protocol, Reason, ServiceId, fronts, index, members};
use super::{Desired, Place, World, front, ip, member, name, slice, slice_with, tcp, udp};

pub(super) const VIP: &str = "192.0.2.1";

/// A Service `demo/web` of type ClusterIP with port 80/TCP named `http`; `more` is added to its spec.
pub(super) fn backend(more: &str) -> String {
    let mut text =
        "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: demo, name: web}\nspec:\n".to_owned();
    if !more.contains("ports:") {
        text += "  ports: [{name: http, port: 80}]\n";
    }
    more.lines().for_each(|line| text += &format!("  {line}\n"));
    text
}

/// The ServiceExport `demo/web`, made at a time, RFC 3339; `more` is added to it.
pub(super) fn export(created: &str, more: &str) -> String {
    let created =
        if created.is_empty() { String::new() } else { format!(", creationTimestamp: \"{created}\"") };
    format!(
        "---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n\
         metadata: {{namespace: demo, name: web{created}}}\n{more}\n"
    )
}

impl World {
    /// Adds a cluster that exports `demo/web`, in 2026 on that day of January.
    pub(super) fn exporting(self, cluster: &str, day: u8, service: &str) -> Self {
        let export = export(&format!("2026-01-{day:02}T00:00:00Z"), "");
        self.cluster(cluster, &(backend(service) + &export))
    }
}

impl Desired {
    pub(super) fn export(&self) -> &ExportState {
        self.exports.get(&name("demo/web")).unwrap_or_else(|| panic!("no export: {:#?}", self.problems))
    }

    pub(super) fn condition(&self, cluster: &str, kind: &str) -> &Judgement {
        let judged = &self.export().exports[cluster].conditions;
        judged.iter().find(|condition| condition.kind == kind).expect(kind)
    }

    /// Status and reason of the conditions Valid, Ready and Conflict.
    fn told(&self, cluster: &str) -> [(bool, &str); 3] {
        ["Valid", "Ready", "Conflict"].map(|kind| {
            let condition = self.condition(cluster, kind);
            (condition.holds.unwrap(), condition.reason.as_str())
        })
    }
}

pub(super) fn port(name: &str, port: i32, protocol: &str) -> ImportPort {
    ImportPort { name: name.to_owned(), protocol: protocol.to_owned(), app_protocol: None, port }
}

#[test]
fn of_a_member_with_that_discovery_only_exported_services_take_part() {
    let world = World::default()
        .cluster("a", &(front("web", VIP, "") + &slice("web", "x", &["10.0.0.1"])))
        .cluster("b", &(backend("") + &slice("web", "x", &["10.1.0.1"])))
        .gateway(&member("b", "discovery: ServiceExport"));
    let desired = world.merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080"]);
    assert_eq!(desired.problems, []);
    assert!(desired.exports.is_empty());

    let desired = world.cluster("b", &export("", "")).merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080"]);
    assert_eq!(desired.problems, []);
}

#[test]
fn endpoints_that_are_not_exported_claim_no_address() {
    let desired = World::default()
        .cluster("a", &(backend("") + &slice("web", "x", &["10.1.0.1"])))
        .cluster("b", &(front("web", VIP, "") + &slice("web", "x", &["10.1.0.1"])))
        .gateway(&member("a", "discovery: ServiceExport"))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["b=10.1.0.1:8080"]);
    assert_eq!(desired.problems, []);
}

#[test]
fn a_front_that_is_not_exported_is_none_and_is_told() {
    let world = World::default()
        .cluster("a", &(front("web", VIP, "") + &slice("web", "x", &["10.0.0.1"])))
        .gateway(&member("a", "discovery: ServiceExport"));
    let desired = world.merge();
    assert_eq!(desired.ids(), []);
    let message = desired.only_problem("a", "Service demo/web", Reason::NotExported);
    assert!(message.contains("make one of its name, or say `discovery: SameName`"), "{message}");

    let desired = world.cluster("a", &export("", "")).merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080"]);
    assert_eq!(desired.problems, []);
}

#[test]
fn the_gateway_clusters_own_fronts_need_no_export() {
    let local = "source: {local: {}}\ndiscovery: ServiceExport";
    let desired = World::default()
        .cluster("a", &(front("web", VIP, "") + &slice("web", "x", &["10.0.0.1"])))
        .gateway(&(front("web", VIP, "") + &member("a", local)))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), Vec::<String>::new());
    assert_eq!(desired.problems, []);
}

#[test]
fn an_export_without_a_service_waits_for_it() {
    let desired = World::default().cluster("a", &export("", "")).merge();
    assert_eq!(desired.told("a"), [(false, "NoService"), (false, "Pending"), (false, "NoConflicts")]);
    let message = desired.only_problem("a", "ServiceExport demo/web", Reason::InvalidExport);
    assert!(message.contains("no Service demo/web"), "{message}");
    assert_eq!(desired.condition("a", "Valid").message, message);
    assert_eq!((desired.export().import.as_ref(), desired.export().clusters.len()), (None, 0));
    assert!(desired.export().import_conditions.is_empty());
}

#[test]
fn an_external_name_cannot_be_exported_and_contributes_nothing() {
    let desired = World::default()
        .cluster("a", &(front("web", VIP, "") + &slice("web", "x", &["10.0.0.1"])))
        .cluster("b", &(backend("type: ExternalName\nexternalName: example.com") + &export("", "")))
        .cluster("b", &slice("web", "x", &["10.1.0.1"]))
        .gateway(&member("b", "discovery: ServiceExport"))
        .merge();
    assert_eq!(desired.told("b"), [(false, "InvalidServiceType"), (false, "Failed"), (false, "NoConflicts")]);
    assert_eq!(desired.export().import, None);
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080"]);
    desired.only_problem("b", "ServiceExport demo/web", Reason::InvalidExport);
}

#[test]
fn an_export_without_a_front_is_pending_and_says_what_to_do() {
    let world = World::default().exporting("b", 1, "ipFamilies: [IPv6]");
    let desired = world.merge();
    assert_eq!(desired.told("b"), [(true, "Valid"), (false, "Pending"), (false, "NoConflicts")]);
    let message = &desired.condition("b", "Ready").message;
    assert!(message.contains("`type: LoadBalancer` and `loadBalancerClass: kanmon.dev/xdp`"), "{message}");
    let import = desired.export().import.as_ref().unwrap();
    assert_eq!((import.type_, import.ips.len()), (ImportType::ClusterSetIp, 0));
    assert_eq!(import.ip_families, ["IPv6"]);
    assert_eq!(desired.export().import_conditions[0].reason, "Pending");
    desired.only_problem("b", "ServiceExport demo/web", Reason::ExportPending);

    // A front that has no address yet.
    let waiting = world.cluster("a", &front("web", "", "")).merge();
    assert_eq!(waiting.told("b")[1], (false, "Pending"));
    assert!(waiting.condition("b", "Ready").message.contains("demo/web in cluster a waits"));
}

#[test]
fn an_import_has_the_fronts_addresses_and_is_ready() {
    let addresses = format!("{VIP},2001:db8::1");
    let desired = World::default()
        .cluster("a", &front("web", &addresses, ""))
        .exporting("b", 1, "ipFamilies: [IPv4]\ninternalTrafficPolicy: Cluster")
        .exporting("c", 2, "")
        .merge();
    assert_eq!(desired.told("b"), [(true, "Valid"), (true, "Exported"), (false, "NoConflicts")]);
    let state = desired.export();
    assert_eq!(state.clusters, ["b", "c"]);
    let import = state.import.as_ref().unwrap();
    assert_eq!(import.ips, [VIP, "2001:db8::1"]);
    assert_eq!(import.ip_families, ["IPv4", "IPv6"]);
    assert_eq!(import.ports, [port("http", 80, "TCP")]);
    assert_eq!(import.session_affinity.as_deref(), Some("None"));
    assert_eq!(import.internal_traffic_policy.as_deref(), Some("Cluster"));
    let ready = &state.import_conditions[0];
    assert_eq!((ready.kind, ready.holds, ready.reason.as_str()), ("Ready", Some(true), "Ready"));
}

#[test]
fn a_headless_export_is_a_headless_import_without_addresses() {
    let desired = World::default()
        .cluster("a", &front("web", VIP, "ports: [{name: api, port: 443}]"))
        .exporting("b", 1, "clusterIP: None")
        .merge();
    assert_eq!(desired.told("b"), [(true, "Valid"), (true, "Exported"), (false, "NoConflicts")]);
    let import = desired.export().import.as_ref().unwrap();
    assert_eq!((import.type_, import.ips.len()), (ImportType::Headless, 0));
    // Its ports are no business of the front's VIP.
    assert_eq!(desired.ids(), [tcp(VIP, 443)]);
}

#[test]
fn exports_of_clusters_that_are_not_used_do_not_count_and_are_told() {
    let desired = World::default()
        .exporting("a", 1, "sessionAffinity: ClientIP")
        .exporting("b", 2, "")
        .exporting("c", 3, "")
        .gateway(&member("a", "state: Disabled"))
        .gateway(&member("b", "podCIDRs: [10.0.0.0/8]"))
        .gateway(&member("c", "podCIDRs: [10.1.0.0/16]"))
        .merge();
    assert_eq!(desired.told("a"), [(true, "Valid"), (false, "Pending"), (false, "NoConflicts")]);
    assert!(desired.condition("a", "Ready").message.contains("say `state: Active`"));
    assert_eq!(desired.told("c"), [(true, "Valid"), (false, "Failed"), (false, "NoConflicts")]);
    assert!(desired.condition("c", "Ready").message.contains("overlap"));
    assert_eq!(desired.export().clusters, ["b"]);
    let import = desired.export().import.as_ref().unwrap();
    assert_eq!(import.session_affinity.as_deref(), Some("None"));
}

#[test]
fn a_vip_serves_the_union_of_exported_ports_each_from_the_clusters_that_have_it() {
    let ports = |text: &str| format!("ports: [{text}]");
    let slice_of = |address: &str, ports: &str| {
        slice_with("web", "x", ports, &format!("- {{addresses: [\"{address}\"]}}\n"))
    };
    let desired = World::default()
        .cluster("a", &(front("web", VIP, "") + &export("2026-01-01T00:00:00Z", "")))
        .cluster("a", &slice_of("10.0.0.1", "[{name: http, port: 8080}]"))
        .exporting(
            "b",
            2,
            &ports(
                "{name: http, port: 80}, {name: admin, port: 9090}, {name: dns, port: 53, protocol: UDP}, \
                 {name: sig, port: 2905, protocol: SCTP}",
            ),
        )
        .cluster(
            "b",
            &slice_of(
                "10.1.0.1",
                "[{name: http, port: 8080}, {name: admin, port: 9000}, {name: dns, port: 5353, protocol: UDP}]",
            ),
        )
        .exporting("c", 3, &ports("{name: admin, port: 9090}"))
        .cluster("c", &slice_of("10.2.0.1", "[{name: admin, port: 9000}]"))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080"]);
    assert_eq!(desired.endpoints(tcp(VIP, 9090)), ["b=10.1.0.1:9000", "c=10.2.0.1:9000"]);
    assert_eq!(desired.endpoints(udp(VIP, 53)), ["b=10.1.0.1:5353"]);
    assert_eq!(desired.ids().len(), 3, "SCTP is not forwarded");
    assert_eq!(desired.reasons(), [Reason::ExportConflict; 2], "no cluster needs to have all ports");
    let import = desired.export().import.as_ref().unwrap();
    let expected = [
        port("http", 80, "TCP"),
        port("admin", 9090, "TCP"),
        port("dns", 53, "UDP"),
        port("sig", 2905, "SCTP"),
    ];
    assert_eq!(import.ports, expected);
}

#[test]
fn a_port_that_only_same_named_services_have_stays_closed() {
    let desired = World::default()
        .cluster("a", &front("web", VIP, ""))
        .cluster("b", &backend("ports: [{name: http, port: 80}, {name: admin, port: 9090}]"))
        .merge();
    assert_eq!(desired.ids(), [tcp(VIP, 80)]);
}

#[test]
fn an_exported_port_does_not_take_one_from_a_service_that_shares_the_address() {
    let world = World::default()
        .cluster("a", &(front("web", VIP, "") + &front("zoo", "192.0.2.2", "ports: [{port: 443}]")))
        .exporting("b", 1, "ports: [{name: tls, port: 443}, {name: alt, port: 8443}]");
    let mut problems = Problems::default();
    let members = members::declare(&[], world.clusters.keys(), &mut problems);
    let index = index::build(&world.clusters, &members, &mut problems);
    let own = index::Services::new();
    let mut fronts = fronts::collect(&own, &index, None, &Place::default(), &mut problems);
    let exported = gather(&index, &Vec::new(), &members);
    let vips = ["demo/web", "demo/zoo"].map(|front| (name(front), vec![ip(VIP)])).into();
    open_ports(&exported, &mut fronts, &vips, &mut problems);

    let ports = |front: &str| fronts[&name(front)].ports.iter().map(|port| port.port).collect::<Vec<_>>();
    assert_eq!((ports("demo/web"), ports("demo/zoo")), (vec![80, 8443], vec![443]));
    let problems = problems.sorted();
    assert_eq!(problems.len(), 1);
    assert_eq!(
        (problems[0].reason, problems[0].object.as_str()),
        (Reason::AddressConflict, "Service demo/web")
    );
    assert!(problems[0].message.contains("443/TCP") && problems[0].message.contains("demo/zoo"));
}

#[test]
fn what_is_not_exported_any_more_is_gone() {
    let both = World::default()
        .exporting("a", 1, "sessionAffinity: ClientIP")
        .exporting("b", 2, "")
        .gateway(&member("a", "discovery: ServiceExport"))
        .cluster("b", &(front("api", VIP, "") + &slice("web", "x", &["10.1.0.1"])));
    assert_eq!(both.merge().told("b")[2], (true, "SessionAffinityConflict"));

    let without = |deleted: &[&str]| {
        let mut world = World::default()
            .cluster("a", &backend("sessionAffinity: ClientIP"))
            .cluster("b", &(front("api", VIP, "") + &backend("")));
        for cluster in ["a", "b"] {
            let more = if deleted.contains(&cluster) { "spec: {}" } else { "" };
            let text = export("2026-01-01T00:00:00Z", more);
            // An export on its way out, held by a finalizer, counts no more.
            let text = if more.is_empty() {
                text
            } else {
                text.replace("name: web", "name: web, deletionTimestamp: \"2026-02-01T00:00:00Z\"")
            };
            world = world.cluster(cluster, &text);
        }
        world.merge()
    };
    let one = without(&["a"]);
    assert_eq!(one.export().exports.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(one.export().clusters, ["b"]);
    assert_eq!(one.export().import.as_ref().unwrap().session_affinity.as_deref(), Some("None"));
    assert_eq!(one.told("b")[2], (false, "NoConflicts"));
    assert!(without(&["a", "b"]).exports.is_empty());
}

#[test]
fn an_export_that_is_there_twice_counts_once() {
    let desired = World::default()
        .exporting("a", 1, "")
        .cluster("a", &export("2026-01-02T00:00:00Z", "spec: {exportedLabels: {x: y}}"))
        .merge();
    assert_eq!(desired.reasons(), [Reason::DuplicateObject, Reason::ExportPending]);
    assert!(desired.export().labels.is_empty());
}

#[test]
fn the_front_of_a_udp_service_is_exported_too() {
    let desired = World::default()
        .cluster("a", &front("web", VIP, "ports: [{name: dns, port: 53, protocol: UDP}]"))
        .cluster("a", &export("", ""))
        .merge();
    let id = ServiceId { protocol: Protocol::Udp, ..tcp(VIP, 53) };
    assert_eq!(desired.ids(), [id]);
    assert_eq!(desired.export().import.as_ref().unwrap().ports, [port("dns", 53, "UDP")]);
}
