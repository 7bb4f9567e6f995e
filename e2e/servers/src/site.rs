//! A site of its own for a cluster: namespaces in which nothing that runs or is set up can reach or outlive anything else.
//!
//! The kernel cleans up: when the first process of the site ends, everything in it ends, with its networks and its mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, ensure};

/// Set in the environment of what runs inside.
const INSIDE: &str = "TANDEM_SITE";
/// Controllers of cgroup v1 that nodes get a folder in.
pub(crate) const CONTROLLERS: [&str; 9] =
    ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"];

/// What this machine lacks for nodes; nothing: they can run here.
#[must_use]
pub fn lacks() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("nodes run on Linux only".to_owned());
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("nodes want root".to_owned());
    }
    let programs = [
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("conntrack", "conntrack"),
        ("unshare", "util-linux"),
        ("nsenter", "util-linux"),
        ("mount", "mount"),
        ("strip", "binutils"),
        ("cc", "a C compiler"),
    ];
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        return Some(format!("nodes want {}", missing.join(", ")));
    }
    let known = CONTROLLERS.iter().all(|name| Path::new("/sys/fs/cgroup").join(name).is_dir());
    if !known { Some("nodes want cgroup v1, as this harness knows no other".to_owned()) } else { None }
}

fn is_there(program: &str) -> bool {
    Command::new("which").arg(program).output().is_ok_and(|output| output.status.success())
}

/// Whether this process runs inside of a site; its name.
#[must_use]
pub fn inside() -> Option<String> {
    std::env::var(INSIDE).ok()
}

/// Runs this very program again, with these arguments, inside of a new site, and removes what the kernel leaves.
///
/// # Errors
/// When namespaces can't be made.
pub fn run_inside(arguments: &[String]) -> Result<ExitStatus> {
    let name = format!("tandem-{}", std::process::id());
    let _groups = Groups::create(&name)?;
    let program = std::env::current_exe().context("this program's own path is unknown")?;
    // Built anew since it was started, as by `cargo build`: what is there now is meant.
    let program = program.display().to_string();
    let program = program.strip_suffix(" (deleted)").unwrap_or(&program);
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(arguments)
        .env(INSIDE, &name)
        .status()
        .context("unshare can't be started")?;
    Ok(status)
}

/// Folders of cgroups: the one thing that no namespace takes along.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn create(site: &str) -> Result<Self> {
        let mut groups = Self(Vec::new());
        for controller in CONTROLLERS {
            let dir = group(controller, site);
            fs::create_dir(&dir).with_context(|| format!("{} can't be made", dir.display()))?;
            groups.0.push(dir);
        }
        Ok(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for dir in &self.0 {
            // A group can be removed once its last process is reaped, which the kernel may still be about.
            for _ in 0..100 {
                remove(dir);
                if !dir.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }
}

fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    fs::remove_dir(dir).unwrap_or_default();
}

pub(crate) fn group(controller: &str, name: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(controller).join(name)
}

/// Runs a command that has to work.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} can't be started"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
