//! The way to the operators: who we are, where they are, and certificates from them.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use backon::{ExponentialBuilder, Retryable};
use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::{CertifyRequest, Role};
use tandem_pki::{
    AuthorityError, Credentials, CredentialsError, EnrollError, Enrollment, Identity, KeyAndRequest, join,
};
use thiserror::Error;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::settings::Settings;

/// Bound on every step: connect, and answer.
const STEP: Duration = Duration::from_secs(10);
/// An operator that answers nothing for twice this is gone.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// No certificate was got.
#[derive(Debug, Error)]
pub(crate) enum CertifyError {
    #[error("no operator can be reached")]
    Unreachable(#[source] tonic::transport::Error),
    #[error("the operator refused a certificate: {0}")]
    Refused(String),
    #[error("no key could be made")]
    Key(#[from] AuthorityError),
    #[error("the certificate could not be kept")]
    Kept(#[from] CredentialsError),
}

/// Every operator of the cluster; any of them will do.
pub(crate) struct Operators {
    urls: Vec<String>,
    /// Which one is asked next.
    next: AtomicUsize,
    credentials: watch::Sender<Credentials>,
}

impl Operators {
    pub(crate) fn new(urls: Vec<String>, credentials: Credentials) -> Self {
        Self { urls, next: AtomicUsize::new(0), credentials: watch::Sender::new(credentials) }
    }

    /// Who this host is.
    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials.borrow().clone()
    }

    /// The same, now and whenever they are renewed.
    pub(crate) fn credentials_from_now_on(&self) -> watch::Receiver<Credentials> {
        self.credentials.subscribe()
    }

    /// Connects to an operator; after a failure the next call tries the next one.
    pub(crate) async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let next = self.next.load(Ordering::Relaxed);
        let url = self.urls[next % self.urls.len()].clone();
        let connected = Endpoint::from_shared(url)?
            .tls_config(self.credentials().client_tls(&Identity::Operator))?
            .connect_timeout(STEP)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .connect()
            .await;
        if connected.is_err() {
            self.next.store(next.wrapping_add(1), Ordering::Relaxed);
        }
        connected
    }

    /// Gets a key and a certificate for something of this host, and keeps them in `dir`.
    pub(crate) async fn certify(
        &self,
        role: Role,
        name: &str,
        addresses: Vec<String>,
        dir: &Path,
    ) -> Result<Credentials, CertifyError> {
        let own = KeyAndRequest::generate()?;
        let channel = self.connect().await.map_err(CertifyError::Unreachable)?;
        let mut request = tonic::Request::new(CertifyRequest {
            role: role.into(),
            name: name.to_owned(),
            csr_pem: own.csr_pem,
            addresses,
        });
        request.set_timeout(STEP);
        let refused = |status: Status| CertifyError::Refused(status.message().to_owned());
        let answer = AgentsClient::new(channel).certify(request).await.map_err(refused)?.into_inner();
        let credentials = Credentials {
            certificate_pem: answer.certificate_pem,
            key_pem: own.key_pem,
            ca_pem: answer.ca_pem,
        };
        credentials.save(dir)?;
        Ok(credentials)
    }

    /// Renews this host's own certificate when a third of its life has passed. Says whether it did.
    pub(crate) async fn renew_own(&self, settings: &Settings, dir: &Path) -> Result<bool, CertifyError> {
        if !self.credentials().wants_renewal(SystemTime::now())? {
            return Ok(false);
        }
        let addresses = vec![settings.address.clone()];
        let renewed = self.certify(Role::Host, settings.name.as_str(), addresses, dir).await?;
        self.credentials.send_replace(renewed);
        Ok(true)
    }
}

/// This host's credentials: those kept in `dir`, else those that the join token buys. An operator that can't be reached is
/// asked again for as long as it takes.
pub(crate) async fn member(settings: &Settings, dir: &Path) -> anyhow::Result<Credentials> {
    let own = Identity::Host(settings.name.clone());
    if Credentials::exist(dir) {
        let credentials = Credentials::load(dir)?;
        let known = credentials.identity()?;
        anyhow::ensure!(known == own, "{} holds the credentials of {known}, not of {own}", dir.display());
        return Ok(credentials);
    }
    let Some(proof) = settings.proof.clone() else {
        anyhow::bail!(
            "this host has not joined yet: make a token with `tandem join-token --role host`, and give it"
        );
    };
    let mut next = 0;
    let attempt = || {
        let operator = settings.operators[next % settings.operators.len()].clone();
        next += 1;
        let enrollment = Enrollment {
            operator,
            proof: proof.clone(),
            role: Role::Host,
            name: settings.name.to_string(),
            addresses: vec![settings.address.clone()],
        };
        async move { join(&enrollment).await }
    };
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times();
    let credentials = attempt
        .retry(patience)
        .when(|error| matches!(error, EnrollError::Unreachable(_) | EnrollError::Transport(_)))
        .notify(|error, wait| tracing::warn!(%error, ?wait, "joining is tried again"))
        .await?;
    credentials.save(dir)?;
    tracing::info!(name = %settings.name, "joined the cluster");
    Ok(credentials)
}
