//! What the images of the test bed are: there is no registry and no file system of their own, an image is a
//! name for a program of the machine.

use std::path::PathBuf;

use anyhow::Result;

use super::machine::Refusal;
use crate::topology::program;

/// The program that an image runs where its container has no `command`.
const IMAGES: [(&str, Program); 3] = [
    ("kanmon.dev/echo", Program::Own("kanmon-echo")),
    ("kanmon.dev/sleep", Program::Machine("/bin/sleep")),
    ("kanmon.dev/sh", Program::Machine("/bin/sh")),
];

#[derive(Clone, Copy, Debug)]
enum Program {
    /// Of this workspace, built beside the kubelet.
    Own(&'static str),
    /// Every Linux machine has it.
    Machine(&'static str),
}

/// The program of an image, whatever its tag or digest.
///
/// # Errors
/// When the bed has no such image, as a pull that fails.
pub(super) fn entry_point(image: &str) -> Result<PathBuf, Refusal> {
    let known = IMAGES.iter().find(|(name, _)| *name == without_tag(image));
    let path = match known {
        Some((_, Program::Own(name))) => program(name).map_err(|e| format!("{e:#}")),
        Some((_, Program::Machine(path))) => Ok(PathBuf::from(path)),
        None => {
            let names: Vec<&str> = IMAGES.iter().map(|(name, _)| *name).collect();
            Err(format!("the test bed has no image {image}, only {}", names.join(", ")))
        }
    };
    path.map_err(|message| Refusal { reason: "ErrImagePull", message })
}

fn without_tag(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        // A colon before the last slash is a registry's port.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_name_without_tag_and_digest() {
        for image in ["kanmon.dev/sleep", "kanmon.dev/sleep:v2", "kanmon.dev/sleep:v2@sha256:00"] {
            assert_eq!(entry_point(image).unwrap(), PathBuf::from("/bin/sleep"), "{image}");
        }
        assert_eq!(without_tag("registry:5000/echo"), "registry:5000/echo");
        let refused = entry_point("nginx:1.27").unwrap_err();
        assert_eq!(refused.reason, "ErrImagePull");
        assert!(refused.message.contains("nginx:1.27") && refused.message.contains("kanmon.dev/echo"));
    }
}
