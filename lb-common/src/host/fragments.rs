//! Packets in fragments, and put together again, independently of the packet program.

use std::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};

use super::frame::{Frame, TAG_8021AD, TAG_8021Q, Transport, checksum, fold, ones_complement_sum};

/// IPv6's number of the fragment header.
pub const FRAGMENT_HEADER: u8 = 44;

/// A frame's packet in fragments of so many bytes of payload, a multiple of 8; IPv4 has 16 bits for the identification.
/// IPv6 extension headers are in all of them.
#[must_use]
pub fn fragments(frame: &Frame, id: u32, size: usize) -> Vec<Vec<u8>> {
    let whole = Frame { padding: 0, ..frame.clone() }.build();
    let segment = &whole[frame.transport_offset()..];
    let count = segment.len().div_ceil(size);
    (0..count)
        .map(|n| {
            let part = &segment[n * size..segment.len().min((n + 1) * size)];
            fragment(frame, id, n * size / 8, n + 1 < count, part)
        })
        .collect()
}

/// One fragment of a frame's packet, at a place in units of 8 bytes, with this payload.
#[must_use]
pub fn fragment(frame: &Frame, id: u32, place: usize, more: bool, part: &[u8]) -> Vec<u8> {
    let protocol = frame.protocol();
    let mut one = Frame { transport: Transport::Other { protocol }, payload: part.to_vec(), ..frame.clone() };
    if frame.source.is_ipv4() {
        one.id = id as u16;
        one.fragment = place as u16 | if more { 0x2000 } else { 0 };
    } else {
        let mut content = ((place << 3) as u16 | more as u16).to_be_bytes().to_vec();
        content.extend(id.to_be_bytes());
        one.extensions.push((FRAGMENT_HEADER, content));
    }
    one.build()
}

/// A fragment as a receiver sees it.
struct Part {
    /// Everything that must be the same in all of them.
    rest: Vec<u8>,
    id: u32,
    place: usize,
    more: bool,
    payload: Vec<u8>,
    /// Length of link and network layer in `rest`.
    link: usize,
}

/// The identification of a fragment.
///
/// # Errors
/// What is wrong with it.
pub fn identification(frame: &[u8]) -> Result<u32, String> {
    Ok(read(frame)?.id)
}

/// The frame whose fragments these are, in any order.
///
/// # Errors
/// Why they are not those of one packet, or not all.
pub fn reassemble<B: AsRef<[u8]>>(frames: &[B]) -> Result<Vec<u8>, String> {
    let mut parts = BTreeMap::new();
    let mut common: Option<(Vec<u8>, u32, usize)> = None;
    for frame in frames {
        let part = read(frame.as_ref())?;
        let this = (part.rest.clone(), part.id, part.link);
        if common.get_or_insert_with(|| this.clone()) != &this {
            return Err(format!("fragments of two packets: {common:?} and {this:?}"));
        }
        parts.insert(part.place, part);
    }
    let (mut whole, _, link) = common.ok_or("no fragments")?;
    let headers = whole.len() - link;
    let mut payload = Vec::new();
    let last = parts.len();
    for (n, part) in parts.into_values().enumerate() {
        if part.place * 8 != payload.len() || part.more != (n + 1 < last) {
            return Err(format!("a gap or an end before place {}", part.place));
        }
        payload.extend(part.payload);
    }
    let packet = &mut whole[link..];
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&((headers + payload.len()) as u16).to_be_bytes());
        let check = checksum(packet);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&((headers - 40 + payload.len()) as u16).to_be_bytes());
    }
    whole.extend(payload);
    Ok(whole)
}

fn read(frame: &[u8]) -> Result<Part, String> {
    let cut = || "the frame is cut short".to_string();
    let word = |at: usize| -> Result<u16, String> {
        frame.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]])).ok_or_else(cut)
    };
    let mut at = 12;
    while matches!(word(at)?, TAG_8021Q | TAG_8021AD) {
        at += 4;
    }
    let link = at + 2;
    let packet = frame.get(link..).ok_or_else(cut)?;
    let mut rest = frame[..link].to_vec();
    if word(at)? == 0x0800 {
        let header = (packet.first().ok_or_else(cut)? & 0xf) as usize * 4;
        let total = word(link + 2)? as usize;
        let (headers, payload) =
            (packet.get(..header).ok_or_else(cut)?, packet.get(header..total).ok_or_else(cut)?);
        if fold(ones_complement_sum(headers)) != 0xffff {
            return Err("the IPv4 header checksum is wrong".to_string());
        }
        let (id, field) = (word(link + 4)?, word(link + 6)?);
        rest.extend(headers);
        // What differs between fragments.
        for byte in [2, 3, 4, 5, 6, 7, 10, 11] {
            rest[link + byte] = 0;
        }
        let (place, more) = ((field & 0x1fff) as usize, field & 0x2000 != 0);
        return Ok(Part { rest, id: id.into(), place, more, payload: payload.to_vec(), link });
    }
    let total = 40 + word(link + 4)? as usize;
    let packet = packet.get(..total).ok_or_else(cut)?;
    let (mut field, mut at) = (6, 40);
    while packet[field] != FRAGMENT_HEADER {
        let extension = packet.get(at..at + 2).ok_or_else(cut)?;
        field = at;
        at += (extension[1] as usize + 1) * 8;
    }
    let header: [u8; 8] = packet.get(at..at + 8).ok_or_else(cut)?.try_into().unwrap_or_default();
    rest.extend(&packet[..at]);
    rest[link + field] = header[0];
    rest[link + 4..link + 6].fill(0);
    let place = u16::from_be_bytes([header[2], header[3]]);
    let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let payload = packet[at + 8..].to_vec();
    Ok(Part { rest, id, place: (place >> 3) as usize, more: place & 1 != 0, payload, link })
}
