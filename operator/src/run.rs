//! Puts an operator together and takes it apart again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use tandem_store::{Backup, Clock, EmbeddedStore, EtcdStore, KubernetesStore, Store, SystemClock};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::lead::Own;
use crate::publish::Publisher;
use crate::settings::{Settings, StoreSettings};
use crate::sources::Sources;
use crate::traced::Traced;
use crate::{authority, membership, metrics, reconcile, rotation, serve};

/// A running operator.
pub struct Operator {
    address: SocketAddr,
    url: String,
    shutdown: CancellationToken,
    store: Arc<dyn Store>,
    server: JoinHandle<Result<()>>,
    control_loop: JoinHandle<()>,
}

impl Operator {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it says that it can be reached.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends the operator when cancelled.
    #[must_use]
    pub fn shutdown_handle(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Waits until it has ended; ends it whole when a part of it ends.
    ///
    /// # Errors
    /// When the server failed.
    pub async fn ended(mut self) -> Result<()> {
        let early = tokio::select! {
            server = &mut self.server => Some(server),
            _ = &mut self.control_loop => None,
        };
        let unexpected = !self.shutdown.is_cancelled();
        self.shutdown.cancel();
        let server = match early {
            Some(server) => {
                self.control_loop.await.context("the control loop failed")?;
                server
            }
            None => self.server.await,
        };
        self.store.close().await;
        server.context("the server panicked")?.context("the server failed")?;
        anyhow::ensure!(!unexpected, "a part of the operator ended by itself: see the log");
        Ok(())
    }
}

/// Opens the store, makes what a first start needs, and begins to serve.
///
/// # Errors
/// When the data folder, the store or the port can't be had; each says what to do.
pub async fn start(settings: Settings) -> Result<Operator> {
    let sources = Sources::new(&settings.sources)?;
    if let Some(dir) = &settings.data_dir {
        make_private(dir)?;
    }
    let clock = Arc::new(SystemClock);
    let store = open_store(&settings, clock.clone()).await?;
    let now = SystemTime::now();
    let authorities = authority::open(&*store, now).await?;

    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!("can't listen on {}: stop what listens there, or pass another --listen", settings.listen)
    })?;
    let address = listener.local_addr().context("the listener has no address")?;
    let url = url(&settings, address);
    let credentials = authorities
        .operator(&settings.advertise, now)
        .context("the operator's own certificate can't be made: check --advertise")?;
    let admin = settings.data_dir.as_ref().map(|dir| dir.join("admin"));
    let publisher = Publisher::new(settings.advertise, url.clone(), admin);
    let revoked = membership::revoked(&*store, clock.now()).await?;
    publisher.publish(&*store, &authorities, &BTreeSet::from_iter(revoked), (now, clock.now())).await?;

    let own = Own::new(
        settings.name.as_deref().unwrap_or("operator"),
        settings.peer_url.as_deref().unwrap_or(&url),
        credentials,
        publisher,
    );
    let mut cluster = Cluster::new(
        Arc::clone(&store),
        clock,
        authorities,
        own,
        settings.timing,
        settings.service_accounts,
        sources,
    );
    cluster.traced = Traced::new(settings.traces);
    let cluster = Arc::new(cluster);
    let shutdown = cluster.shutdown.clone();
    cluster.refresh_revoked().await?;
    if let Some(listen) = settings.metrics_listen {
        let metrics = metrics::serve(Arc::clone(&cluster), listen).await?;
        tracing::info!(address = %metrics, "figures for Prometheus are at /metrics");
    }
    tokio::spawn(rotation::run(Arc::clone(&cluster)));
    let control_loop = tokio::spawn(reconcile::run(Arc::clone(&cluster)));
    let server = tokio::spawn(async move { serve::run(cluster, listener).await });
    tracing::info!(%address, url, version = env!("CARGO_PKG_VERSION"), "operator listens");
    Ok(Operator { address, url, shutdown, store, server, control_loop })
}

async fn open_store(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>> {
    store(&settings.store, settings.data_dir.as_deref(), clock).await
}

/// Everything in a store, as a file's bytes. An embedded store must not be in use; etcd may be.
///
/// # Errors
/// When the store can't be had or read.
pub async fn backup(settings: &StoreSettings, data_dir: Option<&Path>) -> Result<Vec<u8>> {
    let store = store(settings, data_dir, Arc::new(SystemClock)).await?;
    let backup = store.export().await?;
    store.close().await;
    Ok(backup.encode())
}

/// Puts a backup into a store that holds nothing. Says what was in it.
///
/// # Errors
/// When the bytes are no whole backup, or the store is not empty.
pub async fn restore(settings: &StoreSettings, data_dir: Option<&Path>, bytes: &[u8]) -> Result<String> {
    let backup = Backup::decode(bytes)?;
    if let Some(dir) = data_dir {
        make_private(dir)?;
    }
    let store = store(settings, data_dir, Arc::new(SystemClock)).await?;
    let said = format!(
        "{} objects and {} private records of {} ({})",
        backup.objects.len(),
        backup.records.len(),
        backup.made,
        backup.home
    );
    store.import(backup).await?;
    store.close().await;
    Ok(said)
}

async fn store(
    settings: &StoreSettings,
    data_dir: Option<&Path>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Store>> {
    Ok(match settings {
        StoreSettings::Embedded => {
            let dir = data_dir.context("an embedded store wants a data folder")?;
            Arc::new(EmbeddedStore::open(&dir.join("store.redb"), clock).await?)
        }
        StoreSettings::Etcd(options) => Arc::new(EtcdStore::connect(options.clone(), clock).await?),
        StoreSettings::Kubernetes(options) => {
            Arc::new(KubernetesStore::connect(options.clone(), clock).await?)
        }
    })
}

fn make_private(folder: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("the data folder {} can't be made", folder.display()))
}

/// The first advertised address, else the one listened on, else this machine.
fn url(settings: &Settings, address: SocketAddr) -> String {
    let host = match settings.advertise.first() {
        Some(host) if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
        Some(host) => host.clone(),
        None if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
        None if address.is_ipv6() => format!("[{}]", address.ip()),
        None => address.ip().to_string(),
    };
    format!("https://{host}:{}", address.port())
}
