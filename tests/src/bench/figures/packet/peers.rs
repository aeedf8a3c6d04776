//! A program that somebody else has pinned, and its frames: out of files, or Kanmon's own.

use std::{borrow::Cow, collections::HashMap, fs};

use anyhow::{Context, Result, bail, ensure};

use super::names;
use crate::{
    bench::figures::{Args, contender, flows::Net, report::Program},
    kernel_run::{Callee, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
};

/// Which case a file without a name stands for.
const USUAL: &str = "nat-request";
/// And which one a peer without files is measured in besides.
const NEW: &str = "new-tcp";

/// The peer; nobody where none was given.
pub(super) struct Peers {
    pub(super) callee: Option<Callee>,
    /// What it is made of.
    pub(super) program: Option<Program>,
    /// By case; empty where no file was given.
    frames: HashMap<String, Vec<Vec<u8>>>,
}

/// What a peer may do with a frame: whatever takes it on in the cases that are about that.
pub(super) fn actions(case: &str) -> &'static [u32] {
    match case {
        "pass" => &[XDP_PASS],
        "refused" => &[XDP_TX, XDP_DROP],
        _ => &[XDP_TX, XDP_REDIRECT],
    }
}

impl Peers {
    /// The program and the files of the arguments.
    pub(super) fn load(args: &Args) -> Result<Peers> {
        let loaded = args.peer.as_ref().map(|pin| contender::peer(pin)).transpose()?;
        let (callee, program) = loaded.unzip();
        let mut frames = HashMap::new();
        for given in &args.peer_packets {
            let (case, path) = given.split_once('=').unwrap_or((USUAL, given));
            if !names().contains(&case) {
                bail!("there is no case {case} for {path}; cases are {}", names().join(", "));
            }
            let bytes = fs::read(path).with_context(|| format!("cannot read {path}"))?;
            let packets = packets(&bytes).with_context(|| format!("{path} is no pcap file"))?;
            ensure!(!packets.is_empty(), "{path} has no frame");
            frames.insert(case.to_owned(), packets);
        }
        Ok(Peers { callee, program, frames })
    }

    /// Frames of so many flows; none where there are not so many. Without files: what Kanmon gets, of the cases in which
    /// any load balancer has something to do.
    pub(super) fn frames(&self, case: &str, flows: u32) -> Option<Cow<'_, [Vec<u8>]>> {
        if !self.frames.is_empty() {
            return Some(self.frames.get(case)?.get(..flows as usize)?.into());
        }
        let frame: fn(u32) -> Vec<u8> = match case {
            USUAL => |n| Net::V4.segment_to(Net::V4.vip(), n),
            NEW => |n| Net::V4.syn(n),
            _ => return None,
        };
        Some((0..flows).map(frame).collect())
    }
}

/// The packets of a capture file (pcap 2.4, of either byte order).
fn packets(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (header, mut rest) = file.split_at_checked(24).context("it has no header")?;
    let read: fn([u8; 4]) -> u32 = match [header[0], header[1], header[2], header[3]] {
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => u32::from_le_bytes,
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => u32::from_be_bytes,
        magic => bail!("it begins with {magic:02x?}"),
    };
    let mut packets = Vec::new();
    while !rest.is_empty() {
        let (record, behind) = rest.split_at_checked(16).context("it is cut short")?;
        let length = read([record[8], record[9], record[10], record[11]]) as usize;
        let (packet, behind) = behind.split_at_checked(length).context("it is cut short")?;
        packets.push(packet.to_vec());
        rest = behind;
    }
    Ok(packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(magic: u32, word: fn(u32) -> [u8; 4]) -> Vec<u8> {
        let mut file: Vec<u8> = [magic, 0x0004_0002, 0, 0, 65535, 1].into_iter().flat_map(word).collect();
        for packet in [&[1_u8, 2, 3][..], &[4]] {
            let length = packet.len() as u32;
            file.extend([7, 8, length, 99].into_iter().flat_map(word));
            file.extend(packet);
        }
        file
    }

    #[test]
    fn a_file_s_frames_take_the_place_of_our_own() {
        let with = |frames| Peers { callee: None, program: None, frames };
        let own = with(HashMap::new());
        let given = with(HashMap::from([(USUAL.to_owned(), vec![vec![1], vec![2]])]));
        let count = |peers: &Peers, case, flows| peers.frames(case, flows).map(|frames| frames.len());
        assert_eq!([USUAL, NEW, "nat-reply"].map(|case| count(&own, case, 5)), [Some(5), Some(5), None]);
        let of_files = [(USUAL, 2), (USUAL, 3), (NEW, 1)].map(|(case, flows)| count(&given, case, flows));
        assert_eq!(of_files, [Some(2), None, None]);
    }

    #[test]
    fn captures_of_either_byte_order_are_read() {
        for file in [capture(0xa1b2_c3d4, u32::to_le_bytes), capture(0xa1b2_3c4d, u32::to_be_bytes)] {
            assert_eq!(packets(&file).unwrap(), [vec![1, 2, 3], vec![4]]);
            assert!(packets(&file[..file.len() - 1]).is_err());
        }
        assert!(packets(b"not a capture, though long enough").is_err());
    }
}
