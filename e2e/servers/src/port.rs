//! Ports that nobody has, nor gets while this process lives.

use std::env;
use std::fs::File;
use std::net::{IpAddr, TcpListener};
use std::ops::Range;
use std::process;
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Below what Linux and macOS give to connections that go out, so that none of those takes a port between its choice and its use.
const PORTS: Range<u16> = 12_000..30_000;

/// What this process has claimed: each lock goes with the process, however that ends.
static CLAIMED: Mutex<Claims> = Mutex::new(Claims { locks: Vec::new(), next: None });

struct Claims {
    locks: Vec<Flock<File>>,
    /// Where to look first.
    next: Option<u16>,
}

/// A port that is free at this address, and that no other test is given as long as this process lives. A program that has
/// nothing to do with tests may take it still.
///
/// # Errors
/// When there is none, or the folder of claims can't be written.
pub fn free_port(address: IpAddr) -> Result<u16> {
    let folder = env::temp_dir().join("tandem-test-ports");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("{} can't be made to claim ports in", folder.display()))?;
    // What a panic elsewhere left behind is whole: nothing is half done while the lock is held.
    let mut claims = CLAIMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let count = PORTS.end - PORTS.start;
    // Processes that start together begin far from each other.
    let start = claims.next.unwrap_or_else(|| {
        let scattered = process::id().wrapping_mul(7_919) % u32::from(count);
        PORTS.start + u16::try_from(scattered).unwrap_or(0)
    });
    let after = |step: u16| {
        let offset = (u32::from(start - PORTS.start) + u32::from(step)) % u32::from(count);
        PORTS.start + u16::try_from(offset).unwrap_or(0)
    };
    for port in (0..count).map(after) {
        let path = folder.join(port.to_string());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("{} can't be opened to claim a port", path.display()))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => continue,
            Err((_, error)) => return Err(error).context("a port can't be claimed"),
        };
        if TcpListener::bind((address, port)).is_ok() {
            claims.locks.push(lock);
            claims.next = Some(if port + 1 == PORTS.end { PORTS.start } else { port + 1 });
            return Ok(port);
        }
    }
    anyhow::bail!("no port of {} to {} is free", PORTS.start, PORTS.end - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let first = free_port(loopback).unwrap();
        let second = free_port(loopback).unwrap();
        assert_ne!(first, second);
        assert!(PORTS.contains(&first) && PORTS.contains(&second));
        // Claimed, though nobody listens there.
        let held = File::options()
            .write(true)
            .open(env::temp_dir().join("tandem-test-ports").join(first.to_string()));
        assert!(Flock::lock(held.unwrap(), FlockArg::LockExclusiveNonblock).is_err());
    }

    #[test]
    fn a_port_that_somebody_has_is_left_alone() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let port = free_port(loopback).unwrap();
        let _taken = TcpListener::bind((loopback, port + 1));
        assert_ne!(free_port(loopback).unwrap(), port + 1);
    }
}
