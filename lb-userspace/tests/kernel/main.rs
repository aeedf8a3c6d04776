//! The kernel side against the running kernel: load, pin, attach, adopt, refuse, clean up. Needs root.

mod bed;
mod traffic;

use std::fs;
use std::sync::Arc;

use bed::{Bed, FAR, NEAR, settings, sizes};
use lb_common::abi::{
    ABI_VERSION, Backend, BackendKeyV4, BackendKeyV6, ClientWord, Member, RingWord, ServiceDescriptor,
    ServiceKeyV4, ServiceKeyV6, VipKeyV4, VipKeyV6, member_flags,
};
use lb_common::datapath::Cells;
use lb_userspace::bpf::{
    Applied, AttachError, AttachedMode, Kernel, LoadError, Settings, SettingsError, TableSizes, XdpMode,
    cleanup,
};
use lb_userspace::plan::{BackendKey, ServiceKey, SourceKey, Step, VipKey};

fn near() -> Vec<String> {
    vec![NEAR.to_owned()]
}

fn apply(kernel: &mut Kernel, steps: &[Step]) {
    for step in steps {
        assert_eq!(kernel.apply(step).expect("the step is applied"), Applied::Done, "{step:?}");
    }
}

#[test]
fn the_program_is_attached_natively_and_everything_is_pinned() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        assert!(!kernel.adopted());
        let attachments = kernel.attach(&near(), XdpMode::Auto).expect("attached");
        assert_eq!(attachments.len(), 1);
        assert_eq!(attachments[0].mode, AttachedMode::Native);
        assert_eq!(attachments[0].ifindex, bed::index(NEAR));
        assert!(!attachments[0].adopted);
        assert!(bed.program_on(NEAR).is_some());
        let tree = bed.tree();
        let link = format!("links/{}-{NEAR}", bed::index(NEAR));
        for name in ["maps/FLOWS", "maps/CONFIG", "maps/EVENTS", "maps/SERVICES_V6", &link] {
            let pin = format!("kanmon/v{ABI_VERSION}/{name}");
            assert!(tree.contains(&pin), "{pin} is missing in {tree:?}");
        }
        drop(kernel);
        assert!(bed.program_on(NEAR).is_some(), "it forwards on without an agent");
    });
}

#[test]
fn vlan_offload_is_switched_off_and_said_so() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        let first = kernel.attach(&near(), XdpMode::Auto).expect("attached");
        assert!(first[0].notes.iter().any(|note| note.contains("rx-vlan-offload")), "{:?}", first[0].notes);
        let second = kernel.attach(&near(), XdpMode::Auto).expect("attached again");
        assert!(second[0].notes.is_empty(), "it is off already: {:?}", second[0].notes);
    });
}

#[test]
fn a_new_agent_adopts_maps_links_and_keys_and_swaps_the_program() {
    Bed::run(|bed| {
        let mut first = bed.kernel();
        first.attach(&near(), XdpMode::Auto).expect("attached");
        let key = ServiceKey::V4(ServiceKeyV4 { vip: [198, 51, 100, 1], port: [0, 80], protocol: 6, pad: 0 });
        apply(&mut first, &[Step::PutService { key, index: 3 }]);
        let memory = first.memory();
        memory.flows.get(7).expect("a bucket").store(0, 0x1234_5678);
        let flow_key = first.config().flow_key;
        let snapshot = first.snapshot().expect("readable");
        let program = bed.program_on(NEAR).expect("a program");
        drop(first);

        let mut second = bed.kernel();
        assert!(second.adopted());
        assert_eq!(second.config().flow_key, flow_key);
        assert_eq!(second.memory().flows.get(7).expect("a bucket").load(0), 0x1234_5678);
        assert_eq!(second.snapshot().expect("readable"), snapshot);
        assert_eq!(bed.program_on(NEAR), Some(program), "nothing changes before the new agent is ready");
        let attachments = second.attach(&near(), XdpMode::Auto).expect("attached");
        assert!(attachments[0].adopted);
        assert_ne!(bed.program_on(NEAR), Some(program));
        second.memory().flows.get(7).expect("a bucket").store(0, 0x9abc);
        assert_eq!(memory.flows.get(7).expect("a bucket").load(0), 0x9abc, "both see the same memory");
        let arrays = bed.tree().iter().filter(|path| path.contains("/programs/")).count();
        assert_eq!(arrays, 1, "the old program's array is gone");
    });
}

#[test]
fn maps_of_other_sizes_are_refused_with_the_command_that_clears_them() {
    Bed::run(|bed| {
        drop(bed.kernel());
        let before = bed.tree();
        let larger = TableSizes { members: 128, ..sizes() };
        let error = bed.load(larger).expect_err("other sizes");
        assert!(matches!(error, LoadError::Mismatch { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("MEMBERS"), "{message}");
        assert!(message.contains("65") && message.contains("129"), "{message}");
        assert!(message.contains(&format!("kanmon cleanup --pin-dir {}", bed.pins().display())), "{message}");
        assert_eq!(bed.tree(), before, "what was there stays");
    });
}

#[test]
fn pins_of_another_abi_version_are_refused() {
    Bed::run(|bed| {
        fs::create_dir_all(bed.pins().join("v99/maps")).expect("a directory");
        let message = bed.load(sizes()).expect_err("another version").to_string();
        assert!(message.contains("ABI 99") && message.contains("kanmon cleanup"), "{message}");
        cleanup(&bed.pins(), &bed.lock(&bed.pins())).expect("the command it names helps");
        bed.kernel();
    });
}

#[test]
fn somebody_elses_program_is_refused_and_left_alone() {
    Bed::run(|bed| {
        let other_pins = bed.bpf_fs().join("other");
        let mut other = Kernel::load(&other_pins, sizes(), bed.lock(&other_pins)).expect("loaded");
        other.attach(&near(), XdpMode::Auto).expect("attached");
        let program = bed.program_on(NEAR);

        let mut kernel = bed.kernel();
        let error =
            kernel.attach(&[FAR.to_owned(), NEAR.to_owned()], XdpMode::Auto).expect_err("it is taken");
        assert!(matches!(&error, AttachError::Foreign { interface, .. } if interface == NEAR), "{error}");
        assert!(error.to_string().contains("name kanmon"), "it names the program: {error}");
        assert_eq!(bed.program_on(NEAR), program);
        assert_eq!(bed.program_on(FAR), None, "nothing is attached when one interface is refused");
    });
}

#[test]
fn a_second_agent_is_refused() {
    Bed::run(|bed| {
        let kernel = bed.kernel();
        let locks = bed.bpf_fs().parent().expect("a parent").join("locks");
        let error = lb_userspace::bpf::AgentLock::acquire(&locks, &bed.pins()).expect_err("it is held");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(kernel);
        bed.lock(&bed.pins());
    });
}

#[test]
fn an_unknown_interface_is_answered_with_those_that_exist() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        let error = kernel.attach(&["eth9".to_owned()], XdpMode::Auto).expect_err("no such interface");
        let message = error.to_string();
        assert!(message.contains("eth9"), "{message}");
        assert!(message.contains(NEAR) && message.contains(FAR), "{message}");
    });
}

#[test]
fn cleanup_leaves_nothing() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        kernel.attach(&[NEAR.to_owned(), FAR.to_owned()], XdpMode::Auto).expect("attached");
        let memory = kernel.memory();
        drop(kernel);
        let removed = cleanup(&bed.pins(), &bed.lock(&bed.pins())).expect("cleaned up");
        let mut detached = removed.links;
        detached.sort();
        assert_eq!(detached, [FAR, NEAR]);
        assert_eq!(removed.pins.len(), sizes().maps().len() + 1, "all maps and a program array");
        assert_eq!(bed.tree(), Vec::<String>::new());
        assert_eq!((bed.program_on(NEAR), bed.program_on(FAR)), (None, None));
        assert!(memory.flows.get(0).is_some(), "memory that is still mapped stays usable");
        let nothing = cleanup(&bed.pins(), &bed.lock(&bed.pins())).expect("nothing to do");
        assert!(nothing.is_empty());
    });
}

#[test]
fn an_agent_that_is_interrupted_takes_everything_with_it() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        kernel.attach(&near(), XdpMode::Auto).expect("attached");
        let removed = kernel.remove().expect("removed");
        assert_eq!(removed.links, [NEAR]);
        assert_eq!(bed.tree(), Vec::<String>::new());
        assert_eq!(bed.program_on(NEAR), None);
    });
}

#[test]
fn a_driver_that_refuses_is_quoted_and_auto_falls_back_with_a_warning() {
    Bed::run(|bed| {
        // veth takes no native program whose peer may send frames larger than a page.
        bed.set_mtu(FAR, 9000);
        let mut kernel = bed.kernel();
        let error = kernel.attach(&near(), XdpMode::Native).expect_err("the driver refuses");
        let message = error.to_string();
        assert!(message.contains("driver veth"), "{message}");
        assert!(message.contains("Peer MTU is too large"), "the driver's own words: {message}");
        assert_eq!(bed.program_on(NEAR), None);

        let attachments = kernel.attach(&near(), XdpMode::Auto).expect("generic");
        assert_eq!(attachments[0].mode, AttachedMode::Generic);
        assert!(
            attachments[0].notes.iter().any(|note| note.contains("Peer MTU") && note.contains("generic")),
            "{:?}",
            attachments[0].notes
        );
    });
}

#[test]
fn a_change_of_mode_replaces_the_attachment() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        let generic = kernel.attach(&near(), XdpMode::Generic).expect("attached");
        assert_eq!(generic[0].mode, AttachedMode::Generic);
        let native = kernel.attach(&near(), XdpMode::Native).expect("attached");
        assert_eq!((native[0].mode, native[0].adopted), (AttachedMode::Native, false));
        let auto = kernel.attach(&near(), XdpMode::Auto).expect("attached");
        assert_eq!((auto[0].mode, auto[0].adopted), (AttachedMode::Native, true));
    });
}

#[test]
fn interfaces_that_are_no_longer_named_or_gone_are_let_go() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        kernel.attach(&[NEAR.to_owned(), FAR.to_owned()], XdpMode::Auto).expect("attached");
        kernel.attach(&near(), XdpMode::Auto).expect("attached");
        assert_eq!(bed.program_on(FAR), None);
        bed.remove_veth();
        bed.make_veth();
        let attachments = kernel.attach(&near(), XdpMode::Auto).expect("attached to the new interface");
        assert!(!attachments[0].adopted);
        assert!(bed.program_on(NEAR).is_some());
    });
}

#[test]
fn settings_that_would_break_live_flows_are_refused_after_adoption() {
    Bed::run(|bed| {
        drop(bed.kernel());
        let mut kernel = bed.load(sizes()).expect("adopted");
        let other = Settings { port_base: 40_000, ..settings() };
        assert!(matches!(kernel.configure(&other), Err(SettingsError::PortsChanged { .. })));
        let other = Settings { snat_addresses: Vec::new(), ..settings() };
        assert!(matches!(kernel.configure(&other), Err(SettingsError::AddressRemoved(_))));
        kernel.configure(&settings()).expect("the same settings");
    });
}

#[test]
fn a_snapshot_holds_what_the_steps_wrote() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        let service_v4 =
            ServiceKey::V4(ServiceKeyV4 { vip: [198, 51, 100, 1], port: [0, 80], protocol: 6, pad: 0 });
        let service_v6 = ServiceKey::V6(ServiceKeyV6 { vip: [7; 16], port: [0, 53], protocol: 17, pad: 0 });
        let vip_v4 = VipKey::V4(VipKeyV4 { vip: [198, 51, 100, 1] });
        let vip_v6 = VipKey::V6(VipKeyV6 { vip: [7; 16] });
        let backend_v4 =
            BackendKey::V4(BackendKeyV4 { address: [10, 0, 0, 1], port: [31, 144], protocol: 6, pad: 0 });
        let backend_v6 =
            BackendKey::V6(BackendKeyV6 { address: [8; 16], port: [31, 144], protocol: 17, pad: 0 });
        let backend = Backend { flags: 1, address: [10; 16], port: [31, 144], ..Backend::default() };
        let member = Member {
            address: [10; 16],
            backend: 2,
            generation: 1,
            flags: member_flags::VALID,
            port: [31, 144],
            ..Member::default()
        };
        let mut descriptor: ServiceDescriptor = bytemuck::Zeroable::zeroed();
        descriptor.vip = [9; 16];
        let ring = RingWord::new(16, 0, 1);
        let slots: Arc<[u32]> = (0..251).map(|slot| slot % 3 + 1).collect();
        apply(
            &mut kernel,
            &[
                Step::InitBackend { index: 2, value: backend },
                Step::PutBackendKey { key: backend_v4, index: 2 },
                Step::PutBackendKey { key: backend_v6, index: 3 },
                Step::ResetMemberStats { index: 5 },
                Step::WriteMember { index: 5, value: member },
                Step::WriteRing { offset: 16, slots: Arc::clone(&slots) },
                Step::WriteDescriptor { index: 4, value: descriptor },
                Step::SwapRing { index: 4, ring },
                Step::PutService { key: service_v4, index: 4 },
                Step::PutService { key: service_v6, index: 6 },
                Step::PutVip { key: vip_v4, flags: 0 },
                Step::PutVip { key: vip_v6, flags: 1 },
                Step::SetAddressFilter { index: 77, flags: 3 },
                Step::AddEgress { ifindex: bed::index(NEAR) },
            ],
        );
        let source = |range: &str| SourceKey::new(4, &range.parse().expect("a network"));
        let [v4, v4_within, v6, gone] =
            ["198.51.0.0/16", "198.51.100.0/24", "2001:db8::/32", "198.51.0.0/17"].map(source);
        apply(
            &mut kernel,
            &[
                Step::PutSource { key: v4 },
                Step::PutSource { key: v4_within },
                Step::PutSource { key: gone },
                Step::PutSource { key: v6 },
                Step::SetClients { index: 4, clients: ClientWord::new(true, 0) },
                Step::DeleteSource { key: gone },
                Step::DeleteSource { key: gone },
            ],
        );
        let next_hop = Member {
            destination_mac: [1, 2, 3, 4, 5, 6],
            ifindex: 9,
            mtu: 1500,
            flags: member_flags::VALID | member_flags::NEXT_HOP,
            ..member
        };
        apply(
            &mut kernel,
            &[
                Step::UpdateNextHop { index: 5, value: next_hop },
                Step::SetBackendFlags { index: 2, flags: 0 },
                Step::DeleteService { key: service_v6 },
                Step::DeleteBackendKey { key: backend_v6 },
                Step::DeleteVip { key: vip_v6 },
                Step::DeleteVip { key: vip_v6 },
            ],
        );
        let snapshot = kernel.snapshot().expect("readable");
        assert_eq!(snapshot.services.into_iter().collect::<Vec<_>>(), [(service_v4, 4)]);
        assert_eq!(snapshot.vips.into_iter().collect::<Vec<_>>(), [(vip_v4, 0)]);
        assert_eq!(snapshot.backend_keys.into_iter().collect::<Vec<_>>(), [(backend_v4, 2)]);
        assert_eq!(snapshot.backends[&2], Backend { flags: 0, ..backend });
        assert_eq!(snapshot.members[&5], next_hop);
        let clients = ClientWord::new(true, 0).0;
        assert_eq!(snapshot.descriptors[&4], ServiceDescriptor { ring: ring.0, clients, ..descriptor });
        assert_eq!(snapshot.sources, [v4, v4_within, v6].into());
        assert_eq!(snapshot.rings[&ring.0], slots);
        assert_eq!(snapshot.address_filter[&77], 3);
        assert_eq!(snapshot.egress.into_iter().collect::<Vec<_>>(), [bed::index(NEAR)]);
        let flags = member_flags::VALID | member_flags::DRAINING;
        apply(
            &mut kernel,
            &[Step::SetMemberFlags { index: 5, flags }, Step::RemoveEgress { ifindex: bed::index(NEAR) }],
        );
        let snapshot = kernel.snapshot().expect("readable");
        assert_eq!(snapshot.members[&5], Member { flags, ..next_hop });
        assert!(snapshot.egress.is_empty());
    });
}

#[test]
fn steps_beyond_the_tables_are_errors_and_waits_are_handed_back() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        for step in [
            Step::WriteMember { index: 65, value: Member::default() },
            Step::SetMemberFlags { index: 65, flags: 0 },
            Step::SetBackendFlags { index: 65, flags: 0 },
            Step::WriteRing { offset: 2048, slots: Arc::from([1, 2]) },
            Step::SwapRing { index: 65, ring: RingWord::NONE },
            Step::SetAddressFilter { index: 1024, flags: 1 },
            Step::ResetMemberStats { index: 65 },
        ] {
            let error = kernel.apply(&step).expect_err("beyond the table");
            assert!(error.to_string().contains("has no element"), "{step:?}: {error}");
        }
        assert_eq!(kernel.apply(&Step::GracePeriod).expect("nothing to write"), Applied::GracePeriod);
        assert_eq!(
            kernel.apply(&Step::EvictFlows { member: 3 }).expect("nothing to write"),
            Applied::EvictFlows { member: 3 }
        );
    });
}
