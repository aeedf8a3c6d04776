//! `AddressAllocation`: who has an address. Its name is the address, so that an API server itself sees to it that
//! no address is given away twice.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::types::{ObjectName, Owner};
use super::time;

/// On each object that Kanmon makes: the cluster set whose it is.
pub const CLUSTER_SET_LABEL: &str = "kanmon.dev/cluster-set-id";
/// On allocations of gateways that look after some members only: which gateways; see [`Owner::group`].
pub const GROUP_LABEL: &str = "kanmon.dev/gateway-group";

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kanmon.dev",
    version = "v1alpha1",
    kind = "AddressAllocation",
    doc = "Who has an address. Made and removed by Kanmon; its name is the address.",
    shortname = "aa",
    category = "kanmon",
    derive = "PartialEq",
    status = "AddressAllocationStatus",
    printcolumn(name = "ADDRESS", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "POOL", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "NAMESPACE", type_ = "string", json_path = ".spec.services[0].namespace"),
    printcolumn(name = "SERVICE", type_ = "string", json_path = ".spec.services[0].name"),
    printcolumn(name = "SHARED", type_ = "string", json_path = ".spec.sharedAddress"),
    printcolumn(
        name = "NOT-PROGRAMMED-ON",
        type_ = "string",
        json_path = ".status.gateways[?(@.programmed==false)].name"
    ),
    printcolumn(
        name = "REASON",
        type_ = "string",
        json_path = ".status.gateways[?(@.programmed==false)].reason"
    ),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AddressAllocationSpec {
    /// The address, in its canonical text form.
    #[schemars(length(max = 39))]
    pub address: String,
    /// The AddressPool that it came from; unset where a Service named it and no pool has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pool: Option<String>,
    /// What its Services say in `kanmon.dev/shared-address`; unset: there is one Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub shared_address: Option<String>,
    /// Who has it: more than one only where they share it.
    #[schemars(length(max = 256))]
    pub services: Vec<ServiceReference>,
}

/// A Service, in whichever cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReference {
    /// Namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name.
    #[schemars(length(max = 63))]
    pub name: String,
}

impl From<&ObjectName> for ServiceReference {
    fn from(name: &ObjectName) -> Self {
        Self { namespace: name.namespace.clone(), name: name.name.clone() }
    }
}

impl From<&ServiceReference> for ObjectName {
    fn from(reference: &ServiceReference) -> Self {
        Self { namespace: reference.namespace.clone(), name: reference.name.clone() }
    }
}

/// What the gateways make of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressAllocationStatus {
    /// Each gateway writes its own entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub gateways: Vec<GatewayState>,
}

/// What one gateway makes of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayState {
    /// The gateway: its Node, or host.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Whether its packet program forwards what is sent to this address.
    pub programmed: bool,
    /// One word: `Programmed`, or why not.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// Why not and what to do, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Since when `programmed` is what it is.
    #[schemars(schema_with = "time")]
    pub since: Time,
}

impl AddressAllocationSpec {
    /// The address; `None` where somebody wrote something else there.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address.parse().ok()
    }
}

impl AddressAllocation {
    /// Whose it is, as its labels say; `None`: not one of Kanmon's.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        let labels = self.metadata.labels.as_ref()?;
        Some(Owner {
            cluster_set_id: labels.get(CLUSTER_SET_LABEL)?.clone(),
            group: labels.get(GROUP_LABEL).cloned().unwrap_or_default(),
        })
    }
}

/// The name of an address's object: the address itself, an IPv6 one written out with dashes (a colon is no legal
/// letter of a name), for example `fd00-0100-0000-0000-0000-0000-0000-0010`.
#[must_use]
pub fn allocation_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            v6.segments().iter().map(|segment| format!("{segment:04x}")).collect::<Vec<_>>().join("-")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_one_legal_name() {
        assert_eq!(allocation_name("192.0.2.1".parse().unwrap()), "192.0.2.1");
        let name = allocation_name("fd00:100::10".parse().unwrap());
        assert_eq!(name, "fd00-0100-0000-0000-0000-0000-0000-0010");
    }
}
