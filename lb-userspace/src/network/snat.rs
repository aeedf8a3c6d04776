//! Which ports the gateway may use as source ports of its own.
//!
//! A SNAT port must be one that the node itself never uses, or a reply to the node and a reply to a flow could
//! not be told apart.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use crate::config::SnatPorts;

/// Most ports in a range: the bits of one [`lb_common::abi::PortBitmap`].
pub const MAX_PORTS: u16 = 16_384;
/// Ports are counted in words of this many.
pub const WORD: u16 = 64;
/// The NodePorts of a Kubernetes API server without `--service-node-port-range`.
pub const DEFAULT_NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// `auto` prefers round ranges: their bounds are multiples of this where such a range is free.
const PREFERRED_ALIGNMENT: u16 = 4096;
/// Ports below belong to system services.
const FIRST_UNPRIVILEGED: u16 = 1024;
/// `auto` does not settle for fewer.
const FEWEST_PORTS: u16 = 1024;
/// A suggested `ip_local_port_range` leaves the node at least as many ports.
const FEWEST_EPHEMERAL: u16 = 8192;

/// A range of SNAT ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// First port, a multiple of [`WORD`].
    pub base: u16,
    /// Number of 64-port words, 1–256.
    pub words: u16,
}

impl PortRange {
    /// Last port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.base + (self.words * WORD - 1)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.base, self.last())
    }
}

/// What a person asked for: `auto` or `FIRST-LAST`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PortRequest {
    /// A free range of Kanmon's choice.
    #[default]
    Auto,
    /// This range.
    Range(RangeInclusive<u16>),
}

impl From<SnatPorts> for PortRequest {
    fn from(asked: SnatPorts) -> Self {
        match asked {
            SnatPorts::Auto => Self::Auto,
            SnatPorts::Range { first, last } => Self::Range(first..=last),
        }
    }
}

impl FromStr for PortRequest {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        parse_range(text).map(Self::Range).ok_or_else(|| PortRangeError::Syntax(text.to_owned()))
    }
}

impl fmt::Display for PortRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Range(range) => write!(f, "{}-{}", range.start(), range.end()),
        }
    }
}

/// Which ports the node uses for other things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortsInUse {
    /// `net.ipv4.ip_local_port_range`: the kernel's choice for outgoing connections, IPv6 included.
    pub ephemeral: RangeInclusive<u16>,
    /// `net.ipv4.ip_local_reserved_ports`: kept for applications.
    pub reserved: Vec<RangeInclusive<u16>>,
    /// Kubernetes' NodePorts.
    pub node_ports: RangeInclusive<u16>,
}

impl PortsInUse {
    /// Reads what the kernel says about the current network namespace.
    ///
    /// # Errors
    ///
    /// The files under `/proc/sys/net/ipv4` cannot be read or are not what the kernel writes.
    pub fn read(node_ports: RangeInclusive<u16>) -> io::Result<Self> {
        Self::read_from(Path::new("/proc/sys/net/ipv4"), node_ports)
    }

    fn read_from(directory: &Path, node_ports: RangeInclusive<u16>) -> io::Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            let text = std::fs::read_to_string(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
            Ok::<_, io::Error>((path, text))
        };
        let unexpected = |path: &Path, text: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} has {:?}", path.display(), text.trim()))
        };
        let (path, text) = read("ip_local_port_range")?;
        let bounds: Option<Vec<u16>> = text.split_whitespace().map(|bound| bound.parse().ok()).collect();
        let ephemeral = match bounds.as_deref() {
            Some([first, last]) => *first..=*last,
            _ => return Err(unexpected(&path, &text)),
        };
        let (path, text) = read("ip_local_reserved_ports")?;
        let ranges = text.trim().split(',').filter(|range| !range.is_empty());
        let reserved: Option<Vec<_>> = ranges.map(parse_range).collect();
        let reserved = reserved.ok_or_else(|| unexpected(&path, &text))?;
        Ok(Self { ephemeral, reserved, node_ports })
    }

    /// The latest port of `range` that is taken, if one is.
    fn last_taken(&self, range: &RangeInclusive<u16>) -> Option<u16> {
        let taken = self.reserved.iter().chain([&self.ephemeral, &self.node_ports]);
        taken.filter_map(|taken| intersection(taken, range).map(|both| *both.end())).max()
    }
}

/// Why there are no SNAT ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortRangeError {
    /// Neither `auto` nor a range.
    #[error("SNAT ports {0:?} are neither \"auto\" nor a range such as 12288-28671")]
    Syntax(String),
    /// The range's size or alignment cannot be used.
    #[error(
        "SNAT ports {request} must begin at a multiple of 64 that is at least 1024, and be a multiple of 64 \
         and at most 16384 in number; {fix}"
    )]
    Shape {
        /// What was asked for.
        request: PortRequest,
        /// What to do instead.
        fix: String,
    },
    /// The range overlaps ports that the node uses.
    #[error("SNAT ports {request} overlap {with} ({taken}); {fix}")]
    Overlap {
        /// What was asked for.
        request: PortRequest,
        /// What uses them.
        with: &'static str,
        /// Which ports it uses.
        taken: PortRequest,
        /// What to do about it.
        fix: String,
    },
    /// `auto` finds no range.
    #[error(
        "no 1024 ports in a row are free for SNAT: net.ipv4.ip_local_port_range, \
         net.ipv4.ip_local_reserved_ports and the NodePorts use all of them; free some, for example with \
         sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\""
    )]
    NoneFree,
}

/// Chooses the SNAT ports.
///
/// # Errors
///
/// The requested range has a bad shape or overlaps; the error tells the fix.
pub fn choose(request: &PortRequest, in_use: &PortsInUse) -> Result<PortRange, PortRangeError> {
    match request {
        PortRequest::Auto => choose_free(in_use),
        PortRequest::Range(range) => {
            let chosen = check_shape(range, in_use)?;
            check_free(range, in_use)?;
            Ok(chosen)
        }
    }
}

fn choose_free(in_use: &PortsInUse) -> Result<PortRange, PortRangeError> {
    let mut count = MAX_PORTS;
    while count >= FEWEST_PORTS {
        for alignment in [PREFERRED_ALIGNMENT, WORD] {
            if let Some(base) = highest_free(count, alignment, in_use) {
                return Ok(PortRange { base, words: count / WORD });
            }
        }
        count -= WORD;
    }
    Err(PortRangeError::NoneFree)
}

fn highest_free(count: u16, alignment: u16, in_use: &PortsInUse) -> Option<u16> {
    let lowest = FIRST_UNPRIVILEGED.next_multiple_of(alignment);
    let highest = u16::try_from((65_536 - u32::from(count)) / u32::from(alignment)).ok()? * alignment;
    (lowest..=highest)
        .step_by(usize::from(alignment))
        .rev()
        .find(|base| in_use.last_taken(&(*base..=*base + (count - 1))).is_none())
}

fn check_shape(range: &RangeInclusive<u16>, in_use: &PortsInUse) -> Result<PortRange, PortRangeError> {
    let count = u32::from(*range.end()) + 1 - u32::from(*range.start());
    let aligned = range.start().is_multiple_of(WORD) && count.is_multiple_of(u32::from(WORD));
    if aligned && *range.start() >= FIRST_UNPRIVILEGED && count <= u32::from(MAX_PORTS) {
        let words = u16::try_from(count / u32::from(WORD)).unwrap_or(MAX_PORTS / WORD);
        return Ok(PortRange { base: *range.start(), words });
    }
    // The largest range of a good shape within what was asked for, if that leaves one.
    let base = range.start().max(&FIRST_UNPRIVILEGED).div_ceil(WORD) * WORD;
    let words = ((u32::from(*range.end()) + 1).saturating_sub(u32::from(base)) / u32::from(WORD))
        .min(u32::from(MAX_PORTS / WORD));
    let within = u16::try_from(words).ok().filter(|words| *words > 0).map(|words| PortRange { base, words });
    let fix = match within.filter(|within| in_use.last_taken(&(within.base..=within.last())).is_none()) {
        Some(within) => format!("{within} does"),
        None => suggestion(in_use),
    };
    Err(PortRangeError::Shape { request: PortRequest::Range(range.clone()), fix })
}

fn check_free(range: &RangeInclusive<u16>, in_use: &PortsInUse) -> Result<(), PortRangeError> {
    let overlap = |with, taken: &RangeInclusive<u16>, other_fix: Option<String>| PortRangeError::Overlap {
        request: PortRequest::Range(range.clone()),
        with,
        taken: PortRequest::Range(taken.clone()),
        fix: suggestion(in_use) + &other_fix.map(|fix| format!(", or {fix}")).unwrap_or_default(),
    };
    if intersection(&in_use.ephemeral, range).is_some() {
        let move_kernel = ephemeral_without(&in_use.ephemeral, range).map(|rest| {
            let (first, last) = rest.into_inner();
            format!("move the kernel's: sysctl -w net.ipv4.ip_local_port_range=\"{first} {last}\"")
        });
        return Err(overlap("net.ipv4.ip_local_port_range", &in_use.ephemeral, move_kernel));
    }
    if let Some(taken) = in_use.reserved.iter().find(|taken| intersection(taken, range).is_some()) {
        let fix = "take them out of sysctl net.ipv4.ip_local_reserved_ports if no application uses them";
        return Err(overlap("net.ipv4.ip_local_reserved_ports", taken, Some(fix.to_owned())));
    }
    if intersection(&in_use.node_ports, range).is_some() {
        let fix = "tell Kanmon the cluster's --service-node-port-range if it is another";
        return Err(overlap("the NodePorts of Kubernetes", &in_use.node_ports, Some(fix.to_owned())));
    }
    Ok(())
}

fn suggestion(in_use: &PortsInUse) -> String {
    match choose_free(in_use) {
        Ok(free) => format!("use a free range, such as {free}"),
        Err(_) => "no range is free".to_owned(),
    }
}

/// The larger part of the kernel's range beside `range`, if it is large enough.
fn ephemeral_without(
    ephemeral: &RangeInclusive<u16>,
    range: &RangeInclusive<u16>,
) -> Option<RangeInclusive<u16>> {
    let below = range.start().checked_sub(1).map(|last| *ephemeral.start()..=last.min(*ephemeral.end()));
    let above = range.end().checked_add(1).map(|first| first.max(*ephemeral.start())..=*ephemeral.end());
    let large = |part: &RangeInclusive<u16>| part.len() >= usize::from(FEWEST_EPHEMERAL);
    [above, below].into_iter().flatten().filter(large).max_by_key(ExactSizeIterator::len)
}

fn intersection(a: &RangeInclusive<u16>, b: &RangeInclusive<u16>) -> Option<RangeInclusive<u16>> {
    let both = *a.start().max(b.start())..=*a.end().min(b.end());
    (!both.is_empty()).then_some(both)
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock() -> PortsInUse {
        PortsInUse { ephemeral: 32_768..=60_999, reserved: Vec::new(), node_ports: DEFAULT_NODE_PORTS }
    }

    fn refused(request: &str, in_use: &PortsInUse) -> String {
        let request = request.parse().expect("a request");
        choose(&request, in_use).expect_err("refused").to_string()
    }

    #[test]
    fn auto_takes_16384_ports_below_the_node_ports_on_a_stock_node() {
        let range = choose(&PortRequest::Auto, &stock()).expect("free");
        assert_eq!(range.to_string(), "12288-28671");
        assert_eq!((range.base, range.words), (12_288, 256));
    }

    #[test]
    fn auto_avoids_reserved_ports() {
        let in_use = PortsInUse { reserved: vec![20_000..=20_000], ..stock() };
        let range = choose(&PortRequest::Auto, &in_use).expect("free");
        assert_eq!((range.base % WORD, range.words), (0, 256));
        assert!(!(range.base..=range.last()).contains(&20_000), "{range}");
    }

    #[test]
    fn auto_goes_above_a_low_ephemeral_range() {
        let in_use = PortsInUse { ephemeral: 1024..=29_999, ..stock() };
        assert_eq!(choose(&PortRequest::Auto, &in_use).expect("free").to_string(), "49152-65535");
    }

    #[test]
    fn auto_takes_fewer_ports_where_16384_are_not_free_in_a_row() {
        let in_use = PortsInUse { ephemeral: 10_000..=65_535, ..stock() };
        let range = choose(&PortRequest::Auto, &in_use).expect("free");
        assert!(range.last() < 10_000 && range.base >= 1024 && range.words == 8960 / WORD, "{range}");
    }

    #[test]
    fn auto_fails_with_the_fix_where_nothing_is_free() {
        let in_use = PortsInUse { ephemeral: 1024..=65_535, ..stock() };
        let text = choose(&PortRequest::Auto, &in_use).expect_err("nothing is free").to_string();
        assert!(text.contains("sysctl -w net.ipv4.ip_local_port_range"), "{text}");
    }

    #[test]
    fn a_free_explicit_range_is_taken_as_it_is() {
        let request = "61440-65535".parse().expect("a range");
        let range = choose(&request, &stock()).expect("free");
        assert_eq!((range.base, range.words, range.last()), (61_440, 64, 65_535));
    }

    #[test]
    fn an_overlap_with_the_ephemeral_range_is_refused_with_both_fixes() {
        let text = refused("32768-49151", &stock());
        assert!(text.contains("overlap net.ipv4.ip_local_port_range (32768-60999)"), "{text}");
        assert!(text.contains("such as 12288-28671"), "{text}");
        assert!(text.contains("ip_local_port_range=\"49152 60999\""), "{text}");
    }

    #[test]
    fn a_fix_that_would_starve_the_node_is_not_suggested() {
        let in_use = PortsInUse { ephemeral: 40_000..=50_000, ..stock() };
        let text = refused("36864-45055", &in_use);
        assert!(!text.contains("sysctl -w"), "{text}");
    }

    #[test]
    fn an_overlap_with_node_ports_is_refused() {
        let text = refused("16384-32767", &stock());
        assert!(text.contains("NodePorts of Kubernetes (30000-32767)"), "{text}");
    }

    #[test]
    fn an_overlap_with_reserved_ports_is_refused() {
        let in_use = PortsInUse { reserved: vec![8080..=8080, 20_000..=20_010], ..stock() };
        let text = refused("12288-28671", &in_use);
        assert!(text.contains("ip_local_reserved_ports (20000-20010)"), "{text}");
    }

    #[test]
    fn a_range_of_a_bad_shape_is_refused_with_one_that_fits() {
        assert!(refused("12289-28671", &stock()).ends_with("12352-28671 does"));
        assert!(refused("4096-29999", &stock()).ends_with("4096-20479 does"));
        assert!(refused("512-1087", &stock()).ends_with("1024-1087 does"));
        assert!(refused("12289-12300", &stock()).ends_with("such as 12288-28671"));
    }

    #[test]
    fn text_that_is_no_range_is_refused() {
        for text in ["", "1-", "x", "5-4", "70000-70010"] {
            assert!(text.parse::<PortRequest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_kernels_files_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name, text| std::fs::write(directory.path().join(name), text).expect("written");
        write("ip_local_port_range", "32768\t60999\n");
        write("ip_local_reserved_ports", "8080,9000-9010\n");
        let read = || PortsInUse::read_from(directory.path(), DEFAULT_NODE_PORTS);
        assert_eq!(read().expect("read"), PortsInUse { reserved: vec![8080..=8080, 9000..=9010], ..stock() });
        write("ip_local_reserved_ports", "\n");
        assert_eq!(read().expect("read"), stock());
        write("ip_local_port_range", "garbage");
        assert!(read().expect_err("refused").to_string().contains("ip_local_port_range has \"garbage\""));
    }
}
