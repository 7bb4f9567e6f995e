//! The way to an operator: a Service may go on naming one that died with its node, and another try meet one that lives.

use std::io;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::Uri;

/// Bound on one try.
const TRY: Duration = Duration::from_secs(2);
/// Tries after the first. Where one of two operators is dead, one command in 256 meets none but that.
const MORE_TRIES: u32 = 7;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// Bound on all tries; a dead operator should not look like a slow one.
pub(crate) const CONNECT: Duration = TRY.saturating_add(PAUSE).saturating_mul(MORE_TRIES + 1);

/// Connects to host and port of a URL.
pub(crate) async fn dial(url: Uri) -> io::Result<TokioIo<TcpStream>> {
    // A literal address of version 6 stands in brackets there.
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_u16().unwrap_or(443);
    let once = || async { timeout(TRY, TcpStream::connect((host.as_str(), port))).await? };
    let socket = retried(once, |error| eprintln!("{host}:{port}: {error}; trying again")).await?;
    socket.set_nodelay(true)?;
    Ok(TokioIo::new(socket))
}

/// Says once that it tries again.
async fn retried<T, F: Future<Output = io::Result<T>>>(
    once: impl FnMut() -> F,
    say: impl FnOnce(&io::Error),
) -> io::Result<T> {
    let tries = ConstantBuilder::default().with_delay(PAUSE).with_max_times(MORE_TRIES as usize);
    let mut say = Some(say);
    let first = |error: &io::Error, _| {
        if let Some(say) = say.take() {
            say(error);
        }
    };
    once.retry(tries).when(is_of_a_dead_host).notify(first).await
}

/// Who is refused has reached a machine that lives: nobody listens there, and trying again would only hide that for a while.
fn is_of_a_dead_host(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// How many tries it takes to end, when the first ones end so.
    async fn tries(kind: io::ErrorKind, before_it_works: usize) -> (usize, bool) {
        let (tried, said) = (Cell::new(0), Cell::new(0));
        let once = || async {
            tried.set(tried.get() + 1);
            if tried.get() > before_it_works { Ok(()) } else { Err(io::Error::from(kind)) }
        };
        let worked = retried(once, |_| said.set(said.get() + 1)).await.is_ok();
        assert_eq!(said.get(), usize::from(tried.get() > 1));
        (tried.get(), worked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_host_is_tried_again_and_a_closed_port_is_not() {
        assert_eq!(tries(io::ErrorKind::HostUnreachable, 0).await, (1, true));
        assert_eq!(tries(io::ErrorKind::HostUnreachable, 2).await, (3, true));
        assert_eq!(tries(io::ErrorKind::TimedOut, 99).await, (8, false));
        assert_eq!(tries(io::ErrorKind::ConnectionRefused, 1).await, (1, false));
    }

    #[tokio::test]
    async fn an_address_in_brackets_is_reached() {
        let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
            eprintln!("skipped: this machine has no IPv6 loopback");
            return;
        };
        let url = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
        dial(url).await.unwrap();
    }
}
