//! What Kanmon's packet program is compared to: the same NAT the usual way. Flows are in the kernel's `LRU_HASH`,
//! what replies need is in a `HASH`, services are in a `HASH`, backends in an `ARRAY`; a new flow takes a backend by
//! its hash and a port of the SNAT address that `BPF_NOEXIST` finds free.
//!
//! It leaves out what costs time elsewhere: no TCP states, no timeouts, no counters, no options or fragments, one VLAN
//! tag, one SNAT address a family. So it is faster than a complete program built this way would be.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod access;
mod family;
mod maps;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

use crate::{
    access::{Frame, add_word, fold, take_word},
    family::{Family, V4, V6},
    maps::{BACKENDS, Client, Flow, Place, SETTINGS, Tuple},
};

/// Ports that a new flow tries.
const TRIES: u16 = 8;
/// The first of the SNAT ports, and how many there are: a power of two.
const FIRST_PORT: u16 = 1 << 14;
const PORTS: u16 = 1 << 15;
const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// The program: rewrites and sends back, or passes.
#[xdp]
pub fn baseline(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let done = match frame.read_u16::<12>() {
        Some(kind) => by_type(&frame, u16::from_be(kind)),
        None => None,
    };
    done.unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn by_type(frame: &Frame, kind: u16) -> Option<u32> {
    match kind {
        0x0800 => packet::<V4, 14, 34>(frame),
        0x86dd => packet::<V6, 14, 54>(frame),
        0x8100 => match u16::from_be(frame.read_u16::<16>()?) {
            0x0800 => packet::<V4, 18, 38>(frame),
            0x86dd => packet::<V6, 18, 58>(frame),
            _ => None,
        },
        _ => None,
    }
}

/// A packet whose headers begin at `L3` and `L4`; `None`: not ours.
#[inline(always)]
fn packet<F: Family, const L3: usize, const L4: usize>(frame: &Frame) -> Option<u32> {
    let (protocol, source, destination) = F::read::<L3>(frame)?;
    if protocol != 6 && protocol != 17 {
        return None;
    }
    let ports = frame.read_u32::<L4>()?;
    let settings = SETTINGS.get(0)?;
    let from_backend = F::is_snat(settings, destination);
    let key = Tuple { source, destination, ports, protocol: protocol.into() };
    let (new_source, new_destination, new_ports, macs) = if from_backend {
        // SAFETY: replies are never changed in place.
        let client = unsafe { F::reply(&key) }?;
        (client.vip, client.address, client.ports, settings.client_macs)
    } else {
        F::service(&Place { address: destination, port: ports >> 16, protocol: protocol.into() })?;
        let flow = match F::flow(&key) {
            Some(flow) => flow,
            None => open::<F>(&key, F::snat(settings))?,
        };
        let backend = BACKENDS.get(flow.backend)?;
        let to_port = u32::from(backend.port) << 16;
        (F::snat(settings), F::address(backend), to_port | u32::from(flow.port), backend.macs)
    };
    let mut difference = 0;
    for (old, new) in [(source, new_source), (destination, new_destination)] {
        difference = F::add(F::take(difference, old), new);
    }
    F::write::<L3>(frame, new_source, new_destination, difference)?;
    let difference = add_word(take_word(difference, ports), new_ports);
    frame.write_u32::<L4>(new_ports)?;
    if protocol == 6 {
        let check = frame.read_u16_behind::<L4, 16>()?;
        frame.write_u16_behind::<L4, 16>(fold(check, difference))?;
    } else {
        let check = frame.read_u16_behind::<L4, 6>()?;
        if check != 0 {
            frame.write_u16_behind::<L4, 6>(fold(check, difference))?;
        }
    }
    frame.write_macs(macs)?;
    Some(xdp_action::XDP_TX)
}

/// Chooses a backend and a port, and writes both down.
#[inline(always)]
fn open<F: Family>(key: &Tuple<F::Address>, snat: F::Address) -> Option<Flow> {
    let hash = F::hash(key);
    let settings = SETTINGS.get(0)?;
    let backend_index = F::first_backend(settings) + (((hash >> 16) * settings.backends) >> 16);
    let backend = BACKENDS.get(backend_index)?;
    let client = Client { address: key.source, vip: key.destination, ports: key.ports.rotate_left(16) };
    for attempt in 0..TRIES {
        let port = (FIRST_PORT | ((hash as u16).wrapping_add(attempt) & (PORTS - 1))).to_be();
        let reply = Tuple {
            source: F::address(backend),
            destination: snat,
            ports: u32::from(port) << 16 | u32::from(backend.port),
            protocol: key.protocol,
        };
        if F::insert_reply(&reply, &client, BPF_NOEXIST) {
            let flow = Flow { backend: backend_index, port, pad: 0 };
            return F::insert_flow(key, &flow, BPF_ANY).then_some(flow);
        }
    }
    None
}

/// Never reached: there is no panicking path, or the verifier would refuse the program.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence as the kernel reads it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
