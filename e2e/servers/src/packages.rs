//! What the system has to bring for clusters of real nodes, by the names of Debian's packages.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// How one tells that a package is there.
enum Sign {
    /// A program that can be found.
    Program(&'static str),
    /// A library that pkg-config knows.
    Library(&'static str),
}

const WANTED: [(Sign, &str); 13] = [
    (Sign::Program("ip"), "iproute2"),
    (Sign::Program("bridge"), "iproute2"),
    (Sign::Program("nft"), "nftables"),
    (Sign::Program("conntrack"), "conntrack"),
    (Sign::Program("sysctl"), "procps"),
    (Sign::Program("setpriv"), "util-linux"),
    (Sign::Program("unshare"), "util-linux"),
    (Sign::Program("nsenter"), "util-linux"),
    (Sign::Program("mount"), "mount"),
    (Sign::Program("mkfs.ext4"), "e2fsprogs"),
    (Sign::Program("strip"), "binutils"),
    (Sign::Program("pkg-config"), "pkg-config"),
    (Sign::Library("libseccomp"), "libseccomp-dev"),
];

/// What this machine lacks of it.
#[must_use]
pub fn missing() -> Vec<&'static str> {
    let mut missing: Vec<&str> =
        WANTED.iter().filter(|(sign, _)| !is_there(sign)).map(|(_, package)| *package).collect();
    missing.dedup();
    missing
}

fn is_there(sign: &Sign) -> bool {
    let mut look = match sign {
        Sign::Program(program) => {
            let mut look = Command::new("which");
            look.arg(program);
            look
        }
        Sign::Library(library) => {
            let mut look = Command::new("pkg-config");
            look.args(["--exists", library]);
            look
        }
    };
    look.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Whether packages may be installed here: by root, where apt-get is.
#[must_use]
pub fn may_install() -> bool {
    cfg!(target_os = "linux") && nix::unistd::geteuid().is_root() && is_there(&Sign::Program("apt-get"))
}

/// Installs these.
///
/// # Errors
/// When apt-get can't, as without a network.
pub fn install(packages: &[&str]) -> Result<()> {
    for arguments in [&["update", "-q"][..], &["install", "-q", "-y", "--no-install-recommends"]] {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        if arguments[0] == "install" {
            command.args(packages);
        }
        let output = command.output().context("apt-get can't be started")?;
        ensure!(
            output.status.success(),
            "apt-get {} failed: {}",
            arguments[0],
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
