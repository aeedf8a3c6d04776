//! Manifests: the YAML that kubectl takes.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_saphyr::Spanned;
use thiserror::Error;

use crate::config::yaml;
use crate::desired::mcs::{self, ServiceExport};
use crate::desired::{AddressPool, LoadBalancingPolicy, MemberCluster};

/// An object of a kind that is used.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    Slice(Box<EndpointSlice>),
    /// A ServiceExport.
    Export(Box<ServiceExport>),
    /// An AddressPool.
    Pool(Box<AddressPool>),
    /// A MemberCluster.
    Member(Box<MemberCluster>),
    /// A LoadBalancingPolicy that makes sense.
    Policy(Box<LoadBalancingPolicy>),
}

impl Object {
    /// Kind and name, for messages.
    #[must_use]
    pub fn title(&self) -> String {
        let (kind, metadata) = match self {
            Self::Service(object) => ("Service", &object.metadata),
            Self::Slice(object) => ("EndpointSlice", &object.metadata),
            Self::Export(object) => ("ServiceExport", &object.metadata),
            Self::Pool(object) => ("AddressPool", &object.metadata),
            Self::Member(object) => ("MemberCluster", &object.metadata),
            Self::Policy(object) => ("LoadBalancingPolicy", &object.metadata),
        };
        format!("{kind} {}", metadata.name.as_deref().unwrap_or_default())
    }

    /// Whether it belongs to the gateway rather than to a cluster.
    #[must_use]
    pub const fn is_of_gateway(&self) -> bool {
        matches!(self, Self::Pool(_) | Self::Member(_) | Self::Policy(_))
    }
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// In the order of the file.
    pub objects: Vec<Object>,
    /// Kinds that are not used, `apiVersion/kind`.
    pub ignored: Vec<String>,
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {what}")]
pub struct ManifestError {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// What is wrong there.
    pub what: String,
}

/// Parses the text of a file: any number of YAML documents, each an object or a `List` of them.
///
/// # Errors
///
/// The first document that is not YAML, not an object, or not what its kind says; where, and why.
pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
    let mut manifest = Manifest::default();
    for document in documents(text) {
        document.read(&mut manifest)?;
    }
    Ok(manifest)
}

/// What every object has, and all that decides how the rest is read.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
    items: Option<IgnoredAny>,
}

/// The items of a `List`; each is read again once its kind is known.
#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Spanned<serde_json::Value>>,
}

struct Document<'a> {
    text: &'a str,
    /// Lines of the file before this document.
    lines_before: u64,
}

/// Whether this is an apiVersion of ServiceExports that works.
fn is_mcs(api_version: &str) -> bool {
    api_version
        .split_once('/')
        .is_some_and(|(group, version)| group == mcs::GROUP && mcs::VERSIONS.contains(&version))
}

/// Refuses what an API server would refuse: then what was good before stays.
fn check(policy: &LoadBalancingPolicy) -> Result<(), String> {
    let errors = policy.spec.errors();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Splits a file at its document markers. A line that begins with `---` is one wherever it stands: inside a
/// scalar it is not allowed (YAML 1.2.2, rule c-forbidden).
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 0, 0);
    for (number, line) in (0_u64..).zip(text.split_inclusive('\n')) {
        if line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        {
            documents.push(Document { text: &text[start..offset], lines_before: first_line });
            (start, first_line) = (offset, number);
        }
        offset += line.len();
    }
    documents.push(Document { text: &text[start..], lines_before: first_line });
    documents
}

impl Document<'_> {
    fn read(&self, manifest: &mut Manifest) -> Result<(), ManifestError> {
        if self.is_empty() {
            return Ok(());
        }
        let header: Header = self.parse()?;
        let kind = header.kind.ok_or_else(|| self.error_at_start("has no kind; every object has one"))?;
        let api_version = header
            .api_version
            .ok_or_else(|| self.error_at_start("has no apiVersion; every object has one"))?;
        if header.items.is_some() && api_version == "v1" && kind == "List" {
            return self.read_list(manifest);
        }
        match (api_version.as_str(), kind.as_str()) {
            ("v1", "Service") => manifest.objects.push(Object::Service(self.parse()?)),
            ("discovery.k8s.io/v1", "EndpointSlice") => manifest.objects.push(Object::Slice(self.parse()?)),
            ("kanmon.dev/v1alpha1", "AddressPool") => manifest.objects.push(Object::Pool(self.parse()?)),
            ("kanmon.dev/v1alpha1", "MemberCluster") => manifest.objects.push(Object::Member(self.parse()?)),
            ("kanmon.dev/v1alpha1", "LoadBalancingPolicy") => {
                let policy: Box<LoadBalancingPolicy> = self.parse()?;
                check(&policy).map_err(|what| self.error_at_start(&what))?;
                manifest.objects.push(Object::Policy(policy));
            }
            (version, "ServiceExport") if is_mcs(version) => {
                manifest.objects.push(Object::Export(self.parse()?));
            }
            _ => manifest.ignored.push(format!("{api_version}/{kind}")),
        }
        Ok(())
    }

    fn read_list(&self, manifest: &mut Manifest) -> Result<(), ManifestError> {
        for item in self.parse::<List>()?.items {
            let (line, column) = (self.lines_before + item.referenced.line(), item.referenced.column());
            let field = |name| item.value.get(name).and_then(|value| value.as_str()).unwrap_or_default();
            let (api_version, kind) = (field("apiVersion").to_owned(), field("kind").to_owned());
            let object = match (api_version.as_str(), kind.as_str()) {
                ("v1", "Service") => serde_json::from_value(item.value).map(Object::Service),
                ("discovery.k8s.io/v1", "EndpointSlice") => {
                    serde_json::from_value(item.value).map(Object::Slice)
                }
                ("kanmon.dev/v1alpha1", "AddressPool") => {
                    serde_json::from_value(item.value).map(Object::Pool)
                }
                ("kanmon.dev/v1alpha1", "MemberCluster") => {
                    serde_json::from_value(item.value).map(Object::Member)
                }
                ("kanmon.dev/v1alpha1", "LoadBalancingPolicy") => {
                    serde_json::from_value::<Box<LoadBalancingPolicy>>(item.value).and_then(|policy| {
                        check(&policy).map_err(serde::de::Error::custom)?;
                        Ok(Object::Policy(policy))
                    })
                }
                (version, "ServiceExport") if is_mcs(version) => {
                    serde_json::from_value(item.value).map(Object::Export)
                }
                _ => {
                    manifest.ignored.push(format!("{api_version}/{kind}"));
                    continue;
                }
            };
            let object = object.map_err(|error| ManifestError {
                line,
                column,
                what: format!("in the {kind} that begins here: {error}"),
            })?;
            manifest.objects.push(object);
        }
        Ok(())
    }

    /// Whether there is nothing but comments and markers.
    fn is_empty(&self) -> bool {
        self.text.lines().all(|line| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            line.is_empty() || line.starts_with('#') || line == "..."
        })
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, ManifestError> {
        // Thousands of endpoints in one document are nothing unusual, the default limits are below that.
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_events: 100_000_000, max_nodes: 50_000_000 },
        };
        serde_saphyr::from_str_with_options(self.text, options).map_err(|error| {
            let (line, column, what) = yaml::locate(&error);
            ManifestError { line: self.lines_before + line, column, what }
        })
    }

    fn error_at_start(&self, what: &str) -> ManifestError {
        let is_content = |line: &str| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#') && line != "---"
        };
        let before = self.text.lines().take_while(|line| !is_content(line)).count();
        ManifestError { line: self.lines_before + before as u64 + 1, column: 1, what: what.to_owned() }
    }
}
