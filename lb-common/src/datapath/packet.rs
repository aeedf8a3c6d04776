//! The packet as the program sees it, and what becomes of it.

use bytemuck::Pod;

/// A frame that can be read and rewritten. In the kernel it lies between `data` and `data_end`; on the host
/// in a buffer with head room.
///
/// Offsets are split in two: `base` is dynamic and stays below [`MAX_OFFSET`] (implementations mask it, which
/// is what the verifier needs), `OFFSET` is a constant.
pub trait PacketMut {
    /// Length of the frame in bytes.
    fn len(&self) -> usize;
    /// Index of the interface that the frame came in on.
    fn ingress(&self) -> u32;
    /// MTU of that interface in bytes of the IP packet; 0: unknown. Not for every packet: the kernel has to be asked.
    fn ingress_mtu(&self) -> u16;
    /// Reads a value at `base + OFFSET`; `None` beyond the end.
    fn read<T: Pod, const OFFSET: usize>(&self, base: usize) -> Option<T>;
    /// Writes a value at `base + OFFSET`; `None`, and nothing written, beyond the end.
    fn write<T: Pod, const OFFSET: usize>(&mut self, base: usize, value: T) -> Option<()>;
    /// Reads a value far from the frame's start, at `offset` below [`MAX_FAR_OFFSET`]; `None` beyond the end.
    fn read_far<T: Pod>(&self, offset: usize) -> Option<T>;
    /// Moves the start of the frame by `delta` bytes: negative grows the head. What is uncovered is
    /// undefined. False, and nothing moved, when there is no room.
    fn adjust_head(&mut self, delta: i32) -> bool;
    /// Cuts so many bytes off the end of the frame. False, and nothing cut, where too little would be left.
    fn cut_tail(&mut self, bytes: usize) -> bool;

    /// Whether the frame is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Exclusive bound of dynamic offsets, a power of two: two VLAN tags, 60 bytes of IPv4 header or 40 + 4 × 64
/// bytes of IPv6 headers fit below it.
pub const MAX_OFFSET: usize = 512;

/// Exclusive bound of offsets in [`PacketMut::read_far`], a power of two: a frame in one page ends before it.
pub const MAX_FAR_OFFSET: usize = 8192;

/// What becomes of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the node's own stack, untouched.
    Pass,
    /// Dropped.
    Drop,
    /// Rewritten, out of the interface that it came in on.
    Transmit,
    /// Rewritten, out of the interface of this index.
    Redirect(u32),
    /// Untouched IPv4: [`super::new_flow`] has to look at it.
    NewFlowV4,
    /// Untouched IPv6, likewise.
    NewFlowV6,
    /// Untouched, and its flow exists now: [`super::forward`] has to look at it again.
    Again,
    /// Untouched IPv4, and its flow is new: [`super::opened`] has to look at it.
    OpenedV4,
    /// Untouched IPv6, likewise.
    OpenedV6,
    /// An IPv4 SYN: [`super::retry`] has to look at it.
    RetryV4,
    /// An IPv6 SYN, likewise.
    RetryV6,
    /// An untouched RST over IPv4: [`super::refused`] has to look at it.
    RefusedV4,
    /// Over IPv6, likewise.
    RefusedV6,
    /// An untouched ICMP message: [`super::icmp()`] has to look at it.
    IcmpV4,
    /// ICMPv6, likewise.
    IcmpV6,
    /// Untouched IPv4 that is dropped: [`super::refuse`] has to tell its sender.
    RefuseV4,
    /// Untouched IPv6, likewise.
    RefuseV6,
    /// Rewritten, a segment with SYN: [`super::clamp`] has to look at it.
    Clamp,
    /// An untouched fragment of IPv4: [`super::fragment()`] has to look at it.
    FragmentV4,
    /// Of IPv6, likewise.
    FragmentV6,
    /// An untouched fragment of IPv4 that is not the first of its packet: [`super::follow`] has to look at it.
    FollowV4,
    /// Of IPv6, likewise.
    FollowV6,
}
