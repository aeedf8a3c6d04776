//! Ethernet with VLAN tags.

use crate::netns::Mac;

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A VLAN tag as it is in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 (802.1Q) or 0x88a8 (802.1ad), in host order.
    pub ethertype: u16,
    /// Priority, drop eligibility and VLAN, in host order.
    pub control: u16,
}

impl Tag {
    /// An 802.1Q tag.
    pub const fn vlan(control: u16) -> Tag {
        Tag { ethertype: VLAN, control }
    }

    /// An 802.1ad tag, the outer one of two.
    pub const fn service(control: u16) -> Tag {
        Tag { ethertype: SERVICE_VLAN, control }
    }
}

/// An Ethernet frame with an IP packet in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Whom it is for.
    pub destination: Mac,
    /// Whom it is from.
    pub source: Mac,
    /// Its tags, the outer one first.
    pub tags: Vec<Tag>,
    /// The packet, from the IP header on.
    pub packet: Vec<u8>,
}

impl Frame {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.destination.0, self.source.0].concat();
        for tag in &self.tags {
            bytes.extend(tag.ethertype.to_be_bytes());
            bytes.extend(tag.control.to_be_bytes());
        }
        let version = self.packet.first().map_or(4, |byte| byte >> 4);
        bytes.extend(if version == 4 { IPV4 } else { IPV6 }.to_be_bytes());
        bytes.extend(&self.packet);
        bytes
    }

    /// Reads a frame from which the kernel may have taken the outer tag; `None` where it holds no IP packet.
    pub(super) fn parse(bytes: &[u8], stripped: Option<Tag>) -> Option<Frame> {
        let (header, mut rest) = bytes.split_at_checked(12)?;
        let mut tags: Vec<Tag> = stripped.into_iter().collect();
        let word = |at: &[u8]| Some(u16::from_be_bytes([*at.first()?, *at.get(1)?]));
        loop {
            let ethertype = word(rest)?;
            rest = &rest[2..];
            match ethertype {
                VLAN | SERVICE_VLAN => {
                    tags.push(Tag { ethertype, control: word(rest)? });
                    rest = &rest[2..];
                }
                IPV4 | IPV6 => break,
                _ => return None,
            }
        }
        Some(Frame {
            destination: Mac(header[..6].try_into().ok()?),
            source: Mac(header[6..].try_into().ok()?),
            tags,
            packet: rest.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_whether_or_not_the_kernel_took_the_outer_tag() {
        let (outer, inner) = (Tag::service(0x6007), Tag::vlan(0x0123));
        let mut packet = vec![0x45];
        packet.resize(20, 0);
        let frame = Frame { destination: Mac([1; 6]), source: Mac([2; 6]), tags: vec![outer, inner], packet };
        let bytes = frame.bytes();
        assert_eq!(bytes.len(), 14 + 8 + 20);
        assert_eq!(Frame::parse(&bytes, None).as_ref(), Some(&frame));
        let without = [&bytes[..12], &bytes[16..]].concat();
        assert_eq!(Frame::parse(&without, Some(outer)), Some(frame));
        assert_eq!(Frame::parse(&bytes[..13], None), None);
    }
}
