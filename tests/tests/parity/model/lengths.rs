//! What links take: packets that are too long, and segments that would be (docs/adr/0018-mtu.md).

use lb_common::abi::Counter;

use super::{
    Turn,
    packet::{Packet, Shape, sum, word},
    rewriting::carried,
};

/// Whether so many bytes fit a link; 0: nobody knows what it takes.
fn takes(mtu: u16, bytes: usize) -> bool {
    mtu == 0 || bytes <= usize::from(mtu)
}

impl Turn<'_> {
    /// Whether a packet fits the link that it is to leave by.
    pub(super) fn fits(&mut self, packet: &Packet, mtu: u16) -> bool {
        if packet.shape != Shape::Whole {
            // All of the frame counts, its padding too.
            return takes(mtu, packet.bytes.len());
        }
        // What is longer than its own link takes was put together by an offload.
        let fits = takes(mtu, packet.total) || !takes(packet.link.mtu, packet.total);
        if !fits {
            self.too_big = mtu;
        }
        fits
    }

    /// Lowers the largest segment that a SYN in the frame allows to what fits the links that the connection uses.
    pub(super) fn clamp(&mut self, packet: &Packet, [one, other]: [u16; 2]) {
        self.narrow(packet, &[one, other, packet.link.mtu]);
    }

    /// The same, to what fits links of these MTUs.
    pub(super) fn narrow(&mut self, packet: &Packet, mtus: &[u16]) {
        let known = mtus.iter().copied().filter(|mtu| *mtu != 0);
        let headers = if packet.is_v4() { 40 } else { 60 };
        let Some(most) = known.min().and_then(|mtu| mtu.checked_sub(headers)).filter(|most| *most > 0) else {
            return;
        };
        let start = self.frame.len() - packet.bytes.len() + packet.transport;
        let segment = &mut self.frame[start..start + packet.segment().len()];
        let Some(at) = largest_segment(&segment[..packet.tcp_header()]) else { return };
        if word(segment, at).expect("an option") <= most {
            return;
        }
        let before = sum(segment);
        segment[at..at + 2].copy_from_slice(&most.to_be_bytes());
        let after = sum(segment);
        let check = carried(word(segment, 16).expect("a header"), before, after);
        segment[16..18].copy_from_slice(&check.to_be_bytes());
        self.count(Counter::MssClamped);
    }
}

/// Where in TCP's header the value of the option stands.
fn largest_segment(header: &[u8]) -> Option<usize> {
    let mut at = 20;
    while at + 4 <= header.len() {
        match header[at..] {
            [2, 4, ..] => return Some(at + 2),
            [0, ..] | [2..=255, 0 | 1, ..] => return None,
            [1, ..] => at += 1,
            [_, length, ..] => at += usize::from(length),
            _ => unreachable!("four bytes"),
        }
    }
    None
}
