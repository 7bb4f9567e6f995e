//! Certificates of this host and of what it runs, kept good: renewed by age, and when the cluster's authority is replaced.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tandem_control_api::Role;
use tandem_pki::{Credentials, CredentialsError, Fingerprint, Identity};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::error::chain;
use crate::home::Home;
use crate::operator::{CertifyError, Operators, of_the_newest, wants};
use crate::settings::Settings;

/// How often certificates are looked at.
const LOOK: Duration = Duration::from_secs(3600);
/// Between two tries of what failed.
const RETRIES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Looks after certificates for ever.
pub(crate) struct Upkeep {
    pub(crate) operators: Arc<Operators>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) home: Arc<Home>,
}

impl Upkeep {
    pub(crate) async fn run(self) {
        let patience = ExponentialBuilder::default()
            .with_min_delay(RETRIES.0)
            .with_max_delay(RETRIES.1)
            .with_jitter()
            .without_max_times();
        let mut waits = patience.build();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut word = self.operators.word();
        let mut retry = None;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                Ok(()) = word.changed() => waits = patience.build(),
                () = later(retry) => {}
            }
            let issuer = word.borrow_and_update().issuer;
            retry = match self.look(issuer).await {
                Ok(()) => {
                    waits = patience.build();
                    None
                }
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "certificates are not all renewed or confirmed yet"
                    );
                    Some(waits.next().unwrap_or(RETRIES.1))
                }
            };
        }
    }

    /// Workers come first: once this host itself shows a certificate of the newest authority, nothing of it needs the one before.
    async fn look(&self, issuer: Option<Fingerprint>) -> Result<(), CertifyError> {
        let (home, own) = (self.home.clone(), self.operators.credentials());
        let spread = tokio::task::spawn_blocking(move || spread(&home, &own));
        spread.await.expect("writing files does not panic")?;
        let workers = self.renew_workers(issuer).await;
        let wanted = issuer.filter(|_| workers.is_ok());
        let renewed = self.operators.renew_own(&self.settings, &self.home.identity(), wanted).await?;
        if renewed {
            tracing::info!("this host's certificate is renewed");
        }
        workers?;
        // Of an operator of an older release nobody asks.
        if issuer.is_some() {
            self.operators.confirm(self.settings.gateway.is_some()).await?;
        }
        Ok(())
    }

    async fn renew_workers(&self, issuer: Option<Fingerprint>) -> Result<(), CertifyError> {
        let mut result = Ok(());
        for id in self.home.workloads() {
            let dir = self.home.workload(&id).identity();
            if !self.is_of_a_worker(&dir, &id) || !wants(&Credentials::load(&dir)?, issuer)? {
                continue;
            }
            let addresses = vec![self.settings.address.clone()];
            let renewed = self.operators.certify(Role::Worker, &id, addresses, &dir).await;
            match renewed.and_then(|new| of_the_newest(&new, issuer)) {
                Ok(()) => tracing::info!(workload = id, "a worker's certificate is renewed"),
                // Its folder was removed meanwhile.
                Err(_) if !dir.is_dir() => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    fn is_of_a_worker(&self, dir: &Path, id: &str) -> bool {
        let worker = Identity::worker(self.settings.name.as_str(), id).ok();
        let kept = Credentials::load(dir).and_then(|kept| kept.identity()).ok();
        kept.is_some() && kept == worker
    }
}

/// Writes whom to trust into every folder that somebody reads. A gateway that runs is told by itself.
pub(crate) fn spread(home: &Home, own: &Credentials) -> Result<(), CredentialsError> {
    let workloads = home.workloads().into_iter().map(|id| home.workload(&id).identity());
    let there: Vec<PathBuf> = workloads.filter(|dir| dir.is_dir()).chain([home.identity()]).collect();
    for dir in there {
        match own.save_trust(&dir) {
            // Its workload was forgotten meanwhile.
            Err(CredentialsError::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !dir.is_dir() => {}
            written => written?,
        }
    }
    Ok(())
}

async fn later(wait: Option<Duration>) {
    match wait {
        Some(wait) => sleep(wait).await,
        None => std::future::pending().await,
    }
}
