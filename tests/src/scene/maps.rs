//! What the pinned maps hold, for a comparison with what they should: every entry is of something that there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use bytemuck::{Pod, Zeroable};
use lb_common::abi::{Backend, Member, PortBitmap, RingPair, RingWord, ServiceDescriptor, member_flags};

/// Address and port.
pub type Socket = (IpAddr, u16);

/// All that an agent writes, and the ports that flows hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// VIP and port of each service that packets find.
    pub services: BTreeSet<Socket>,
    /// VIPs.
    pub vips: BTreeSet<IpAddr>,
    /// Backends that replies find.
    pub backends: BTreeSet<Socket>,
    /// Which backends are members of which service, as the ring of the service names them: by the service's VIP
    /// and port.
    pub rings: BTreeMap<Socket, BTreeSet<Socket>>,
    /// Elements that are in use: descriptors, backends and members.
    pub descriptors: usize,
    /// See `descriptors`.
    pub backend_elements: usize,
    /// See `descriptors`.
    pub members: usize,
    /// Ports that are taken, over all backends.
    pub ports: u32,
}

impl Maps {
    /// Reads the maps below a pin directory.
    ///
    /// # Errors
    /// When one is not there, or contradicts itself: two rings in one region, a ring that names somebody else's
    /// member, a key whose element is another's.
    pub fn read(pins: &Path) -> Result<Maps> {
        let descriptors: BTreeMap<u32, ServiceDescriptor> = used(pins, "DESCRIPTORS")?;
        let elements: BTreeMap<u32, Backend> = used(pins, "BACKENDS")?;
        let mut members: BTreeMap<u32, Member> = used(pins, "MEMBERS")?;
        members.retain(|_, member| member.flags & member_flags::VALID != 0);

        let mut maps = Maps {
            descriptors: descriptors.len(),
            backend_elements: elements.len(),
            members: members.len(),
            ..Maps::default()
        };
        let keys = keys::<8>(pins, "SERVICES_V4")?.into_iter().map(|(key, index)| (socket4(&key), index));
        let keys6 =
            self::keys::<20>(pins, "SERVICES_V6")?.into_iter().map(|(key, index)| (socket6(&key), index));
        for (service, index) in keys.chain(keys6) {
            let descriptor =
                descriptors.get(&index).with_context(|| format!("{service:?} has no descriptor"))?;
            ensure!(of_descriptor(descriptor) == service, "descriptor {index} is not {service:?}'s");
            maps.services.insert(service);
        }
        let keys =
            self::keys::<8>(pins, "BACKENDS_V4")?.into_iter().map(|(key, index)| (socket4(&key), index));
        let keys6 =
            self::keys::<20>(pins, "BACKENDS_V6")?.into_iter().map(|(key, index)| (socket6(&key), index));
        for (backend, index) in keys.chain(keys6) {
            ensure!(elements.contains_key(&index), "backend {backend:?} has no element");
            maps.backends.insert(backend);
        }
        maps.vips.extend(self::keys::<4>(pins, "VIPS_V4")?.into_iter().map(|(key, _)| IpAddr::from(key)));
        maps.vips.extend(self::keys::<16>(pins, "VIPS_V6")?.into_iter().map(|(key, _)| IpAddr::from(key)));
        maps.rings = rings(pins, &descriptors, &members)?;
        maps.ports = used::<PortBitmap>(pins, "PORTS")?
            .values()
            .map(|bitmap| bitmap.words.iter().map(|word| word.count_ones()).sum::<u32>())
            .sum();
        Ok(maps)
    }
}

/// Whom each service's rings name. No two lie in one region.
fn rings(
    pins: &Path,
    descriptors: &BTreeMap<u32, ServiceDescriptor>,
    members: &BTreeMap<u32, Member>,
) -> Result<BTreeMap<Socket, BTreeSet<Socket>>> {
    let pairs: Vec<RingPair> = elements(pins, "RINGS")?;
    let mut owners: BTreeMap<u32, Socket> = BTreeMap::new();
    let mut rings: BTreeMap<Socket, BTreeSet<Socket>> = BTreeMap::new();
    for (index, descriptor) in descriptors {
        let service = of_descriptor(descriptor);
        for word in
            [RingWord(descriptor.ring), RingWord(descriptor.fallback)].into_iter().filter(|w| w.is_some())
        {
            let region = word.offset()..word.offset() + word.slots().div_ceil(2);
            for element in region.clone() {
                let other = owners.insert(element, service);
                ensure!(other.is_none(), "rings of {service:?} and {other:?} share element {element}");
            }
            let named = pairs.get(region.start as usize..region.end as usize);
            let named = named.with_context(|| format!("the ring of {service:?} is beyond the map"))?;
            let slots = named.iter().flat_map(|pair| pair.slots).take(word.slots() as usize);
            for slot in slots.collect::<BTreeSet<u32>>() {
                let member =
                    members.get(&slot).with_context(|| format!("{service:?} names member {slot}"))?;
                ensure!(member.service == *index, "{service:?} names a member of another service");
                rings.entry(service).or_default().insert(of_member(member));
            }
        }
    }
    Ok(rings)
}

fn of_descriptor(descriptor: &ServiceDescriptor) -> Socket {
    (address(descriptor.family, descriptor.vip), u16::from_be_bytes(descriptor.port))
}

pub(super) fn of_member(member: &Member) -> Socket {
    (address(member.family, member.address), u16::from_be_bytes(member.port))
}

fn address(family: u8, bytes: [u8; 16]) -> IpAddr {
    if family == 4 { <[u8; 4]>::try_from(&bytes[..4]).expect("four of sixteen").into() } else { bytes.into() }
}

/// Address and port of a key: both families' begin with these.
pub(super) fn socket4(key: &[u8; 8]) -> Socket {
    let [a, b, c, d, high, low, ..] = *key;
    ([a, b, c, d].into(), u16::from_be_bytes([high, low]))
}

pub(super) fn socket6(key: &[u8; 20]) -> Socket {
    let address: [u8; 16] = key[..16].try_into().expect("sixteen of twenty");
    (address.into(), u16::from_be_bytes([key[16], key[17]]))
}

/// Keys and values of a hash map.
pub(crate) fn keys<const N: usize>(pins: &Path, name: &str) -> Result<Vec<([u8; N], u32)>> {
    let map: HashMap<MapData, [u8; N], u32> = HashMap::try_from(Map::HashMap(open(pins, name)?))?;
    map.iter().collect::<Result<_, _>>().with_context(|| format!("cannot read {name}"))
}

/// The elements of an array that are not all zero, by index.
fn used<T: Pod + Zeroable>(pins: &Path, name: &str) -> Result<BTreeMap<u32, T>> {
    let all = (0..).zip(elements::<T>(pins, name)?);
    Ok(all.filter(|(_, value)| bytemuck::bytes_of(value).iter().any(|byte| *byte != 0)).collect())
}

/// All elements of an array.
fn elements<T: Pod>(pins: &Path, name: &str) -> Result<Vec<T>> {
    let data = open(pins, name)?;
    match size_of::<T>() {
        8 => raw::<T, 8>(data),
        64 => raw::<T, 64>(data),
        2048 => raw::<T, 2048>(data),
        other => anyhow::bail!("no array has elements of {other} bytes"),
    }
    .with_context(|| format!("cannot read {name}"))
}

pub(crate) fn array<const N: usize>(pins: &Path, name: &str) -> Result<Array<MapData, [u8; N]>> {
    Ok(Array::try_from(Map::Array(open(pins, name)?))?)
}

fn raw<T: Pod, const N: usize>(data: MapData) -> Result<Vec<T>> {
    let map: Array<MapData, [u8; N]> = Array::try_from(Map::Array(data))?;
    let all = map.iter().map(|value| value.map(|bytes| bytemuck::pod_read_unaligned(&bytes)));
    all.collect::<Result<_, _>>().map_err(Into::into)
}

fn open(pins: &Path, name: &str) -> Result<MapData> {
    let path = find(pins, name).with_context(|| format!("{name} is not pinned below {}", pins.display()))?;
    MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
}

/// Where a map is pinned: the version of the layout is a directory of its own.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    entries
        .find_map(|path| if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) })
}
