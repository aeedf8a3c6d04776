//! Specs in, refusals out: by the CEL rules as an API server has them, and by our own check, which must say the same.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::super::super::crds::tests::refusals;
use super::{LoadBalancingPolicy, LoadBalancingPolicySpec};

/// A spec with these fields beside a target.
fn spec(fields: &Value) -> Value {
    let mut spec = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "web"}]});
    for (key, value) in fields.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

fn errors(spec: &Value) -> Vec<String> {
    serde_json::from_value::<LoadBalancingPolicySpec>(spec.clone()).unwrap().errors()
}

/// Both say this, and nothing else.
fn assert_refused(fields: &Value, at: &str, message: &str) {
    let spec = spec(fields);
    assert_eq!(errors(&spec), [format!("spec{at}: {message}")], "{spec}");
    assert_eq!(refusals(&LoadBalancingPolicy::crd(), &spec), [message], "{spec}");
}

/// Our own check says this; an API server has limits or a pattern in the schema for it.
fn assert_beyond_limits(fields: &Value, at: &str, message: &str) {
    let spec = spec(fields);
    assert_eq!(errors(&spec), [format!("spec{at}: {message}")], "{spec}");
}

fn failover(entries: &Value) -> Value {
    json!({"locality": {"failover": entries}})
}

fn distribute(to: &Value) -> Value {
    json!({"locality": {"distribute": [{"from": "r1", "to": to}]}})
}

#[test]
fn what_makes_sense_is_taken() {
    let pem = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n";
    for fields in [
        json!({}),
        failover(&json!([{"from": "r1", "to": ["r2", "r3/z"]}, {"from": "r1/a", "to": ["r1/b", "r1"]}])),
        failover(&json!([{"from": "r1", "to": ["r10"]}])),
        distribute(&json!([{"region": "r1", "weight": 90}, {"region": "r2", "weight": 10}])),
        distribute(
            &json!([{"region": "r1", "zone": "a", "weight": 1}, {"region": "r1", "zone": "b", "weight": 99}]),
        ),
        json!({"locality": {"distribute": [{"from": "r1", "to": [{"region": "r1", "weight": 100}]}]},
            "zonePreference": "None"}),
        json!({"zonePreference": "Strict", "locality": {"overprovisioningPercent": 100, "failbackDelay": "0s"}}),
        json!({"healthCheck": {"type": "HTTPS", "path": "/healthz?full=1", "host": "web.example", "port": 8443,
            "expectedStatuses": "200-204", "caCertificate": pem, "interval": "250ms", "timeout": "250ms"}}),
        json!({"healthCheck": {"type": "GRPC", "service": "shop.Cart", "host": "web.shop"}}),
        json!({"healthCheck": {"type": "None"}}),
        json!({"healthCheck": {"interval": "100ms"}}),
        json!({"outlierDetection": {"consecutiveErrors": 1, "interval": "1s", "baseEjectionTime": "1m"}}),
        json!({"outlierDetection": {"baseEjectionTime": "10m"}}),
        json!({"drainTimeout": "1h30m", "slowStart": "30s", "retryOnReset": false, "newFlowLimit": 1000, "newFlowLimitPrefix": {"ipv4": 24, "ipv6": 56},
            "flowLog": {"counters": true, "sampleOneIn": 100}}),
        json!({"clusterSelector": {"matchLabels": {"location": "r1"}}}),
    ] {
        let spec = spec(&fields);
        assert_eq!(errors(&spec), Vec::<String>::new(), "{spec}");
        assert_eq!(refusals(&LoadBalancingPolicy::crd(), &spec), Vec::<String>::new(), "{spec}");
    }
}

#[test]
fn only_services_are_targets() {
    for target in [
        json!({"group": "apps", "kind": "Service", "name": "web"}),
        json!({"kind": "Deployment", "name": "web"}),
    ] {
        let message = "only Services can be targets: say `group: \"\"` and `kind: Service`";
        assert_refused(&json!({"targetRefs": [target]}), ".targetRefs[0]", message);
    }
    assert_beyond_limits(&json!({"targetRefs": []}), ".targetRefs", "must have 1 to 16 items");
    let twice = json!([{"kind": "Service", "name": "web"}, {"group": "", "kind": "Service", "name": "web"}]);
    assert_beyond_limits(&json!({"targetRefs": twice}), ".targetRefs", "each target can be there once");
    let target = json!([{"kind": "Service", "name": "demo/web"}]);
    let message = "\"demo/web\" is not the name of a Service";
    assert_beyond_limits(&json!({"targetRefs": target}), ".targetRefs[0].name", message);
}

#[test]
fn a_locality_goes_one_way() {
    let both = json!({"locality": {"failover": [{"from": "r1", "to": ["r2"]}],
        "distribute": [{"from": "r1", "to": [{"region": "r1", "weight": 100}]}]}});
    assert_refused(&both, ".locality", "failover and distribute exclude each other; remove one of them");
    let mut zones = distribute(&json!([{"region": "r1", "weight": 100}]));
    zones["zonePreference"] = json!("Prefer");
    let message =
        "zonePreference and locality.distribute exclude each other: the shares say what each zone gets";
    assert_refused(&zones, "", message);
}

#[test]
fn a_failover_leads_elsewhere() {
    let message = "`from` and its zones must not be in `to`: what is there goes first by itself";
    for to in [json!(["r2", "r1"]), json!(["r1/a"])] {
        assert_refused(&failover(&json!([{"from": "r1", "to": to}])), ".locality.failover[0]", message);
    }
    let twice = json!([{"from": "r1", "to": ["r2"]}, {"from": "r1", "to": ["r3"]}]);
    let message = "each `from` can be there once; put all of its places into one `to`";
    assert_refused(&failover(&twice), ".locality.failover", message);
    let twice = failover(&json!([{"from": "r1", "to": ["r2", "r2"]}]));
    assert_beyond_limits(&twice, ".locality.failover[0].to", "each place can be there once");
    let nowhere = failover(&json!([{"from": "r1", "to": []}]));
    assert_beyond_limits(&nowhere, ".locality.failover[0].to", "must have 1 to 16 items");
    for place in ["", "/a", "r1/", "r1/a/b", "-r", "r 1"] {
        let message = format!("{place:?} is not a place; write a region, or region/zone");
        let fields = failover(&json!([{"from": "r9", "to": [place]}]));
        assert_beyond_limits(&fields, ".locality.failover[0].to[0]", &message);
    }
}

#[test]
fn shares_are_percents_of_places_that_do_not_overlap() {
    let at = ".locality.distribute[0].to";
    for weights in [[90, 9], [90, 11]] {
        let [r1, r2] = weights;
        let fields = distribute(&json!([{"region": "r1", "weight": r1}, {"region": "r2", "weight": r2}]));
        assert_refused(&fields, at, "the weights must sum to 100");
    }
    let message = "the places must not overlap: name each zone once, and a whole region only where none of its zones is named";
    for (first, second) in [
        (json!({"region": "r1", "weight": 50}), json!({"region": "r1", "weight": 50})),
        (json!({"region": "r1", "weight": 50}), json!({"region": "r1", "zone": "a", "weight": 50})),
        (
            json!({"region": "r1", "zone": "a", "weight": 50}),
            json!({"region": "r1", "zone": "a", "weight": 50}),
        ),
    ] {
        assert_refused(&distribute(&json!([first, second])), at, message);
    }
    let zero = distribute(&json!([{"region": "r1", "weight": 100}, {"region": "r2", "weight": 0}]));
    assert_beyond_limits(&zero, ".locality.distribute[0].to[1].weight", "must be 1 to 100");
    let whole = json!([{"region": "r1", "weight": 100}]);
    let twice =
        json!({"locality": {"distribute": [{"from": "r1", "to": whole}, {"from": "r1", "to": whole}]}});
    let message = "each `from` can be there once; put all of its places into one `to`";
    assert_refused(&twice, ".locality.distribute", message);
}

#[test]
fn a_health_check_has_the_fields_of_its_type() {
    let pem = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----";
    for (check, message) in [
        (json!({"path": "/"}), "path and expectedStatuses need type HTTP or HTTPS"),
        (
            json!({"type": "GRPC", "expectedStatuses": "200"}),
            "path and expectedStatuses need type HTTP or HTTPS",
        ),
        (json!({"type": "TCP", "host": "x"}), "host needs type HTTP, HTTPS or GRPC"),
        (json!({"type": "HTTP", "caCertificate": pem}), "caCertificate needs type HTTPS"),
        (json!({"type": "HTTPS", "service": "x"}), "service needs type GRPC"),
        (
            json!({"timeout": "6s"}),
            "timeout must not be longer than interval, which is 5s unless said otherwise",
        ),
        (
            json!({"interval": "500ms", "timeout": "501ms"}),
            "timeout must not be longer than interval, which is 5s unless said otherwise",
        ),
    ] {
        assert_refused(&json!({"healthCheck": check}), ".healthCheck", message);
    }
    for (field, value, message) in [
        ("expectedStatuses", "399-200", "the range must begin with its lowest status"),
        (
            "caCertificate",
            "MIIB",
            "must be a certificate in PEM: -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----",
        ),
        ("interval", "99ms", "must be 100ms to 1h"),
        ("interval", "61m", "must be 100ms to 1h"),
        ("timeout", "9ms", "must be 10ms to 1h"),
    ] {
        let check = json!({"type": "HTTPS", field: value});
        assert_refused(&json!({"healthCheck": check}), &format!(".healthCheck.{field}"), message);
    }
    for (field, value, message) in [
        (
            "expectedStatuses",
            json!("2xx"),
            "\"2xx\" is not a range of HTTP statuses; write it like 200-399 or \"204\"",
        ),
        (
            "expectedStatuses",
            json!("600"),
            "\"600\" is not a range of HTTP statuses; write it like 200-399 or \"204\"",
        ),
        ("path", json!("healthz"), "\"healthz\" is not a path; it begins with / and is percent-encoded"),
        ("path", json!("/a b"), "\"/a b\" is not a path; it begins with / and is percent-encoded"),
        ("host", json!("a:80"), "\"a:80\" is not a DNS name"),
        ("port", json!(0), "must be 1 to 65535"),
        ("unhealthyThreshold", json!(0), "must be 1 to 100"),
        ("healthyThreshold", json!(101), "must be 1 to 100"),
    ] {
        let check = json!({"type": "HTTP", field: value});
        assert_beyond_limits(&json!({"healthCheck": check}), &format!(".healthCheck.{field}"), message);
    }
}

#[test]
fn durations_are_those_of_api_servers_and_within_limits() {
    for text in ["1d", "5", "1.5h", "-1s", "", "s", "100000s", "1h1h1h1h1h", "1µs"] {
        let message = format!("{text:?} is not a duration; write it like 500ms, 10s or 1m30s");
        assert_beyond_limits(&json!({"drainTimeout": text}), ".drainTimeout", &message);
    }
    assert_refused(&json!({"drainTimeout": "25h"}), ".drainTimeout", "must be 24h at most");
    assert_refused(&json!({"slowStart": "1h1s"}), ".slowStart", "must be 1h at most");
    let delay = json!({"locality": {"failbackDelay": "1441m"}});
    assert_refused(&delay, ".locality.failbackDelay", "must be 24h at most");
}

#[test]
fn an_ejection_is_no_longer_than_the_longest() {
    let message =
        "baseEjectionTime, which is 30s unless said otherwise, must not be longer than maxEjectionTime";
    for detection in
        [json!({"maxEjectionTime": "29s"}), json!({"baseEjectionTime": "2m", "maxEjectionTime": "1m"})]
    {
        assert_refused(&json!({"outlierDetection": detection}), ".outlierDetection", message);
    }
    for (field, value, message) in
        [("baseEjectionTime", "99ms", "must be 100ms to 24h"), ("interval", "2h", "must be 100ms to 1h")]
    {
        assert_refused(
            &json!({"outlierDetection": {field: value}}),
            &format!(".outlierDetection.{field}"),
            message,
        );
    }
    for (field, value, message) in
        [("consecutiveErrors", 0, "must be 1 to 1000"), ("maxEjectionPercent", 101, "must be 0 to 100")]
    {
        let detection = json!({"outlierDetection": {field: value}});
        assert_beyond_limits(&detection, &format!(".outlierDetection.{field}"), message);
    }
}

#[test]
fn numbers_and_selectors_have_their_limits() {
    for (fields, at, message) in [
        (json!({"newFlowLimit": 0}), ".newFlowLimit", "must be 1 to 100000000"),
        (
            json!({"newFlowLimit": 1, "newFlowLimitPrefix": {"ipv4": 33}}),
            ".newFlowLimitPrefix.ipv4",
            "must be 1 to 32",
        ),
        (
            json!({"newFlowLimit": 1, "newFlowLimitPrefix": {"ipv6": 0}}),
            ".newFlowLimitPrefix.ipv6",
            "must be 1 to 128",
        ),
        (json!({"flowLog": {"sampleOneIn": 0}}), ".flowLog.sampleOneIn", "must be 1 to 1000000"),
        (
            json!({"locality": {"overprovisioningPercent": 99}}),
            ".locality.overprovisioningPercent",
            "must be 100 to 1000",
        ),
    ] {
        assert_beyond_limits(&fields, at, message);
    }
    let prefix = json!({"newFlowLimitPrefix": {"ipv4": 24}});
    assert_refused(&prefix, "", "newFlowLimitPrefix needs newFlowLimit");
    let selector = json!({"matchExpressions": [{"key": "a", "operator": "In"}]});
    let message = "In and NotIn need values, Exists and DoesNotExist have none";
    assert_refused(&json!({"clusterSelector": selector}), ".clusterSelector.matchExpressions[0]", message);
}
