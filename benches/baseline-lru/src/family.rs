//! What differs between IPv4 and IPv6.

use crate::{
    access::{Frame, add_word, fold, take_word},
    maps::{
        Backend, Client, FLOWS_V4, FLOWS_V6, Flow, Place, REPLIES_V4, REPLIES_V6, SERVICES_V4, SERVICES_V6,
        Settings, Tuple,
    },
};

/// A family of addresses.
pub(crate) trait Family {
    /// As it is in the packet.
    type Address: Copy;

    /// Protocol, source and destination, of a packet that can be forwarded.
    fn read<const L3: usize>(frame: &Frame) -> Option<(u8, Self::Address, Self::Address)>;
    /// Writes addresses, the header's checksum if it has one, and a hop less.
    fn write<const L3: usize>(
        frame: &Frame,
        source: Self::Address,
        destination: Self::Address,
        difference: u64,
    ) -> Option<()>;
    /// Adds an address to a sum.
    fn add(sum: u64, address: Self::Address) -> u64;
    /// Takes an address from a sum.
    fn take(sum: u64, address: Self::Address) -> u64;
    /// Of what a flow is known by.
    fn hash(key: &Tuple<Self::Address>) -> u32;
    /// Whether replies come to it.
    fn is_snat(settings: &Settings, address: Self::Address) -> bool;
    /// Where replies come to.
    fn snat(settings: &Settings) -> Self::Address;
    /// A backend's.
    fn address(backend: &Backend) -> Self::Address;
    /// The index of this family's first backend.
    fn first_backend(settings: &Settings) -> u32;
    /// A service.
    fn service(place: &Place<Self::Address>) -> Option<*const u32>;
    /// A flow.
    fn flow(key: &Tuple<Self::Address>) -> Option<Flow>;
    /// Where a reply goes.
    ///
    /// # Safety
    /// Nobody changes it meanwhile.
    unsafe fn reply(key: &Tuple<Self::Address>) -> Option<Client<Self::Address>>;
    /// Whether it could be written.
    fn insert_flow(key: &Tuple<Self::Address>, flow: &Flow, flags: u64) -> bool;
    /// Whether it could be written.
    fn insert_reply(key: &Tuple<Self::Address>, client: &Client<Self::Address>, flags: u64) -> bool;
}

/// IPv4.
pub(crate) struct V4;
/// IPv6.
pub(crate) struct V6;

/// A few rounds of mixing; keys are not secret here.
#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 29
}

impl Family for V4 {
    type Address = u32;

    #[inline(always)]
    fn read<const L3: usize>(frame: &Frame) -> Option<(u8, u32, u32)> {
        let start = frame.read_u64_at::<L3, 0>()?;
        // Version and length of the header; neither "more fragments" nor an offset.
        if start & 0xff != 0x45 || (start >> 48) & 0xff3f != 0 {
            return None;
        }
        let middle = frame.read_u32_at::<L3, 8>()?;
        if middle & 0xff <= 1 {
            return None;
        }
        Some(((middle >> 8) as u8, frame.read_u32_at::<L3, 12>()?, frame.read_u32_at::<L3, 16>()?))
    }

    #[inline(always)]
    fn write<const L3: usize>(frame: &Frame, source: u32, destination: u32, difference: u64) -> Option<()> {
        let middle = frame.read_u32_at::<L3, 8>()?;
        // One hop less is one less in the low byte of its word, as this machine reads it.
        let check = fold((middle >> 16) as u16, difference + 0xfffe);
        frame.write_u32_at::<L3, 8>(((middle & 0xffff) - 1) | u32::from(check) << 16)?;
        frame.write_u32_at::<L3, 12>(source)?;
        frame.write_u32_at::<L3, 16>(destination)
    }

    #[inline(always)]
    fn add(sum: u64, address: u32) -> u64 {
        add_word(sum, address)
    }

    #[inline(always)]
    fn take(sum: u64, address: u32) -> u64 {
        take_word(sum, address)
    }

    #[inline(always)]
    fn hash(key: &Tuple<u32>) -> u32 {
        let addresses = u64::from(key.source) << 32 | u64::from(key.destination);
        mix(mix(0, addresses), u64::from(key.ports)) as u32
    }

    #[inline(always)]
    fn is_snat(settings: &Settings, address: u32) -> bool {
        settings.snat_v4 == address
    }

    #[inline(always)]
    fn snat(settings: &Settings) -> u32 {
        settings.snat_v4
    }

    #[inline(always)]
    fn address(backend: &Backend) -> u32 {
        backend.address[0] as u32
    }

    #[inline(always)]
    fn first_backend(_settings: &Settings) -> u32 {
        0
    }

    #[inline(always)]
    fn service(place: &Place<u32>) -> Option<*const u32> {
        SERVICES_V4.get_ptr(place)
    }

    #[inline(always)]
    fn flow(key: &Tuple<u32>) -> Option<Flow> {
        // SAFETY: flows are replaced, never changed.
        unsafe { FLOWS_V4.get(key) }.copied()
    }

    #[inline(always)]
    unsafe fn reply(key: &Tuple<u32>) -> Option<Client<u32>> {
        // SAFETY: promised by the caller.
        unsafe { REPLIES_V4.get(key) }.copied()
    }

    #[inline(always)]
    fn insert_flow(key: &Tuple<u32>, flow: &Flow, flags: u64) -> bool {
        FLOWS_V4.insert(key, flow, flags).is_ok()
    }

    #[inline(always)]
    fn insert_reply(key: &Tuple<u32>, client: &Client<u32>, flags: u64) -> bool {
        REPLIES_V4.insert(key, client, flags).is_ok()
    }
}

impl Family for V6 {
    type Address = [u64; 2];

    #[inline(always)]
    fn read<const L3: usize>(frame: &Frame) -> Option<(u8, [u64; 2], [u64; 2])> {
        let start = frame.read_u64_at::<L3, 0>()?;
        // Hop limit.
        if start >> 56 <= 1 {
            return None;
        }
        let source = [frame.read_u64_at::<L3, 8>()?, frame.read_u64_at::<L3, 16>()?];
        let destination = [frame.read_u64_at::<L3, 24>()?, frame.read_u64_at::<L3, 32>()?];
        Some(((start >> 48) as u8, source, destination))
    }

    #[inline(always)]
    fn write<const L3: usize>(
        frame: &Frame,
        source: [u64; 2],
        destination: [u64; 2],
        _difference: u64,
    ) -> Option<()> {
        let start = frame.read_u64_at::<L3, 0>()?;
        frame.write_u64_at::<L3, 0>(start - (1 << 56))?;
        frame.write_u64_at::<L3, 8>(source[0])?;
        frame.write_u64_at::<L3, 16>(source[1])?;
        frame.write_u64_at::<L3, 24>(destination[0])?;
        frame.write_u64_at::<L3, 32>(destination[1])
    }

    #[inline(always)]
    fn add(sum: u64, address: [u64; 2]) -> u64 {
        let [a, b] = address;
        add_word(add_word(add_word(add_word(sum, a as u32), (a >> 32) as u32), b as u32), (b >> 32) as u32)
    }

    #[inline(always)]
    fn take(sum: u64, address: [u64; 2]) -> u64 {
        Self::add(sum, [!address[0], !address[1]])
    }

    #[inline(always)]
    fn hash(key: &Tuple<[u64; 2]>) -> u32 {
        mix(mix(mix(0, key.source[0]), key.source[1]), u64::from(key.ports)) as u32
    }

    #[inline(always)]
    fn is_snat(settings: &Settings, address: [u64; 2]) -> bool {
        settings.snat_v6[0] == address[0] && settings.snat_v6[1] == address[1]
    }

    #[inline(always)]
    fn snat(settings: &Settings) -> [u64; 2] {
        settings.snat_v6
    }

    #[inline(always)]
    fn address(backend: &Backend) -> [u64; 2] {
        backend.address
    }

    #[inline(always)]
    fn first_backend(settings: &Settings) -> u32 {
        settings.backends
    }

    #[inline(always)]
    fn service(place: &Place<[u64; 2]>) -> Option<*const u32> {
        SERVICES_V6.get_ptr(place)
    }

    #[inline(always)]
    fn flow(key: &Tuple<[u64; 2]>) -> Option<Flow> {
        // SAFETY: flows are replaced, never changed.
        unsafe { FLOWS_V6.get(key) }.copied()
    }

    #[inline(always)]
    unsafe fn reply(key: &Tuple<[u64; 2]>) -> Option<Client<[u64; 2]>> {
        // SAFETY: promised by the caller.
        unsafe { REPLIES_V6.get(key) }.copied()
    }

    #[inline(always)]
    fn insert_flow(key: &Tuple<[u64; 2]>, flow: &Flow, flags: u64) -> bool {
        FLOWS_V6.insert(key, flow, flags).is_ok()
    }

    #[inline(always)]
    fn insert_reply(key: &Tuple<[u64; 2]>, client: &Client<[u64; 2]>, flags: u64) -> bool {
        REPLIES_V6.insert(key, client, flags).is_ok()
    }
}
