//! What ends a process group once this process has ended. A process that is killed drops nothing: whoever runs out of a test's time,
//! and every Ctrl-C, would leave its servers running.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

/// Waits for the end of its input, which is ours to hold, and which the kernel ends with us.
const WATCH: &str = r#"read -r _; kill -s KILL -- "-$1""#;

/// A child that leads a process group of its own, which ends with this process at the latest.
#[derive(Debug)]
pub struct Tethered {
    child: Child,
    watch: Child,
}

impl Tethered {
    /// Starts `command` in a group of its own.
    ///
    /// # Errors
    /// When it, or the shell that watches over it, can't be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.process_group(0).spawn()?;
        let mut watch = Command::new("sh");
        watch.args(["-c", WATCH, "tether", &child.id().to_string()]);
        // What ends our own group is not to end this.
        watch.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        match watch.spawn() {
            Ok(watch) => Ok(Self { child, watch }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }
}

impl Deref for Tethered {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for Tethered {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Tethered {
    /// The child itself is left to whoever had it started.
    fn drop(&mut self) {
        drop(self.watch.kill());
        drop(self.watch.wait());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::Server;

    const OWNER: &str = "TANDEM_TEST_OWNER";

    /// No test by itself: the one below runs it in a process that it kills.
    #[test]
    fn owner() {
        if std::env::var_os(OWNER).is_none() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut sleep = Command::new("sleep");
        sleep.arg("300");
        let server = Server::start("sleep", sleep, dir.path()).unwrap();
        println!("\n{}", server.id());
        // Until it is killed, or the test is.
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }

    #[test]
    fn servers_end_with_an_owner_that_is_killed() {
        let mut owner = Command::new(std::env::current_exe().unwrap());
        owner.args(["--exact", "tether::tests::owner", "--nocapture"]).env(OWNER, "1");
        let mut owner = owner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(owner.stdout.take().unwrap()).lines().map(Result::unwrap);
        let server: i32 = said.find_map(|line| line.parse().ok()).unwrap();
        assert!(runs(server));
        owner.kill().unwrap();
        owner.wait().unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while runs(server) {
            assert!(Instant::now() < end, "the server outlives its owner");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether there is such a process, and not only what nobody has reaped of it.
    fn runs(process: i32) -> bool {
        let state = Command::new("ps").args(["-o", "stat=", "-p", &process.to_string()]).output().unwrap();
        let state = String::from_utf8(state.stdout).unwrap();
        !state.trim().is_empty() && !state.starts_with('Z')
    }
}
