//! Keeps the fleet's table true: from an operator while one answers, from the last run's file until then.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder;
use prost::Message;
use tandem_control_api::gateways_client::GatewaysClient;
use tandem_control_api::{Protocol, RouteTable, RoutesRequest};
use tandem_pki::{Credentials, Fingerprint, Identity, is_stranger};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::access::Access;
use crate::fleet::Fleet;
use crate::table::Table;

/// First bytes of the file: its format and version.
const MAGIC: &[u8] = b"tandem route table 1\n";
/// Far more than a table of thousands of replicas.
const MAX_FILE: u64 = 64 << 20;
const MAX_TABLE: usize = 64 << 20;
/// As agents do: an operator that died with its host is left for another within seconds, or new copies would stay unknown here.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
const PING_EVERY: Duration = Duration::from_secs(3);
const PING_WITHIN: Duration = Duration::from_secs(3);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The last table, on disk.
#[derive(Clone, Debug)]
pub struct RoutesFile {
    path: PathBuf,
}

/// A table that can't be read or written.
#[derive(Debug, Error)]
pub enum RoutesFileError {
    /// The disk.
    #[error("{} can't be read or written", .0.display())]
    Disk(PathBuf, #[source] io::Error),
    /// Another program's file, or a newer version's.
    #[error("{} is no route table of this version; remove it, and the operator will send a new one", .0.display())]
    Foreign(PathBuf),
    /// Damaged.
    #[error("{} is damaged; remove it, and the operator will send a new one", .0.display())]
    Damaged(PathBuf, #[source] prost::DecodeError),
}

impl RoutesFile {
    /// In this folder, which need not be there yet.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("routes") }
    }

    /// The table of the last run; `None` on a first start.
    ///
    /// # Errors
    /// When there is a file and it can't be used.
    pub fn load(&self) -> Result<Option<RouteTable>, RoutesFileError> {
        let path = || self.path.clone();
        let disk = |error| RoutesFileError::Disk(path(), error);
        match fs::metadata(&self.path) {
            Ok(file) if file.len() > MAX_FILE => return Err(RoutesFileError::Foreign(path())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk(error)),
        }
        let bytes = fs::read(&self.path).map_err(disk)?;
        let table = bytes.strip_prefix(MAGIC).ok_or_else(|| RoutesFileError::Foreign(path()))?;
        RouteTable::decode(table).map(Some).map_err(|error| RoutesFileError::Damaged(path(), error))
    }

    /// Replaces the file as a whole: who reads it finds the old table or the new one.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, table: &RouteTable) -> Result<(), RoutesFileError> {
        let write = || {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            let beside = self.path.with_extension("new");
            let mut file = fs::File::create(&beside)?;
            file.write_all(MAGIC)?;
            file.write_all(&table.encode_to_vec())?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)
        };
        write().map_err(|error| RoutesFileError::Disk(self.path.clone(), error))
    }
}

/// Where route tables come from.
#[derive(Clone, Debug)]
pub struct Operator {
    /// Operators, `https://HOST:PORT` each; any of them will do.
    pub urls: Vec<String>,
    /// Who we are and whom we trust, newest: each table says whom not to.
    pub credentials: Arc<watch::Sender<Credentials>>,
    /// Where that is kept.
    pub identity: PathBuf,
    /// Where clients reach this gateway.
    pub advertise: String,
    /// The authority that signs now, as the newest table says; changes with each table that says whom to trust.
    pub issuer: Arc<watch::Sender<Option<Fingerprint>>>,
}

/// Follows the route table for ever, through every loss of an operator.
pub async fn follow_routes(operator: Operator, fleet: Arc<Fleet>, access: Arc<Access>, file: RoutesFile) {
    let backoff = backon::ExponentialBuilder::new()
        .with_min_delay(FIRST_RETRY)
        .with_max_delay(LAST_RETRY)
        .with_jitter()
        .without_max_times();
    let mut delays = backoff.build();
    let mut silent = false;
    for url in operator.urls.iter().cycle() {
        let mut heard = false;
        let error = listen(url, &operator, (&fleet, &access), &file, &mut heard).await;
        fleet.set_led(false);
        if heard {
            (delays, silent) = (backoff.build(), false);
        }
        // Once per outage: an operator may be away for weeks.
        if !silent {
            tracing::warn!(operator = url, %error, "no routes from the operator; serving from the last table");
            silent = true;
        }
        tokio::time::sleep(delays.next().unwrap_or(LAST_RETRY)).await;
    }
}

async fn listen(
    url: &str,
    operator: &Operator,
    (fleet, access): (&Fleet, &Access),
    file: &RoutesFile,
    heard: &mut bool,
) -> String {
    let channel = match connect(url, operator).await {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    let request = RoutesRequest { protocol: Some(Protocol::own(&[])), url: operator.advertise.clone() };
    let mut client = GatewaysClient::new(channel).max_decoding_message_size(MAX_TABLE);
    let mut tables = match timeout(CONNECT_WITHIN, client.routes(request)).await {
        Ok(Ok(tables)) => tables.into_inner(),
        Ok(Err(status)) if is_stranger(&status) => return STRANGER.to_owned(),
        Ok(Err(status)) => return status.message().to_owned(),
        Err(_) => return "the operator does not answer".to_owned(),
    };
    let mut first = true;
    loop {
        match tables.message().await {
            Ok(Some(table)) => {
                *heard = true;
                fleet.set_led(true);
                tracing::info!(version = table.version, models = table.models.len(), "a new route table");
                trust(operator, &table, std::mem::take(&mut first)).await;
                keep(file, table.clone()).await;
                access.apply(&table.keys);
                fleet.apply(Table::parse(table));
            }
            Ok(None) => return "the operator ended the stream".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}

/// What helps a gateway that was away while the cluster's authority was replaced.
const STRANGER: &str = "this gateway and the operator do not trust the same authority: the cluster's authority was replaced while this \
                        gateway was away, or the operator is of another cluster. Join again: make a token with `tandem join-token \
                        --role gateway --name NAME`, remove the folder `identity` of the data folder, and start with the token";

/// The way to an operator, or a sentence that says why there is none.
pub(crate) async fn connect(url: &str, operator: &Operator) -> Result<Channel, String> {
    let tls = operator.credentials.borrow().client_tls(&Identity::Operator);
    let channel = async {
        Endpoint::from_shared(url.to_owned())?
            .tls_config(tls)?
            .connect_timeout(CONNECT_WITHIN)
            // A cable that was pulled says nothing by itself.
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .connect()
            .await
    };
    match timeout(CONNECT_WITHIN * 2, channel).await {
        Ok(Err(error)) if is_stranger(&error) => Err(STRANGER.to_owned()),
        Ok(connected) => connected.map_err(|error| chain(&error)),
        Err(_) => Err("connecting took too long".to_owned()),
    }
}

/// Connections to workers whose certificates are revoked end at once. What else it means for this gateway's own certificate is
/// looked at once it is written down.
async fn trust(operator: &Operator, table: &RouteTable, first: bool) {
    let changed = operator.credentials.send_if_modified(|own| {
        let newer = own.trusting(&table.ca_pem, table.revoked.iter().cloned());
        let changed = *own != newer;
        *own = newer;
        changed
    });
    let issuer = table.issuer.parse().ok();
    if changed || first || issuer != *operator.issuer.borrow() {
        let (own, dir) = (operator.credentials.borrow().clone(), operator.identity.clone());
        match tokio::task::spawn_blocking(move || own.save_trust(&dir)).await {
            Ok(Ok(())) => drop(operator.issuer.send_replace(issuer)),
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "whom to trust is not kept for the next start")
            }
            Err(error) => tracing::warn!(%error, "whom to trust is not kept for the next start"),
        }
    }
}

/// A table that can't be kept still serves.
async fn keep(file: &RoutesFile, table: RouteTable) {
    let file = file.clone();
    match tokio::task::spawn_blocking(move || file.save(&table)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), "the route table is not kept for the next start")
        }
        Err(error) => tracing::warn!(%error, "the route table is not kept for the next start"),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_control_api::ModelRoute;

    #[test]
    fn a_table_survives_the_disk_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = RoutesFile::new(&dir.path().join("new"));
        assert_eq!(file.load().unwrap(), None);
        let model = ModelRoute { name: "kimi".to_owned(), ..ModelRoute::default() };
        let table = RouteTable { version: 7, models: vec![model], ..RouteTable::default() };
        file.save(&RouteTable::default()).unwrap();
        file.save(&table).unwrap();
        assert_eq!(file.load().unwrap(), Some(table));

        let whole = fs::read(&file.path).unwrap();
        fs::write(&file.path, &whole[..whole.len() - 3]).unwrap();
        assert!(matches!(file.load(), Err(RoutesFileError::Damaged(..))));
        fs::write(&file.path, b"tandem route table 2\n").unwrap();
        assert!(matches!(file.load(), Err(RoutesFileError::Foreign(_))));
    }
}
