//! A frame in a buffer with head room.

use std::{vec, vec::Vec};

use bytemuck::Pod;

use crate::datapath::{MAX_FAR_OFFSET, MAX_OFFSET, PacketMut};

/// Bytes that a frame can grow by at its head, unless a test says otherwise.
pub const HEAD_ROOM: usize = 64;
/// The interface that a frame comes in on, unless a test says otherwise.
const INGRESS: u32 = 1;
/// What memory before a frame contains: the program must not send any of it.
const POISON: u8 = 0xa5;
/// An Ethernet header; the kernel lets a frame shrink no further.
const SHORTEST: usize = 14;

/// A frame. No offset panics: what lies beyond the end reads as `None`, as in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPacket {
    buffer: Vec<u8>,
    start: usize,
    ingress: u32,
    ingress_mtu: u16,
}

impl HostPacket {
    /// A frame of these bytes that came in on interface 1, with [`HEAD_ROOM`] bytes of head room.
    #[must_use]
    pub fn new(frame: &[u8]) -> Self {
        Self::with_head_room(frame, HEAD_ROOM)
    }

    /// A frame with that many bytes of head room.
    #[must_use]
    pub fn with_head_room(frame: &[u8], head_room: usize) -> Self {
        let mut buffer = vec![POISON; head_room];
        buffer.extend_from_slice(frame);
        Self { buffer, start: head_room, ingress: INGRESS, ingress_mtu: 0 }
    }

    /// The same frame, come in on another interface.
    #[must_use]
    pub fn on(mut self, ifindex: u32) -> Self {
        self.ingress = ifindex;
        self
    }

    /// The same frame, come in on an interface of this MTU; 0, unless a test says otherwise: unknown.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.ingress_mtu = mtu;
        self
    }

    /// The frame's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Where `size` bytes at `base + offset` lie in the buffer; the base is masked as the kernel's side does.
    fn place(&self, base: usize, offset: usize, size: usize) -> Option<core::ops::Range<usize>> {
        let start = self.start + (base & (MAX_OFFSET - 1)) + offset;
        (start + size <= self.buffer.len()).then_some(start..start + size)
    }
}

impl PacketMut for HostPacket {
    fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn ingress_mtu(&self) -> u16 {
        self.ingress_mtu
    }

    fn read<T: Pod, const OFFSET: usize>(&self, base: usize) -> Option<T> {
        let place = self.place(base, OFFSET, size_of::<T>())?;
        self.buffer.get(place).map(bytemuck::pod_read_unaligned)
    }

    fn write<T: Pod, const OFFSET: usize>(&mut self, base: usize, value: T) -> Option<()> {
        let place = self.place(base, OFFSET, size_of::<T>())?;
        self.buffer.get_mut(place)?.copy_from_slice(bytemuck::bytes_of(&value));
        Some(())
    }

    fn read_far<T: Pod>(&self, offset: usize) -> Option<T> {
        let start = self.start + (offset & (MAX_FAR_OFFSET - 1));
        self.buffer.get(start..start + size_of::<T>()).map(bytemuck::pod_read_unaligned)
    }

    fn adjust_head(&mut self, delta: i32) -> bool {
        let Some(start) = self.start.checked_add_signed(delta as isize) else { return false };
        if start + SHORTEST > self.buffer.len() {
            return false;
        }
        self.start = start;
        true
    }

    fn cut_tail(&mut self, bytes: usize) -> bool {
        let Some(end) = self.buffer.len().checked_sub(bytes) else { return false };
        if self.start + SHORTEST > end {
            return false;
        }
        self.buffer.truncate(end);
        true
    }
}
