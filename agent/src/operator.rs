//! The way to the operators: who we are, where they are, and certificates from them.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use backon::{ExponentialBuilder, Retryable};
use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::{Certificate, CertifyRequest, Role, Trust, TrustConfirmation};
use tandem_pki::{
    AuthorityError, Credentials, CredentialsError, EnrollError, Enrollment, Fingerprint, Identity,
    KeyAndRequest, Proof, join,
};
use thiserror::Error;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::error::chain;
use crate::home;
use crate::settings::Settings;

/// Bound on an answer.
const STEP: Duration = Duration::from_secs(10);
/// Bound on being let in. Short, since a Service goes on naming a dead node's operator until Kubernetes believes in its death: the
/// next try may meet one that lives.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// An operator that answers nothing for twice this is gone.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// Names the token that this host joined with: no secret.
const SPENT: &str = "joined-with";

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
    #[error("the operator has not heard yet which authority signs now")]
    Behind,
}

/// What an operator has said last of whom to trust.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Word {
    /// The authority that signs now; none before the first word, and of an older release.
    pub(crate) issuer: Option<Fingerprint>,
}

/// Every operator of the cluster; any of them will do.
pub(crate) struct Operators {
    urls: Vec<String>,
    /// Which one is asked next.
    next: AtomicUsize,
    credentials: watch::Sender<Credentials>,
    word: watch::Sender<Word>,
    /// The connection of the session under way: whoever is at its end lives, which can't be said of whom a Service names.
    in_session: Mutex<Option<Channel>>,
    /// Held while a folder gets a key and a certificate, which have to fit.
    saving: Mutex<()>,
}

impl Operators {
    pub(crate) fn new(urls: Vec<String>, credentials: Credentials) -> Self {
        Self {
            urls,
            next: AtomicUsize::new(0),
            credentials: watch::Sender::new(credentials),
            word: watch::Sender::default(),
            in_session: Mutex::default(),
            saving: Mutex::default(),
        }
    }

    /// The newest word on who signs; changes with each that is heard, also when it says the same.
    pub(crate) fn word(&self) -> watch::Receiver<Word> {
        self.word.subscribe()
    }

    /// Whoever looks after certificates has to look.
    pub(crate) fn heard(&self, word: Word) {
        self.word.send_replace(word);
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
            .connect_timeout(CONNECT_WITHIN)
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

    /// A session has begun over this connection; with none, it has ended.
    pub(crate) fn converses_over(&self, channel: Option<Channel>) {
        *self.in_session.lock().unwrap_or_else(PoisonError::into_inner) = channel;
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
        let request =
            CertifyRequest { role: role.into(), name: name.to_owned(), csr_pem: own.csr_pem, addresses };
        let answer = self.issue(request).await?;
        let new = Credentials::new(answer.certificate_pem, own.key_pem, answer.ca_pem);
        Ok(self.keep(&new, dir)?)
    }

    /// Asks over the session's connection first, and dials only when there is none or it brings nothing: it may be about to break,
    /// or show a certificate that was renewed since.
    async fn issue(&self, request: CertifyRequest) -> Result<Certificate, CertifyError> {
        let session = self.in_session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(channel) = session {
            match ask_for_certificate(channel, request.clone()).await {
                Ok(issued) => return Ok(issued),
                Err(status) => tracing::info!(
                    status = status.message(),
                    "no certificate over the session's connection: asking over another"
                ),
            }
        }
        let channel = self.connect().await.map_err(CertifyError::Unreachable)?;
        let refused = |status: Status| CertifyError::Refused(status.message().to_owned());
        ask_for_certificate(channel, request).await.map_err(refused)
    }

    /// Saves a certificate with this host's own word on whom to trust, which comes from the operator that leads. Word that
    /// comes meanwhile is not lost.
    fn keep(&self, new: &Credentials, dir: &Path) -> Result<Credentials, CredentialsError> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = || {
            let own = self.credentials();
            new.trusting(&own.ca_pem, own.revoked)
        };
        let mut kept = newest();
        kept.save(dir)?;
        loop {
            let now = newest();
            if now == kept {
                return Ok(kept);
            }
            now.save_trust(dir)?;
            kept = now;
        }
    }

    /// Says whom this host trusts, and all that it runs but a gateway, by the certificate that it has now: so over a connection of
    /// its own, since the session's may show an older one.
    pub(crate) async fn confirm(&self, runs_gateway: bool) -> Result<(), CertifyError> {
        let authorities = self.credentials().authorities().iter().map(ToString::to_string).collect();
        let channel = self.connect().await.map_err(CertifyError::Unreachable)?;
        let mut request = tonic::Request::new(TrustConfirmation { authorities, runs_gateway });
        request.set_timeout(STEP);
        match AgentsClient::new(channel).confirm_trust(request).await {
            Ok(_) => Ok(()),
            // An operator of an older release replaces no authority.
            Err(status) if status.code() == Code::Unimplemented => Ok(()),
            Err(status) => Err(CertifyError::Refused(status.message().to_owned())),
        }
    }

    /// This host has joined again: its former certificates are worth nothing.
    pub(crate) fn rejoined(&self, fresh: Credentials) {
        self.credentials.send_replace(fresh);
    }

    /// Takes the operator's word on whom to trust: at once for new connections of this agent and to it. Says whether it was news.
    pub(crate) fn trust(&self, trust: Trust) -> Option<Credentials> {
        let changed = self.credentials.send_if_modified(|own| {
            let newer = own.trusting(&trust.ca_pem, trust.revoked);
            let changed = *own != newer;
            *own = newer;
            changed
        });
        changed.then(|| self.credentials())
    }

    /// Renews this host's own certificate when a third of its life has passed, or when this authority signs now and it is of
    /// another. Says whether it did.
    pub(crate) async fn renew_own(
        &self,
        settings: &Settings,
        dir: &Path,
        issuer: Option<Fingerprint>,
    ) -> Result<bool, CertifyError> {
        if !wants(&self.credentials(), issuer)? {
            return Ok(false);
        }
        let addresses = vec![settings.address.clone()];
        let renewed = self.certify(Role::Host, settings.name.as_str(), addresses, dir).await?;
        self.credentials.send_modify(|own| {
            let revoked = std::mem::take(&mut own.revoked);
            *own = renewed.trusting(&own.ca_pem, revoked);
        });
        of_the_newest(&renewed, issuer)?;
        Ok(true)
    }
}

async fn ask_for_certificate(channel: Channel, request: CertifyRequest) -> Result<Certificate, Status> {
    let mut request = tonic::Request::new(request);
    request.set_timeout(STEP);
    Ok(AgentsClient::new(channel).certify(request).await?.into_inner())
}

/// This host's credentials, and whether it has just joined: those kept in `dir`, else those that the join token buys. An operator
/// that can't be reached is asked again for as long as it takes.
pub(crate) async fn member(settings: &Settings, dir: &Path) -> anyhow::Result<(Credentials, bool)> {
    let own = Identity::Host(settings.name.clone());
    if Credentials::exist(dir) {
        let credentials = Credentials::load(dir)?;
        let known = credentials.identity()?;
        anyhow::ensure!(known == own, "{} holds the credentials of {known}, not of {own}", dir.display());
        if !is_another_token(settings, dir) {
            return Ok((credentials, false));
        }
        // Whoever gives a token that this host has not spent wants it to join anew, as after a revocation.
        match join_anew(settings, dir).await {
            Ok(fresh) => return Ok((fresh, true)),
            Err(error) => tracing::warn!(
                error = chain(&*error),
                "the new join token is not used: this host goes on with the certificate that it has"
            ),
        }
        return Ok((credentials, false));
    }
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times();
    let mut next = 0;
    let attempt = || {
        next += 1;
        ask(settings, next - 1)
    };
    let credentials = attempt
        .retry(patience)
        .when(|error| {
            let join = error.downcast_ref::<EnrollError>();
            matches!(join, Some(EnrollError::Unreachable(_) | EnrollError::Transport(_)))
        })
        .notify(|error, wait| tracing::warn!(%error, ?wait, "joining is tried again"))
        .await?;
    joined(settings, dir, &credentials)?;
    Ok((credentials, true))
}

/// Joins again with what there is for it, and keeps the credentials. Every operator is asked once.
///
/// # Errors
/// When there is nothing to join with, or no operator takes it.
pub(crate) async fn join_anew(settings: &Settings, dir: &Path) -> anyhow::Result<Credentials> {
    let mut last = anyhow::anyhow!("there is no operator to ask");
    for n in 0..settings.operators.len() {
        match ask(settings, n).await {
            Ok(credentials) => {
                joined(settings, dir, &credentials)?;
                return Ok(credentials);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask(settings: &Settings, operator: usize) -> anyhow::Result<Credentials> {
    let Some(proof) = settings.proof.clone() else {
        anyhow::bail!(
            "this host has not joined yet: make a token with `tandem join-token --role host`, and give it"
        );
    };
    let enrollment = Enrollment {
        operator: settings.operators[operator % settings.operators.len()].clone(),
        proof,
        role: Role::Host,
        name: settings.name.to_string(),
        addresses: vec![settings.address.clone()],
    };
    Ok(join(&enrollment).await?)
}

fn joined(settings: &Settings, dir: &Path, credentials: &Credentials) -> anyhow::Result<()> {
    credentials.save(dir)?;
    if let Some(Proof::Token(token)) = &settings.proof {
        home::replace(&dir.join(SPENT), token.id().as_bytes())?;
    }
    tracing::info!(name = %settings.name, "joined the cluster");
    Ok(())
}

/// Whether the token that is given is not the one that this host joined with.
fn is_another_token(settings: &Settings, dir: &Path) -> bool {
    let Some(Proof::Token(token)) = &settings.proof else { return false };
    let spent = home::read(&dir.join(SPENT)).ok().flatten();
    spent.is_some_and(|spent| spent != token.id().as_bytes())
}

/// Whether a certificate is to be renewed: a third of its life has passed, or another authority signs now.
pub(crate) fn wants(own: &Credentials, issuer: Option<Fingerprint>) -> Result<bool, CredentialsError> {
    Ok(own.wants_renewal(SystemTime::now())? || of_another(own, issuer)?)
}

fn of_another(own: &Credentials, issuer: Option<Fingerprint>) -> Result<bool, CredentialsError> {
    Ok(match issuer {
        Some(issuer) => own.issuer(&own.ca_pem)? != Some(issuer),
        None => false,
    })
}

/// An operator that has not heard of the newest authority yet signs with the one before.
pub(crate) fn of_the_newest(new: &Credentials, issuer: Option<Fingerprint>) -> Result<(), CertifyError> {
    if of_another(new, issuer)? { Err(CertifyError::Behind) } else { Ok(()) }
}
