//! Ports of exports: their union, and where they clash.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::super::fronts::{Front, FrontPort, protocol};
use super::super::mcs::ImportPort;
use super::super::problems::{self, Problems};
use super::super::types::{ObjectName, Reason};
use super::{Exported, Source};

/// The ports of several exports together.
#[derive(Debug, Default)]
pub(super) struct Union {
    /// In the order of the oldest export, then of the next.
    pub(super) ports: Vec<ImportPort>,
    /// What an export has in vain: a port of the same name, or of the same number, is an older one's.
    pub(super) clashes: Vec<String>,
    /// Ports that not all exports have, and in which clusters they are.
    pub(super) partial: Vec<String>,
}

/// Puts the ports of exports together, the oldest first.
pub(super) fn union(sources: &[Source<'_>]) -> Union {
    let mut union = Union::default();
    let mut owners: Vec<Vec<&str>> = Vec::new();
    for source in sources {
        for port in ports(source) {
            if let Some(known) = union.ports.iter().position(|known| *known == port) {
                if owners[known].last() != Some(&source.cluster) {
                    owners[known].push(source.cluster);
                }
                continue;
            }
            let same = |known: &ImportPort| {
                known.name == port.name || (&known.protocol, known.port) == (&port.protocol, port.port)
            };
            if let Some(known) = union.ports.iter().position(same) {
                let (known, owner) = (show(&union.ports[known]), owners[known][0]);
                union.clashes.push(format!("{} in {}, but {known} in {owner}", show(&port), source.cluster));
            } else {
                owners.push(vec![source.cluster]);
                union.ports.push(port);
            }
        }
    }
    for (port, owners) in union.ports.iter().zip(&owners) {
        if owners.len() < sources.len() {
            union.partial.push(format!("{} in {} only", show(port), super::conflicts::list(owners)));
        }
    }
    union
}

fn ports<'a>(source: &Source<'a>) -> impl Iterator<Item = ImportPort> + use<'a> {
    source.spec.ports.iter().flatten().map(|port| ImportPort {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: port.app_protocol.clone(),
        port: port.port,
    })
}

/// For example `http 80/TCP`.
fn show(port: &ImportPort) -> String {
    let ImportPort { name, protocol, app_protocol, port } = port;
    let mut text = format!("{name} {port}/{protocol}").trim_start().to_owned();
    if let Some(app_protocol) = app_protocol {
        text.push_str(&format!(" ({app_protocol})"));
    }
    text
}

/// Opens the exported ports on the fronts' VIPs too, except where another front that shares the VIP has the port.
/// SCTP is not forwarded.
pub(in super::super) fn open(
    exported: &BTreeMap<ObjectName, Exported<'_>>,
    fronts: &mut BTreeMap<ObjectName, Front<'_>>,
    vips: &BTreeMap<ObjectName, Vec<IpAddr>>,
    problems: &mut Problems,
) {
    let vips_of = |name: &ObjectName| vips.get(name).into_iter().flatten().copied();
    let mut taken: HashMap<_, ObjectName> = HashMap::new();
    for (name, front) in &*fronts {
        for port in &front.ports {
            taken.extend(vips_of(name).map(|vip| ((vip, port.port, port.protocol), name.clone())));
        }
    }
    for (name, front) in fronts {
        let Some(exports) = exported.get(name).filter(|exports| !exports.is_headless()) else { continue };
        for port in union(&exports.sources).ports {
            let (Ok(number), Some(protocol)) = (u16::try_from(port.port), protocol(Some(&port.protocol)))
            else {
                continue;
            };
            if number == 0 || front.ports.iter().any(|own| (own.port, own.protocol) == (number, protocol)) {
                continue;
            }
            let key = |vip| (vip, number, protocol);
            if let Some((vip, other)) = vips_of(name).find_map(|vip| Some((vip, taken.get(&key(vip))?))) {
                let message = format!(
                    "port {number}/{protocol}, which clusters export, is not served: on {vip} it belongs to \
                     Service {other}; give one of the two an address of its own"
                );
                problems.warning(front.cluster, problems::service(name), Reason::AddressConflict, message);
                continue;
            }
            taken.extend(vips_of(name).map(|vip| (key(vip), name.clone())));
            front.ports.push(FrontPort { port: number, protocol, name: port.name, exported: true });
        }
    }
}
