//! The gateway's settings: flags and file.
//!
//! [`Options`] is what a person wrote, on the command line or in the file (YAML, the same names); flags
//! override the file, and [`Settings`] is the checked result with every default filled in.

mod duration;
mod options;
mod selector;
mod settings;
mod source;
#[cfg(test)]
mod tests;
pub(crate) mod yaml;

pub use duration::{format_duration, parse_duration};
pub use options::{Options, load};
pub use selector::MemberSelector;
pub use settings::{Echo, LogLevel, Settings, SettingsError, SnatPorts, TableSizes, Timeouts, XdpMode};
pub use source::{GatewayAccess, KubernetesSettings, Source};
