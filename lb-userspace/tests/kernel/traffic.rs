//! One real SYN through the attached program: counters, statistics and events reach the agent.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{
    Backend, Counter, Event, EventKind, Member, RingWord, ServiceDescriptor, ServiceKeyV4, TCP, VipKeyV4,
    address_filter, backend_flags, member_flags,
};
use lb_common::hash::filter_index_v4;
use lb_userspace::bpf::XdpMode;
use lb_userspace::plan::{ServiceKey, Step, VipKey};

use crate::bed::{Bed, FAR, NEAR, index};

const CLIENT: [u8; 4] = [203, 0, 113, 7];
const VIP: [u8; 4] = [198, 51, 100, 1];
const BACKEND: [u8; 4] = [10, 0, 0, 1];

#[test]
fn a_new_flow_is_counted_and_told() {
    Bed::run(|bed| {
        let mut kernel = bed.kernel();
        for step in service() {
            let _ = kernel.apply(&step).expect("the step is applied");
        }
        kernel.attach(&[NEAR.to_owned()], XdpMode::Native).expect("attached");
        let memory = kernel.memory();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let event: Event = runtime.block_on(async {
            let mut events = kernel.take_events().expect("the ring buffer").expect("the first reader");
            assert!(kernel.take_events().expect("no error").is_none(), "there is one reader");
            assert_eq!(events.try_next(), None);
            // Waits first, then is woken by the packet.
            let (event, sent) =
                tokio::join!(tokio::time::timeout(Duration::from_secs(10), events.next()), async {
                    send(&syn())
                });
            sent.expect("the frame is sent");
            event.unwrap_or_else(|_| panic!("no event; counters: {:?}", memory.counters())).expect("an event")
        });
        assert_eq!(event.kind, EventKind::Opened as u8);
        assert_eq!((&event.client[..4], event.client_port), (&CLIENT[..], [156, 64]));
        assert_eq!((event.member, event.service, event.family), (1, 1, 4));
        assert_eq!(memory.counter(Counter::FlowOpened), 1);
        let stats = memory.member_stats(1);
        assert_eq!((stats.connections, stats.packets_in), (1, 1));
        assert!(stats.bytes_in >= 54, "{stats:?}");
        let bits: u32 = (0..memory.ports.len())
            .filter_map(|index| memory.ports.read::<lb_common::abi::PortBitmap>(index))
            .flat_map(|bitmap| bitmap.words)
            .map(u64::count_ones)
            .sum();
        assert_eq!(bits, 1, "one port is taken");
    });
}

/// A service with one backend behind the interface's neighbour.
fn service() -> Vec<Step> {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&BACKEND);
    let mut vip = [0; 16];
    vip[..4].copy_from_slice(&VIP);
    let backend = Backend {
        flags: backend_flags::USABLE,
        address,
        port: [31, 144],
        protocol: TCP,
        family: 4,
        ..Backend::default()
    };
    let member = Member {
        address,
        backend: 1,
        generation: 1,
        flags: member_flags::VALID | member_flags::NEXT_HOP,
        port: [31, 144],
        destination_mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 2],
        ifindex: index(NEAR),
        mtu: 1500,
        service: 1,
        vip_v4: VIP,
        vip_port: [0, 80],
        ..Member::default()
    };
    let mut descriptor: ServiceDescriptor = bytemuck::Zeroable::zeroed();
    (descriptor.vip, descriptor.port, descriptor.protocol, descriptor.family) = (vip, [0, 80], TCP, 4);
    descriptor.ring = RingWord::new(0, 0, 1).0;
    vec![
        Step::InitBackend { index: 1, value: backend },
        Step::WriteMember { index: 1, value: member },
        Step::WriteRing { offset: 0, slots: Arc::from([1; 251]) },
        Step::WriteDescriptor { index: 1, value: descriptor },
        Step::PutService {
            key: ServiceKey::V4(ServiceKeyV4 { vip: VIP, port: [0, 80], protocol: TCP, pad: 0 }),
            index: 1,
        },
        Step::PutVip { key: VipKey::V4(VipKeyV4 { vip: VIP }), flags: 0 },
        Step::SetAddressFilter {
            index: filter_index_v4(u32::from_ne_bytes(VIP)),
            flags: address_filter::VIP,
        },
    ]
}

/// A SYN from 203.0.113.7:40000 to the VIP's port 80.
fn syn() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    let mut ip = [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, TCP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[12..16].copy_from_slice(&CLIENT);
    ip[16..20].copy_from_slice(&VIP);
    let sum: u32 = ip.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&[156, 64, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// Sends a frame out of the far end of the pair.
fn send(frame: &[u8]) -> io::Result<()> {
    // SAFETY: plain arguments; the result is checked before use.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zero is a valid `sockaddr_ll`.
    let mut target: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    target.sll_family = libc::AF_PACKET as u16;
    target.sll_ifindex = index(FAR) as i32;
    target.sll_halen = 6;
    // SAFETY: buffer and address are valid for the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const target).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent == frame.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
}
