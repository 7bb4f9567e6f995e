//! How many connections a process may hold: as many as it may open files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Fewer than a cluster of some size needs: hosts, gateways and streams hold a connection each, and some hold two.
const FEW: u64 = 4096;
/// What macOS grants when the hard limit says that there is none.
const ALWAYS_GRANTED: u64 = 10240;

/// Raises the number of files that this process may open as far as the system lets it, and says in the log how many it got. Processes
/// are started with 1024 and less for the sake of programs that are older than that.
pub fn raise_open_files() {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "can't tell how many files may be open");
            return;
        }
    };
    let wanted = [hard, hard.min(ALWAYS_GRANTED)].into_iter().filter(|wanted| *wanted > soft);
    let raised = wanted.into_iter().find(|wanted| setrlimit(Resource::RLIMIT_NOFILE, *wanted, hard).is_ok());
    let open_files = raised.unwrap_or(soft);
    if open_files < FEW {
        tracing::warn!(
            open_files,
            "few files may be open at once, and every connection is one: raise the hard limit (`ulimit -Hn`, LimitNOFILE) to at \
             least {FEW}"
        );
    } else {
        tracing::info!(open_files, "as many files and connections may be open");
    }
}
