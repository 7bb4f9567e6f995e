//! Names of hosts, looked up once and checked before anything connects: the addresses that were checked are those that
//! are connected to, so that a name can't lead elsewhere a moment later.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::address::{Reach, reach};
use crate::error::shown;
use crate::source::literal;
use crate::{Access, TransferError};

/// More hosts than a source and its redirects have.
const MOST_NAMES: usize = 64;

/// What is known of names. Connections go to addresses of this table only.
pub(crate) struct Names {
    known: Mutex<HashMap<String, Known>>,
    fixed: BTreeMap<String, Vec<IpAddr>>,
    patience: Duration,
}

struct Known {
    /// Empty once a connection failed: looked up again before the next one.
    addresses: Vec<SocketAddr>,
    /// How far the nearest of them is away. A name that was looked up again must not have come nearer.
    reach: Reach,
}

impl Names {
    pub(crate) fn new(access: &Access) -> Self {
        Self { known: Mutex::default(), fixed: access.names.clone(), patience: access.connect }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().expect("no panic while names are changed")
    }

    /// Looks the URL's host up, unless it is known, and says how far it is away.
    pub(crate) async fn check(&self, url: &Url) -> Result<Reach, TransferError> {
        let host = url.host_str().unwrap_or_default();
        let forbidden = |address| TransferError::ForbiddenAddress { host: host.to_owned(), address };
        if let Some(address) = literal(host) {
            return reach(address).ok_or_else(|| forbidden(address));
        }
        let before = match self.lock().get(host) {
            Some(known) if !known.addresses.is_empty() => return Ok(known.reach),
            known => known.map(|known| known.reach),
        };
        let addresses = self.look_up(url, host).await?;
        let mut nearest = Reach::Public;
        for address in &addresses {
            nearest = nearest.min(reach(address.ip()).ok_or_else(|| forbidden(address.ip()))?);
        }
        if before.is_some_and(|before| nearest < before) {
            return Err(forbidden(addresses[0].ip()));
        }
        let mut known = self.lock();
        if known.len() >= MOST_NAMES {
            known.clear();
        }
        known.insert(host.to_owned(), Known { addresses, reach: nearest });
        Ok(nearest)
    }

    /// Notes that nothing answers at a host's addresses: the name may have moved.
    pub(crate) fn doubt(&self, url: &Url) {
        if let Some(known) = self.lock().get_mut(url.host_str().unwrap_or_default()) {
            known.addresses.clear();
        }
    }

    async fn look_up(&self, url: &Url, host: &str) -> Result<Vec<SocketAddr>, TransferError> {
        let port = url.port_or_known_default().unwrap_or(443);
        let unknown = |source| TransferError::NoAddress { url: shown(url), source };
        if let Some(fixed) = self.fixed.get(host) {
            return Ok(fixed.iter().map(|address| (*address, port).into()).collect());
        }
        let found = timeout(self.patience, lookup_host((host, port))).await;
        let found = found.unwrap_or_else(|late| Err(late.into())).map_err(|error| unknown(Some(error)))?;
        let addresses: Vec<SocketAddr> = found.collect();
        if addresses.is_empty() { Err(unknown(None)) } else { Ok(addresses) }
    }
}

/// Answers from the table, whose addresses were checked, and asks nobody.
impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let known = self.lock().get(name.as_str()).map(|known| known.addresses.clone());
        Box::pin(async move {
            // The port of the URL is put in by the caller.
            let addresses =
                known.unwrap_or_default().into_iter().map(|address| SocketAddr::new(address.ip(), 0));
            let addresses: Vec<SocketAddr> = addresses.collect();
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "a name that was not checked").into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(host: &str, addresses: &[&str]) -> Names {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Names::new(&Access::default().naming(host, addresses))
    }

    async fn answered(names: &Names, host: &str) -> Option<Vec<IpAddr>> {
        let addresses = names.resolve(host.parse().unwrap()).await.ok()?;
        Some(addresses.map(|address| address.ip()).collect())
    }

    #[tokio::test]
    async fn one_bad_address_among_good_ones_spoils_a_name() {
        let url = "https://w.example/".parse().unwrap();
        let bad = names("w.example", &["203.0.113.1", "169.254.169.254"]);
        let error = bad.check(&url).await.unwrap_err();
        assert!(matches!(error, TransferError::ForbiddenAddress { .. }), "{error}");
        assert_eq!(answered(&bad, "w.example").await, None);
        let mixed = names("w.example", &["203.0.113.1", "10.0.0.1"]);
        assert_eq!(mixed.check(&url).await.unwrap(), Reach::Private);
    }

    #[tokio::test]
    async fn connections_go_to_checked_addresses_only_and_a_name_never_comes_nearer() {
        let url = "https://w.example/".parse().unwrap();
        let mut names = names("w.example", &["203.0.113.1"]);
        assert_eq!(answered(&names, "w.example").await, None, "not checked yet");
        assert_eq!(names.check(&url).await.unwrap(), Reach::Public);
        // What the name service says from now on doesn't matter.
        names.fixed.insert("w.example".to_owned(), vec!["127.0.0.1".parse().unwrap()]);
        assert_eq!(names.check(&url).await.unwrap(), Reach::Public);
        assert_eq!(answered(&names, "w.example").await.unwrap(), ["203.0.113.1".parse::<IpAddr>().unwrap()]);
        names.doubt(&url);
        assert_eq!(answered(&names, "w.example").await, None);
        assert!(names.check(&url).await.is_err(), "rebound to this machine");
        names.fixed.insert("w.example".to_owned(), vec!["203.0.113.2".parse().unwrap()]);
        assert_eq!(names.check(&url).await.unwrap(), Reach::Public);
    }
}
