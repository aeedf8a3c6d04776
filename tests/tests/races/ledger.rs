//! Whether the kernel's tables agree with each other while no packet is on its way.

use std::collections::HashMap;

use lb_common::{
    abi::{
        FLOW_WAYS, FlowState, FlowWord, PORT_BITMAP_WORDS, REVERSE_WAYS, ReverseWord, unpack_client,
        unpack_forward, unpack_path,
    },
    datapath::{Cells, Tables},
};
use tests::kernel_run::{KernelTables, MappedArray};

/// Checks that no flow is in the table twice, that each live forward entry and exactly one reverse entry name
/// each other, and that the ports taken are those of the reverse entries. Gives the number of flows.
///
/// # Errors
/// What does not agree.
pub(crate) fn check(tables: &KernelTables) -> Result<usize, String> {
    let forwards = forwards(tables)?;
    let mut unnamed = forwards.clone();
    let mut owned = HashMap::new();
    for (table, width) in [(&tables.reverse_v4, 4), (&tables.reverse_v6, 8)] {
        backwards(table, width, &mut unnamed, &mut owned)?;
    }
    if let Some((slot, word)) = unnamed.into_iter().next() {
        return Err(format!("flow {slot} ({word:?}) has no reverse entry"));
    }
    ports(tables, owned)?;
    for lock in 0..tables.locks.len() {
        if tables.locks.get(lock).is_some_and(|cells| cells.load(0) != 0) {
            return Err(format!("lock {lock} is held"));
        }
    }
    Ok(forwards.len())
}

/// Live forward entries by their slots.
fn forwards(tables: &KernelTables) -> Result<HashMap<u32, FlowWord>, String> {
    let mut found = HashMap::new();
    let mut tags = HashMap::new();
    for bucket in 0..tables.flows.len() {
        let Some(cells) = tables.flows.get(bucket) else { continue };
        for way in 0..FLOW_WAYS {
            let word = FlowWord(cells.load(2 * way as usize));
            let slot = bucket * FLOW_WAYS + way;
            if word.state() == FlowState::Claimed {
                return Err(format!("flow {slot} is claimed, and nobody is at work"));
            }
            if !word.state().is_live() {
                continue;
            }
            // Masking is its own inverse.
            let tag = word.masked_tag(cells.load(2 * way as usize + 1) & 0xffff_ffff_ffff);
            if let Some(other) = tags.insert(tag, slot) {
                return Err(format!("one flow is in slots {other} and {slot}"));
            }
            found.insert(slot, word);
        }
    }
    Ok(found)
}

/// A port's key (backend, SNAT address, port), and the reverse entry that holds it.
type Owned = HashMap<(u32, u8, u16), (u32, usize)>;

fn backwards(
    table: &MappedArray,
    width: usize,
    unnamed: &mut HashMap<u32, FlowWord>,
    owned: &mut Owned,
) -> Result<(), String> {
    for bucket in 0..table.len() {
        let Some(cells) = table.get(bucket) else { continue };
        for way in 0..REVERSE_WAYS as usize {
            let first = way * width;
            let word = ReverseWord(cells.load(first));
            if !word.is_live() {
                if !word.is_empty() {
                    return Err(format!("reverse entry {bucket}/{way} is claimed, and nobody is at work"));
                }
                continue;
            }
            let (flow, forward_version) = unpack_forward(cells.load(first + 1));
            let (_, _, client_version) = unpack_client(cells.load(first + 2));
            let (member, _, _, path_version) = unpack_path(cells.load(first + 3));
            if [forward_version, client_version, path_version] != [word.version(); 3] {
                return Err(format!("reverse entry {bucket}/{way} is of several versions"));
            }
            match unnamed.remove(&flow.slot) {
                Some(forward)
                    if forward.version() == flow.version
                        && (forward.port(), forward.snat()) == (word.port(), word.snat())
                        && forward.member() == member => {}
                Some(forward) => {
                    return Err(format!(
                        "reverse entry {bucket}/{way} ({word:?}) names {flow:?}: {forward:?}"
                    ));
                }
                None => {
                    return Err(format!(
                        "reverse entry {bucket}/{way} ({word:?}) names {flow:?}: no flow, or another's"
                    ));
                }
            }
            let key = (word.backend(), word.snat(), word.port());
            if let Some(other) = owned.insert(key, (bucket, way)) {
                return Err(format!("port {key:?} belongs to {other:?} and to {:?}", (bucket, way)));
            }
        }
    }
    Ok(())
}

fn ports(tables: &KernelTables, mut owned: Owned) -> Result<(), String> {
    let config = *<&KernelTables as Tables>::config(&tables).ok_or("no settings")?;
    for index in 0..tables.ports.len() {
        let Some(bitmap) = tables.ports.get(index) else { continue };
        for word in 0..PORT_BITMAP_WORDS {
            let bits = bitmap.load(word);
            for bit in (0..64).filter(|bit| bits & (1 << bit) != 0) {
                let port = config.port_base.wrapping_add((word * 64 + bit) as u16);
                let key = (index / config.snat_stride, (index % config.snat_stride) as u8, port);
                if owned.remove(&key).is_none() {
                    return Err(format!("port {key:?} is taken, and nobody owns it"));
                }
            }
        }
    }
    match owned.into_iter().next() {
        Some((key, entry)) => Err(format!("port {key:?} of reverse entry {entry:?} is not taken")),
        None => Ok(()),
    }
}
