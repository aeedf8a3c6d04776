//! What a Service asks for: addresses by name, a scope, company.

use std::net::IpAddr;

use super::super::fronts::{Front, annotation};
use super::super::problems::{self, Problems};
use super::super::resources::PoolScope;
use super::super::types::Reason;
use super::{ADDRESSES_ANNOTATION, SCOPE_ANNOTATION, SHARED_ADDRESS_ANNOTATION};

/// As long as the field of AddressAllocation that it is written into.
const LONGEST_KEY: usize = 253;

/// What a Service asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The addresses that it names, at most one a family; `None`: the choice is left to the pools.
    pub(super) named: Option<Vec<IpAddr>>,
    pub(super) scope: ScopeWish,
    /// Who says the same word here may share an address.
    pub(super) key: Option<String>,
}

/// Of which pools an address may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScopeWish {
    Any,
    Only(PoolScope),
    /// What is asked for cannot be read: better no address than one that everybody reaches.
    Unreadable,
}

impl ScopeWish {
    pub(super) fn allows(self, scope: PoolScope) -> bool {
        match self {
            Self::Any => true,
            Self::Only(wanted) => wanted == scope,
            Self::Unreadable => false,
        }
    }
}

/// Reads the annotations and `spec.loadBalancerIP`; says what is wrong with them.
pub(super) fn read(front: &Front<'_>, problems: &mut Problems) -> Wish {
    Wish { named: named(front, problems), scope: scope(front, problems), key: key(front, problems) }
}

fn named(front: &Front<'_>, problems: &mut Problems) -> Option<Vec<IpAddr>> {
    let (source, text) = match annotation(front.service, ADDRESSES_ANNOTATION) {
        Some(text) => (ADDRESSES_ANNOTATION, text),
        None => {
            let field = front.service.spec.as_ref()?.load_balancer_ip.as_deref();
            ("spec.loadBalancerIP", field.filter(|text| !text.is_empty())?)
        }
    };
    let mut vips: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let vip = part
            .parse::<IpAddr>()
            .map_err(|_| format!("{part:?} is not an IP address"))
            .and_then(|vip| usable(vip).map(|()| vip))
            .and_then(|vip| match vips.iter().find(|other| other.is_ipv4() == vip.is_ipv4()) {
                Some(other) => Err(format!("{vip} is not used, because {other} is of its family")),
                None => Ok(vip),
            });
        match vip {
            Ok(vip) => vips.push(vip),
            Err(what) => problems.error(
                front.cluster,
                problems::service(&front.name),
                Reason::InvalidAddress,
                format!("{source}: {what}; name at most one address a family"),
            ),
        }
    }
    if text.split(',').all(|part| part.trim().is_empty()) {
        let message =
            format!("{source} names no address, so there is no VIP; name one, or remove it to get one");
        problems.error(front.cluster, problems::service(&front.name), Reason::InvalidAddress, message);
    }
    Some(vips)
}

fn usable(vip: IpAddr) -> Result<(), String> {
    let wrong = vip.is_unspecified()
        || vip.is_loopback()
        || vip.is_multicast()
        || match vip {
            IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
        };
    if wrong { Err(format!("{vip} cannot be a VIP: it is not a routable unicast address")) } else { Ok(()) }
}

fn scope(front: &Front<'_>, problems: &mut Problems) -> ScopeWish {
    match annotation(front.service, SCOPE_ANNOTATION) {
        None => ScopeWish::Any,
        Some("Internal") => ScopeWish::Only(PoolScope::Internal),
        Some("Public") => ScopeWish::Only(PoolScope::Public),
        Some(other) => {
            let message = format!(
                "{SCOPE_ANNOTATION}: {other:?} is neither Internal nor Public, so no pool gives an address; \
                 correct it, or remove it"
            );
            let object = problems::service(&front.name);
            problems.error(front.cluster, object, Reason::InvalidAnnotation, message);
            ScopeWish::Unreadable
        }
    }
}

fn key(front: &Front<'_>, problems: &mut Problems) -> Option<String> {
    let key = annotation(front.service, SHARED_ADDRESS_ANNOTATION)?.trim();
    if !key.is_empty() && key.len() <= LONGEST_KEY {
        return Some(key.to_owned());
    }
    let message = format!(
        "{SHARED_ADDRESS_ANNOTATION} must be a word of 1 to {LONGEST_KEY} letters that all Services of the \
         address say; the Service shares no address"
    );
    problems.error(front.cluster, problems::service(&front.name), Reason::InvalidAnnotation, message);
    None
}
