//! The servers of a hub.

use std::io;

use tokio::net::TcpListener;

/// One server of a hub, with its own port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// The Hugging Face hub's interface; downloads are redirected to [`Door::Cdn`].
    Hub,
    /// The store behind the hub and the registry, by signed links.
    Cdn,
    /// S3, buckets as folders, signatures verified.
    S3,
    /// An OCI registry with its server of tokens; blobs are redirected to [`Door::Cdn`].
    Registry,
    /// Folders with a `SHA256SUMS`.
    Web,
}

impl Door {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Hub, Self::Cdn, Self::S3, Self::Registry, Self::Web];
}

/// Where the doors are.
pub(crate) struct Urls([String; 5]);

impl Urls {
    pub(crate) fn of(&self, door: Door) -> &str {
        &self.0[door as usize]
    }
}

/// Takes a port for each door.
pub(crate) async fn bind(tls: bool) -> io::Result<(Vec<(Door, TcpListener)>, Urls)> {
    let scheme = if tls { "https" } else { "http" };
    let mut listeners = Vec::new();
    let mut urls = [const { String::new() }; 5];
    for door in Door::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        urls[door as usize] = format!("{scheme}://{}/", listener.local_addr()?);
        listeners.push((door, listener));
    }
    Ok((listeners, Urls(urls)))
}
