//! A site of its own for a cluster: namespaces in which nothing that runs or is set up can reach or outlive anything else.
//!
//! The kernel cleans up: when the first process of the site ends, everything in it ends, with its networks and its mounts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::packages;

/// Set in the environment of what runs inside.
const INSIDE: &str = "TANDEM_SITE";
/// Of the names of sites.
const PREFIX: &str = "tandem-site-";
/// In a site's folder, locked by its owner.
const HELD: &str = "held";
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
    let missing = packages::missing();
    if !missing.is_empty() {
        return Some(format!("nodes want packages: apt-get install {}", missing.join(" ")));
    }
    let known = CONTROLLERS.iter().all(|name| Path::new("/sys/fs/cgroup").join(name).is_dir());
    if !known { Some("nodes want cgroup v1, as this harness knows no other".to_owned()) } else { None }
}

/// Whether this process runs inside of a site; its name.
#[must_use]
pub fn inside() -> Option<String> {
    std::env::var(INSIDE).ok()
}

/// Runs this very program again, with these arguments, inside of a new site, and removes what the kernel leaves: of this site, and of
/// those whose owners were killed before they could.
///
/// # Errors
/// When namespaces can't be made.
pub fn run_inside(arguments: &[String]) -> Result<ExitStatus> {
    let site = Site::create()?;
    let program = std::env::current_exe().context("this program's own path is unknown")?;
    // Built anew since it was started, as by `cargo build`: what is there now is meant.
    let program = program.display().to_string();
    let program = program.strip_suffix(" (deleted)").unwrap_or(&program);
    // However this process ends, the kernel ends `unshare` with it, and with that the site's first process.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "unshare"])
        .args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(arguments)
        .env(INSIDE, &site.name)
        .env("TMPDIR", &site.dir)
        .status()
        .context("setpriv can't be started")?;
    Ok(status)
}

/// What no namespace takes along: folders of cgroups, and one for temporary files.
struct Site {
    /// Of its folder and of its cgroups.
    name: String,
    dir: PathBuf,
    /// The kernel lets it go with the process that holds it, however that ends: what nobody holds is a leftover.
    _held: Flock<File>,
}

impl Site {
    fn create() -> Result<Self> {
        let temporary = std::env::temp_dir();
        // A folder that is made and not held yet would look like a leftover.
        let _alone = hold(&temporary.join("tandem-sites.lock"), FlockArg::LockExclusive)?;
        for name in remove_leftovers(&temporary)? {
            eprintln!("   {name}, which a killed run had left, is removed");
        }
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir().context("no temporary folder")?;
        let held = hold(&dir.path().join(HELD), FlockArg::LockExclusive)?;
        let name = dir.path().file_name().context("a folder has a name")?.display().to_string();
        let site = Self { name, dir: dir.keep(), _held: held };
        for controller in CONTROLLERS {
            let group = group(controller, &site.name);
            fs::create_dir(&group).with_context(|| format!("{} can't be made", group.display()))?;
        }
        Ok(site)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        remove_site(&self.dir, &self.name);
    }
}

fn hold(path: &Path, how: FlockArg) -> Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("{} can't be made", path.display()))?;
    let held = Flock::lock(file, how).map_err(|(_, error)| error);
    held.with_context(|| format!("{} is held by somebody", path.display()))
}

/// Removes sites whose owners are gone; their names.
fn remove_leftovers(temporary: &Path) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(temporary).context("temporary files can't be listed")? {
        let entry = entry.context("temporary files can't be listed")?;
        let name = entry.file_name().display().to_string();
        if name.starts_with(PREFIX)
            && entry.path().is_dir()
            && let Ok(_held) = hold(&entry.path().join(HELD), FlockArg::LockExclusiveNonblock)
        {
            remove_site(&entry.path(), &name);
            removed.push(name);
        }
    }
    Ok(removed)
}

fn remove_site(dir: &Path, name: &str) {
    for controller in CONTROLLERS {
        let group = group(controller, name);
        // A group can be removed once its last process is reaped, which the kernel may still be about.
        for _ in 0..100 {
            remove(&group);
            if !group.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
    if let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("   {} can't be removed ({error}): remove it by hand", dir.display());
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_is_removed_and_nothing_else() {
        let temporary = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let dir = temporary.path().join(name);
            fs::create_dir_all(dir.join("tandem-etcd-x")).unwrap();
            fs::write(dir.join("tandem-etcd-x/log"), "").unwrap();
            dir
        };
        let dead = make("tandem-site-dead");
        let living = make("tandem-site-living");
        let other = make("tandem-kubernetes-x");
        let held = hold(&living.join(HELD), FlockArg::LockExclusive).unwrap();
        assert_eq!(remove_leftovers(temporary.path()).unwrap(), ["tandem-site-dead"]);
        assert!(!dead.exists() && living.exists() && other.exists());
        drop(held);
        assert_eq!(remove_leftovers(temporary.path()).unwrap(), ["tandem-site-living"]);
        assert!(!living.exists() && other.exists());
    }
}
