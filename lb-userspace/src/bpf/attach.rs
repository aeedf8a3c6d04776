//! Attaching to interfaces: natively first, never over somebody else's program, and never so that it could
//! not be pinned.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::loaded_programs;
use nix::net::if_::if_nametoindex;

use super::ethtool::{self, VlanOffload};
use super::load::Kernel;
use super::pins::{self, PinDir, PinError};
use super::{host, netlink, sys};

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`.
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver; where the driver can't, in the kernel's generic path, with a warning.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the kernel's generic path: on any interface, at several times the cost.
    Generic,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the kernel's generic path.
    Generic,
}

/// One interface with the program on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The interface's name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// How the program is attached.
    pub mode: AttachedMode,
    /// Whether the attachment was found and got the new program, without a packet lost.
    pub adopted: bool,
    /// What a person should know: a fallback with the driver's reason, an offload switched off.
    pub notes: Vec<String>,
}

/// Why the program can't be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No such interface.
    #[error("there is no interface {name}; there are: {existing}")]
    UnknownInterface {
        /// The name.
        name: String,
        /// The interfaces of this network namespace.
        existing: String,
    },
    /// Somebody else's program is there.
    #[error(
        "{interface} already runs an XDP program of somebody else ({program}): it is not replaced; take it off \
         first (`ip link set dev {interface} xdp off`, or stop what attached it)"
    )]
    Foreign {
        /// The interface.
        interface: String,
        /// The program's id and name.
        program: String,
    },
    /// The driver refuses.
    #[error("{interface} (driver {driver}) refuses XDP in {mode} mode: {reason}{hint}")]
    Refused {
        /// The interface.
        interface: String,
        /// Its driver.
        driver: String,
        /// `native` or `generic`.
        mode: &'static str,
        /// The driver's own words where there are any, else what the error means.
        reason: String,
        /// What to do; empty or begins with `; `.
        hint: String,
    },
    /// VLAN tags would be hidden from the program.
    #[error(
        "{interface} strips VLAN tags in hardware ({features}) and that can't be switched off{}: tagged packets \
         would not be recognised; try `ethtool -K {interface} rxvlan off`, or use another interface",
        .source.as_ref().map(|source| format!(" ({source})")).unwrap_or_default()
    )]
    VlanOffload {
        /// The interface.
        interface: String,
        /// ethtool's names of the features.
        features: String,
        /// Why not, where the kernel said so.
        source: Option<io::Error>,
    },
    /// Pins can't be read or written.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A question to the kernel failed.
    #[error("can't {action} {interface}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// On which interface.
        interface: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// A pinned link.
struct PinnedLink {
    path: PathBuf,
    fd: OwnedFd,
    info: sys::XdpLinkInfo,
}

impl Kernel {
    /// Attaches to the interfaces and detaches from those that are no longer named. An attachment found
    /// pinned gets the new program from one packet to the next.
    ///
    /// # Errors
    ///
    /// Names the interface and the reason. What this call attached is then detached again; attachments that
    /// it found go on forwarding.
    pub fn attach(&mut self, interfaces: &[String], mode: XdpMode) -> Result<Vec<Attachment>, AttachError> {
        let (links, dead): (Vec<_>, Vec<_>) =
            pinned_links(&self.pins.links())?.into_iter().partition(|link| link.info.ifindex != 0);
        for link in &dead {
            remove_link(link)?;
        }
        let wanted = interfaces.iter().map(|name| resolve(name)).collect::<Result<Vec<_>, _>>()?;
        for (name, ifindex) in &wanted {
            refuse_foreign(name, *ifindex, &links)?;
        }
        let mut attachments: Vec<Attachment> = Vec::new();
        for (name, ifindex) in &wanted {
            let link = links.iter().find(|link| link.info.ifindex == *ifindex);
            match self.attach_one(name, *ifindex, mode, link) {
                Ok(attachment) => attachments.push(attachment),
                Err(error) => {
                    for made in attachments.iter().filter(|attachment| !attachment.adopted) {
                        let _ = fs::remove_file(self.pins.link(&made.interface, made.ifindex));
                    }
                    return Err(error);
                }
            }
        }
        for link in &links {
            if !wanted.iter().any(|(_, ifindex)| *ifindex == link.info.ifindex) {
                tracing::info!(link = %link.path.display(), "detaching from an interface no longer named");
                remove_link(link)?;
            }
        }
        self.drop_old_program_arrays()?;
        Ok(attachments)
    }

    fn attach_one(
        &self,
        name: &str,
        ifindex: u32,
        mode: XdpMode,
        found: Option<&PinnedLink>,
    ) -> Result<Attachment, AttachError> {
        let mut notes = Vec::new();
        if let Some(note) = show_vlan_tags(name)? {
            notes.push(note);
        }
        if let Some(link) = found
            && let Some(mode) = self.adopt(name, link, mode)?
        {
            return Ok(Attachment { interface: name.to_owned(), ifindex, mode, adopted: true, notes });
        }
        let mode = match mode {
            XdpMode::Generic => self.attach_new(name, ifindex, AttachedMode::Generic)?,
            XdpMode::Native => self.attach_new(name, ifindex, AttachedMode::Native)?,
            XdpMode::Auto => match self.attach_new(name, ifindex, AttachedMode::Native) {
                Err(error @ AttachError::Refused { .. }) => {
                    let generic = self.attach_new(name, ifindex, AttachedMode::Generic)?;
                    notes.push(format!(
                        "{error}. Attached in generic mode, at several times the cost a packet"
                    ));
                    generic
                }
                result => result?,
            },
        };
        Ok(Attachment { interface: name.to_owned(), ifindex, mode, adopted: false, notes })
    }

    /// Gives a link that was found the new program. `None`: it was of another mode, and is removed.
    fn adopt(
        &self,
        name: &str,
        link: &PinnedLink,
        mode: XdpMode,
    ) -> Result<Option<AttachedMode>, AttachError> {
        let attached = query(name, link.info.ifindex)?.program.map(|(_, mode)| mode);
        let fits = match (mode, attached) {
            (_, None) => false,
            (XdpMode::Auto, Some(_)) => true,
            (XdpMode::Native, Some(attached)) => attached == AttachedMode::Native,
            (XdpMode::Generic, Some(attached)) => attached == AttachedMode::Generic,
        };
        if !fits {
            remove_link(link)?;
            return Ok(None);
        }
        sys::link_update(link.fd.as_fd(), self.entry.as_fd()).map_err(|source| AttachError::System {
            action: "replace the program on",
            interface: name.to_owned(),
            source,
        })?;
        Ok(attached)
    }

    fn attach_new(&self, name: &str, ifindex: u32, mode: AttachedMode) -> Result<AttachedMode, AttachError> {
        let flag = match mode {
            AttachedMode::Native => DRV_MODE,
            AttachedMode::Generic => SKB_MODE,
        };
        let link = match sys::link_create(self.entry.as_fd(), ifindex, flag) {
            Ok(link) => link,
            Err(error) => return Err(self.refusal(name, ifindex, mode, flag, &error)),
        };
        let path = self.pins.link(name, ifindex);
        sys::pin(link.as_fd(), &path).map_err(|source| PinError::File {
            action: "pin the link at",
            path,
            source,
        })?;
        Ok(mode)
    }

    fn refusal(
        &self,
        name: &str,
        ifindex: u32,
        mode: AttachedMode,
        flag: u32,
        error: &io::Error,
    ) -> AttachError {
        if error.raw_os_error() == Some(libc::EBUSY) {
            let program = query(name, ifindex).ok().and_then(|found| found.program).map(|(id, _)| id);
            return AttachError::Foreign { interface: name.to_owned(), program: program_name(program) };
        }
        let driver = ethtool::driver(name).unwrap_or_else(|_| "unknown".to_owned());
        let said = netlink::why_refused(ifindex, self.entry.as_fd(), flag);
        let mtu = query(name, ifindex).map(|found| found.mtu).unwrap_or_default();
        let (reason, hint) = explain(&driver, said.as_deref(), error, mtu);
        AttachError::Refused {
            interface: name.to_owned(),
            driver,
            mode: match mode {
                AttachedMode::Native => "native",
                AttachedMode::Generic => "generic",
            },
            reason,
            hint: hint.map(|hint| format!("; {hint}")).unwrap_or_default(),
        }
    }

    /// Removes the program arrays of earlier program versions, which no link runs any more.
    fn drop_old_program_arrays(&self) -> Result<(), AttachError> {
        for path in pins::entries(&self.pins.programs())? {
            if path != self.program_array {
                fs::remove_file(&path).map_err(|source| PinError::File { action: "remove", path, source })?;
            }
        }
        Ok(())
    }
}

/// Refuses what [`Kernel::attach`] would refuse because of somebody else's program, before anything is loaded
/// or made.
///
/// # Errors
///
/// Names the interface that is not there, or that runs somebody else's program.
pub fn refuse_foreign_programs(pin_dir: &Path, interfaces: &[String]) -> Result<(), AttachError> {
    let links = pinned_links(&PinDir::at(pin_dir).links())?;
    for name in interfaces {
        let (name, ifindex) = resolve(name)?;
        refuse_foreign(&name, ifindex, &links)?;
    }
    Ok(())
}

/// Index of an interface.
fn resolve(name: &str) -> Result<(String, u32), AttachError> {
    match if_nametoindex(OsStr::new(name)) {
        Ok(ifindex) => Ok((name.to_owned(), ifindex)),
        Err(_) => {
            Err(AttachError::UnknownInterface { name: name.to_owned(), existing: host::interface_names() })
        }
    }
}

fn query(name: &str, ifindex: u32) -> Result<netlink::Interface, AttachError> {
    netlink::interface(ifindex).map_err(|source| AttachError::System {
        action: "ask for the XDP program on",
        interface: name.to_owned(),
        source,
    })
}

/// Refuses an interface whose program is not that of our link to it.
fn refuse_foreign(name: &str, ifindex: u32, links: &[PinnedLink]) -> Result<(), AttachError> {
    let Some((id, _)) = query(name, ifindex)?.program else { return Ok(()) };
    let ours = links.iter().any(|link| link.info.ifindex == ifindex && link.info.program == id);
    if ours {
        return Ok(());
    }
    Err(AttachError::Foreign { interface: name.to_owned(), program: program_name(Some(id)) })
}

fn program_name(id: Option<u32>) -> String {
    let Some(id) = id else { return "unknown".to_owned() };
    let name = loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_default();
    if name.is_empty() { format!("id {id}") } else { format!("id {id}, name {name}") }
}

/// Switches off what hides VLAN tags; gives a note if it was on.
fn show_vlan_tags(name: &str) -> Result<Option<String>, AttachError> {
    let refused =
        |features: String, source| AttachError::VlanOffload { interface: name.to_owned(), features, source };
    match ethtool::switch_vlan_offload_off(name) {
        Ok(VlanOffload::WasOff) => Ok(None),
        Ok(VlanOffload::SwitchedOff) => {
            Ok(Some(format!("switched rx-vlan-offload of {name} off: it hides VLAN tags from XDP")))
        }
        Ok(VlanOffload::Fixed(features)) => Err(refused(features.join(", "), None)),
        Err(error) => Err(refused("rx-vlan-offload".to_owned(), Some(error))),
    }
}

/// The links pinned in a directory. A link whose interface is gone has index 0.
fn pinned_links(directory: &Path) -> Result<Vec<PinnedLink>, PinError> {
    let mut links = Vec::new();
    for path in pins::entries(directory)? {
        let opened = sys::open_pin(&path).and_then(|fd| {
            let info = sys::link_info(fd.as_fd())?;
            Ok((fd, info))
        });
        match opened {
            Ok((fd, info)) => links.push(PinnedLink { path, fd, info }),
            Err(source) => return Err(PinError::File { action: "open the link", path, source }),
        }
    }
    Ok(links)
}

fn remove_link(link: &PinnedLink) -> Result<(), PinError> {
    // A link whose interface is gone is detached already.
    let _ = sys::link_detach(link.fd.as_fd());
    fs::remove_file(&link.path).map_err(|source| PinError::File {
        action: "remove",
        path: link.path.clone(),
        source,
    })
}

/// Why a driver refused, and what to do about it.
fn explain(driver: &str, said: Option<&str>, error: &io::Error, mtu: u32) -> (String, Option<String>) {
    let code = error.raw_os_error();
    let reason = match (said, code) {
        (Some(said), _) => format!("\"{said}\" ({error})"),
        (None, Some(libc::EOPNOTSUPP)) => {
            "the driver has no native XDP, or not with these settings".to_owned()
        }
        (None, Some(libc::ENOMEM)) => "out of memory or queues".to_owned(),
        (None, _) => error.to_string(),
    };
    let hint = match (driver, code) {
        ("virtio_net", Some(libc::EOPNOTSUPP)) => Some(
            "virtio_net needs guest offloads off: give the device the host options guest_tso4=off,\
             guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_csum=off, or ctrl_guest_offloads=on"
                .to_owned(),
        ),
        ("virtio_net", Some(libc::ENOMEM)) => Some(
            "virtio_net needs one more queue for each CPU: raise the device's queues to twice the CPUs, or \
             lower those in use (`ethtool -L`)"
                .to_owned(),
        ),
        (_, Some(libc::EINVAL | libc::ERANGE | libc::EOPNOTSUPP)) if mtu > 3498 => Some(format!(
            "its MTU is {mtu}, and native XDP needs a frame to fit one page: lower the MTU to 3498 or less"
        )),
        (_, Some(libc::EINVAL)) if mtu > 1500 => Some(format!("its MTU is {mtu}: try 1500")),
        (_, Some(libc::EOPNOTSUPP)) => Some("xdpMode: generic works on any interface".to_owned()),
        _ => None,
    };
    (reason, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn the_drivers_own_words_come_first() {
        let (reason, hint) = explain(
            "virtio_net",
            Some("Can't set XDP while host is implementing GRO_HW/CSUM"),
            &refused(libc::EOPNOTSUPP),
            1500,
        );
        assert!(reason.starts_with("\"Can't set XDP while host is implementing GRO_HW/CSUM\""), "{reason}");
        assert!(hint.expect("a hint").contains("guest_tso4=off"));
    }

    #[test]
    fn virtio_nets_missing_queues_are_explained() {
        let (_, hint) = explain("virtio_net", None, &refused(libc::ENOMEM), 1500);
        assert!(hint.expect("a hint").contains("queue"));
    }

    #[test]
    fn a_large_mtu_is_named() {
        let (_, hint) = explain("veth", None, &refused(libc::ERANGE), 9000);
        assert!(hint.expect("a hint").contains("9000"));
    }

    #[test]
    fn an_unknown_interface_is_answered_with_those_that_exist() {
        let message = resolve("no-such-eth7").expect_err("there is none").to_string();
        assert!(message.starts_with("there is no interface no-such-eth7; there are: "), "{message}");
        assert!(message.contains("lo"), "{message}");
    }
}
