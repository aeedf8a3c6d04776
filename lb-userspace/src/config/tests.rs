//! Settings from flags and file.

use std::path::Path;
use std::time::Duration;

use clap::Parser;

use super::{
    Echo, GatewayAccess, MemberSelector, Options, Settings, SettingsError, SnatPorts, Source, TableSizes,
    Timeouts, XdpMode, format_duration, load, parse_duration,
};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn flags(line: &str) -> Options {
    Command::try_parse_from(std::iter::once("kanmon").chain(line.split_whitespace()))
        .map(|command| command.options)
        .expect("flags parse")
}

fn flag_error(line: &str) -> String {
    Command::try_parse_from(std::iter::once("kanmon").chain(line.split_whitespace()))
        .err()
        .expect("flags are refused")
        .to_string()
}

fn file(text: &str) -> Result<Options, SettingsError> {
    Options::from_yaml(text, Path::new("kanmon.yaml"))
}

fn settings(line: &str) -> Result<Settings, SettingsError> {
    Settings::try_from(flags(line))
}

#[test]
fn the_shortest_command_line_gets_every_default() {
    let settings = settings("--interface eth0 --manifests /etc/kanmon").unwrap();
    assert_eq!(settings.interfaces, ["eth0"]);
    assert_eq!(settings.source, Source::Manifests("/etc/kanmon".into()));
    assert_eq!(settings.pin_dir, Path::new("/sys/fs/bpf/kanmon"));
    assert_eq!(settings.socket, Path::new("/run/kanmon/kanmon.sock"));
    assert_eq!(settings.state_dir, Path::new("/var/lib/kanmon"));
    assert_eq!((settings.tables.flows, settings.tables.flows_v6), (1_048_576, 65_536));
    assert_eq!(settings.snat_ports, SnatPorts::Auto);
    assert_eq!(settings.xdp_mode, XdpMode::Native);
    assert_eq!(settings.echo, Echo::WhenUsable);
    let seconds = |timeout: Duration| timeout.as_secs();
    let Timeouts { tcp_half_open, tcp_established, tcp_closed, tcp_reset, udp_new, udp_replied } =
        settings.timeouts;
    assert_eq!((seconds(tcp_half_open), seconds(tcp_established), seconds(tcp_closed)), (10, 3600, 60));
    assert_eq!((seconds(tcp_reset), seconds(udp_new), seconds(udp_replied)), (10, 10, 60));
}

#[test]
fn every_flag_has_the_same_name_in_the_file() {
    let by_flags = flags(
        "--interface eth0 --interface eth1 --manifests /m --cluster-set-id prod --region r --zone z \
         --snat-addresses 192.168.0.2,fd00::2 --snat-ports 32768-49151 --pin-dir /p --socket /s \
         --state-dir /d --flows 2000 --flows-v6 1000 --services 10 --backends 20 --members 30 \
         --ring-slots 4000 --tcp-half-open 5s --tcp-established 2h --tcp-closed 30s --tcp-reset 1s \
         --udp-new 500ms --udp-replied 1m30s --drain-timeout 10m --xdp-mode generic --log-level debug \
         --flow-counters 100 --source-ranges 50 --flow-log /l --echo always --refusals-per-second 50 \
         --kubeconfig /k --context c --member-selector a=b --node-name n --secret-namespaces x,y \
         --secret-grace-period 5s --cleanup-timeout 30s --allow-insecure-members",
    );
    let by_file = file(
        "interfaces: [eth0, eth1]\nmanifests: /m\nclusterSetID: prod\nregion: r\nzone: z\n\
         snatAddresses: [192.168.0.2, 'fd00::2']\nsnatPorts: 32768-49151\npinDir: /p\nsocket: /s\n\
         stateDir: /d\nflows: 2000\nflowsV6: 1000\nservices: 10\nbackends: 20\nmembers: 30\n\
         ringSlots: 4000\ntcpHalfOpen: 5s\ntcpEstablished: 2h\ntcpClosed: 30s\ntcpReset: 1s\n\
         udpNew: 500ms\nudpReplied: 1m30s\ndrainTimeout: 10m\nxdpMode: generic\nlogLevel: debug\n\
         flowCounters: 100\nsourceRanges: 50\nflowLog: /l\necho: always\nrefusalsPerSecond: 50\n\
         kubeconfig: /k\ncontext: c\nmemberSelector: a=b\nnodeName: n\nsecretNamespaces: [x, y]\n\
         secretGracePeriod: 5s\ncleanupTimeout: 30s\nallowInsecureMembers: true\n",
    )
    .unwrap();
    assert_eq!(by_flags, by_file);
    assert_eq!(by_flags.clone().or(Options::default()), by_file);
    assert_eq!(Options::default().or(by_file), by_flags);
}

#[test]
fn flags_override_the_file_one_by_one() {
    let merged = flags("--interface eth9 --flows 4096")
        .or(file("interfaces: [eth0]\nmanifests: /m\nflows: 100\nflowsV6: 64\nregion: cn-hangzhou\n")
            .unwrap());
    let settings = Settings::try_from(merged).unwrap();
    assert_eq!(settings.interfaces, ["eth9"]);
    assert_eq!(settings.source, Source::Manifests("/m".into()));
    assert_eq!(settings.tables, TableSizes { flows: 4096, flows_v6: 64, ..TableSizes::default() });
    assert_eq!(settings.region, "cn-hangzhou");
}

#[test]
fn refusals_are_limited_in_ticks_and_can_be_switched_off() {
    let of = |text: &str| flags(&format!("--interface eth0 --manifests /m {text}")).try_into();
    let per_tick = |text: &str| of(text).map(|settings: Settings| settings.refusals_per_tick());
    assert_eq!(per_tick("").unwrap(), 269);
    assert_eq!(per_tick("--refusals-per-second 0").unwrap(), 0);
    assert_eq!(per_tick("--refusals-per-second 1").unwrap(), 1);
    assert_eq!(per_tick("--refusals-per-second 100000").unwrap(), 26_844);
    let error = per_tick("--refusals-per-second 100001").unwrap_err().to_string();
    assert_eq!(error, "refusalsPerSecond: 100001 is not within 0 to 100000");
}

#[test]
fn a_bad_file_is_named_with_line_and_column() {
    for (text, line, column, what) in [
        ("interfaces: [eth0]\npindir: /p\n", 2, 1, "pindir"),
        ("interfaces: [eth0]\nflows: many\n", 2, 8, "invalid u32"),
        ("region: r\ntcpClosed: 1d\n", 2, 12, "1d"),
        ("region: r\nsnatPorts: 5-6\n", 2, 12, "ports"),
        ("region: [\n", 1, 9, ""),
        ("flows: 1\nflows: 2\n", 2, 1, "flows"),
    ] {
        match file(text) {
            Err(SettingsError::File { line: at_line, column: at_column, what: message, .. }) => {
                assert_eq!((at_line, at_column), (line, column), "{text:?}: {message}");
                assert!(message.contains(what), "{text:?}: {message}");
                assert!(!message.contains(" at line "), "{text:?}: {message}");
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }
}

#[test]
fn an_empty_file_sets_nothing() {
    for text in ["", "\n", "# nothing\n\n"] {
        assert_eq!(file(text).unwrap(), Options::default());
    }
}

#[test]
fn the_file_that_the_flags_name_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kanmon.yaml");
    std::fs::write(&path, "interfaces: [eth0]\nmanifests: /m\n").unwrap();
    let loaded = load(flags(&format!("--config {} --zone a", path.display()))).unwrap();
    assert_eq!((loaded.interfaces.as_slice(), loaded.zone.as_str()), (&["eth0".to_owned()][..], "a"));

    let missing = load(flags("--config /nonexistent/kanmon.yaml")).unwrap_err().to_string();
    assert!(missing.contains("/nonexistent/kanmon.yaml"), "{missing}");
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    for (line, expected) in [
        ("--manifests /m", "interfaces is not set"),
        ("--interface eth0", "manifests is not set"),
        ("--interface eth0 --interface eth0 --manifests /m", "eth0 is named twice"),
        ("--interface averylonginterfacename --manifests /m", "cannot be an interface's name"),
        ("--interface a/b --manifests /m", "cannot be an interface's name"),
        (
            "--interface eth0 --manifests /m --tcp-established 5h",
            "tcpEstablished: 5h is not within 269ms to 3h",
        ),
        ("--interface eth0 --manifests /m --udp-new 0", "udpNew: 0s"),
        ("--interface eth0 --manifests /m --flows 1", "flows: 1 is not within 64 to 134217728"),
        ("--interface eth0 --manifests /m --flows 100 --flows-v6 101", "flowsV6: 101"),
        ("--interface eth0 --manifests /m --members 1048576", "members: 1048576 is not within 1 to 1048575"),
        ("--interface eth0 --manifests /m --snat-addresses 127.0.0.1", "snatAddresses: 127.0.0.1"),
        ("--interface eth0 --manifests /m --snat-addresses fd00::1,fd00::1", "fd00::1 is named twice"),
        (
            "--interface eth0 --manifests /m \
             --snat-addresses 10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5,10.0.0.6,10.0.0.7,10.0.0.8,10.0.0.9",
            "at most 8",
        ),
        ("--interface eth0 --manifests /m --region a/b", "region: \"a/b\""),
        ("--interface eth0 --manifests /m --kubeconfig /k", "kubeconfig: manifests is set too"),
        ("--interface eth0 --manifests /m --member-selector a", "memberSelector: is for Kubernetes only"),
        ("--interface eth0 --kubeconfig /k --secret-namespaces a,a", "secretNamespaces: a is named twice"),
        ("--interface eth0 --kubeconfig /k --secret-namespaces A", "\"A\" cannot be a namespace's name"),
    ] {
        let message = settings(line).expect_err(line).to_string();
        assert!(message.contains(expected), "{line}: {message}");
    }
}

#[test]
fn a_kubeconfig_chooses_kubernetes_with_its_defaults() {
    let settings = settings("--interface eth0 --kubeconfig /k --context c").unwrap();
    let Source::Kubernetes(kubernetes) = settings.source else { panic!("{settings:?}") };
    let expected = GatewayAccess::Kubeconfig { path: "/k".into(), context: Some("c".into()) };
    assert_eq!(kubernetes.access, expected);
    assert_eq!(kubernetes.member_selector, MemberSelector::default());
    assert_eq!(kubernetes.secret_namespaces, ["kanmon-system", "istio-system"]);
    assert_eq!(kubernetes.secret_grace_period, Duration::from_secs(60));
    assert!(!kubernetes.allow_insecure_members);
}

#[test]
fn in_a_pod_nothing_needs_to_be_said_about_the_cluster_and_what_is_said_counts() {
    let in_cluster = |line| Settings::try_from(Options { in_cluster: true, ..flags(line) });
    let Source::Kubernetes(kubernetes) = in_cluster("--interface eth0").unwrap().source else { panic!() };
    assert_eq!(kubernetes.access, GatewayAccess::InCluster);
    let directory = in_cluster("--interface eth0 --manifests /m").unwrap();
    assert_eq!(directory.source, Source::Manifests("/m".into()));
    let message = in_cluster("--interface eth0 --context c").unwrap_err().to_string();
    assert!(message.contains("context: is of no use"), "{message}");
}

#[test]
fn a_small_flow_table_lowers_the_default_of_its_ipv6_part() {
    let settings = settings("--interface eth0 --manifests /m --flows 1000").unwrap();
    assert_eq!(settings.tables.flows_v6, 1000);
}

#[test]
fn port_ranges_are_checked() {
    for (text, expected) in [
        ("1-100", "below 1024"),
        ("2000-2062", "63 ports"),
        ("2000-1000", "0 ports"),
        ("10000-26384", "16385 ports"),
        ("10000", "is not a port range"),
        ("10000-70000", "is not a port range"),
    ] {
        let message = text.parse::<SnatPorts>().expect_err(text);
        assert!(message.contains(expected), "{text}: {message}");
        assert!(flag_error(&format!("--snat-ports {text}")).contains(expected));
    }
    for text in ["2000-2063", "10000-26383", "49152-65535", "auto"] {
        assert_eq!(text.parse::<SnatPorts>().unwrap().to_string(), text);
    }
}

#[test]
fn durations_read_as_go_writes_them() {
    for (text, millis) in [
        ("500ms", 500),
        ("10s", 10_000),
        ("1m30s", 90_000),
        ("1.5h", 5_400_000),
        ("1h0m1s", 3_601_000),
        ("0", 0),
    ] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    assert_eq!(parse_duration("250us"), Ok(Duration::from_micros(250)));
    for text in ["", "5", "s", "1d", "-1s", "1 s", "1..5s", "1s2", "99999999999999999999h", "é"] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
}

#[test]
fn durations_are_written_as_they_are_read() {
    for text in ["0s", "300ms", "1s500ms", "10s", "1m", "1m30s", "1h", "3h59m59s"] {
        assert_eq!(format_duration(parse_duration(text).unwrap()), text);
    }
}

#[test]
fn timeouts_become_ticks_of_the_packet_program() {
    let ticks = Timeouts::default().to_abi();
    // 10 s / 268.4 ms = 37.3, 3600 s = 13,411.05, 60 s = 223.5; rounded up.
    assert_eq!((ticks.half_open, ticks.established, ticks.closed), (38, 13_412, 224));
    assert_eq!((ticks.reset, ticks.udp_new, ticks.udp_replied), (38, 38, 224));
}
