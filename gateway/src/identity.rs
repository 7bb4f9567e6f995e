//! Who this gateway is: joined once by token, and known by its certificate from then on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::BackoffBuilder;
use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::{CertifyRequest, Role, TrustConfirmation};
use tandem_pki::{
    AuthorityError, BadToken, Credentials, CredentialsError, EnrollError, Enrollment, Fingerprint, Identity,
    KeyAndRequest, PodFiles, Proof, join, kept_fresh,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::routes::Operator;

/// How often the certificate's age is looked at. It is renewed at a third of 90 days: an hour is nothing.
const LOOK_AT_AGE: Duration = Duration::from_secs(3600);
const CERTIFY_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries of what failed.
const RETRIES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a first start needs.
#[derive(Clone, Debug)]
pub struct Join {
    /// Operators, `https://HOST:PORT` each; tried in order.
    pub operators: Vec<String>,
    /// The join token as it was given, if it was.
    pub token: Option<String>,
    /// What Kubernetes mounts instead.
    pub pod: Option<PodFiles>,
    /// The name to be bound to.
    pub name: String,
}

/// Why this gateway has no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Neither credentials nor a token.
    #[error(
        "{} holds no credentials: give a token by --join-token-file, made with `tandem join-token --role gateway`",
        .0.display()
    )]
    NoToken(PathBuf),
    /// What was given is no token.
    #[error(transparent)]
    BadToken(#[from] BadToken),
    /// Joining failed at every operator; this is what the last said.
    #[error("joining the cluster failed")]
    Join(#[from] EnrollError),
    /// Credentials that can't be read, or written.
    #[error("the gateway's credentials can't be used")]
    Credentials(#[from] CredentialsError),
    /// Credentials of something else.
    #[error("the credentials in {} are of {found}, not of a gateway: use another --data-dir", .dir.display())]
    NotAGateway {
        /// Where they are.
        dir: PathBuf,
        /// Whose they are.
        found: Identity,
    },
    /// No operator was named.
    #[error("joining needs an operator's address: give --operator https://HOST:PORT")]
    NoOperator,
}

/// Loads the credentials in `dir`, or joins and saves them there. A pod whose credentials are of no authority that is mounted was
/// away while the cluster's was replaced, and joins again.
///
/// # Errors
/// When there are none and joining does not work. Every error says what to do.
pub async fn identity(dir: &Path, how: &Join) -> Result<Credentials, IdentityError> {
    let kept = if Credentials::exist(dir) { Some(Credentials::load(dir)?) } else { None };
    let credentials = if let Some(kept) = kept.filter(|kept| !is_forsaken(kept, how)) {
        kept
    } else {
        let credentials = first_start(dir, how).await?;
        credentials.save(dir)?;
        tracing::info!(name = how.name, "joined the cluster");
        credentials
    };
    match credentials.identity()? {
        Identity::Gateway(_) => Ok(credentials),
        found => Err(IdentityError::NotAGateway { dir: dir.to_owned(), found }),
    }
}

fn is_forsaken(kept: &Credentials, how: &Join) -> bool {
    let mounted = how.pod.as_ref().and_then(|files| std::fs::read_to_string(&files.ca).ok());
    mounted.is_some_and(|authorities| matches!(kept.issuer(&authorities), Ok(None)))
}

async fn first_start(dir: &Path, how: &Join) -> Result<Credentials, IdentityError> {
    let proof = match (&how.pod, &how.token) {
        (Some(files), _) => Proof::Pod(files.clone()),
        (None, Some(token)) => Proof::Token(token.parse()?),
        (None, None) => return Err(IdentityError::NoToken(dir.to_owned())),
    };
    let mut last = IdentityError::NoOperator;
    for operator in &how.operators {
        let enrollment = Enrollment {
            operator: operator.clone(),
            proof: proof.clone(),
            role: Role::Gateway,
            name: how.name.clone(),
            addresses: Vec::new(),
        };
        match join(&enrollment).await {
            Ok(credentials) => return Ok(credentials),
            // Another operator may be there; but who answered and said no speaks for all.
            Err(error @ EnrollError::Unreachable(_)) => last = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

/// Why the certificate is still the old one.
#[derive(Debug, Error)]
enum RenewalError {
    #[error("the certificate's age can't be told, or the new one can't be saved")]
    Credentials(#[from] CredentialsError),
    #[error("no key could be made")]
    Key(#[from] AuthorityError),
    #[error("no operator can be reached")]
    Unreachable(#[from] tonic::transport::Error),
    #[error("the operator does not answer")]
    NoAnswer,
    #[error("the operator refused: {0}")]
    Refused(String),
    #[error("the operator has not heard yet which authority signs now")]
    Behind,
}

/// Renews the certificate at a third of its life, and when another authority signs, for ever: saves the new one, and gives it to
/// who makes new connections. Tells an operator whom this gateway trusts, whenever that has changed. Without an operator it tries
/// again later; what is left of the old certificate, 60 days, bounds how long.
pub async fn keep_renewed(operator: Operator) {
    let backoff = backon::ExponentialBuilder::new()
        .with_min_delay(RETRIES.0)
        .with_max_delay(RETRIES.1)
        .with_jitter()
        .without_max_times();
    let mut delays = backoff.build();
    let mut ages = tokio::time::interval(LOOK_AT_AGE);
    let mut issuers = operator.issuer.subscribe();
    let mut retry = None;
    loop {
        tokio::select! {
            _ = ages.tick() => {}
            Ok(()) = issuers.changed() => delays = backoff.build(),
            () = later(retry) => {}
        }
        let issuer = *issuers.borrow_and_update();
        retry = Some(delays.next().unwrap_or(RETRIES.1));
        for url in &operator.urls {
            match upkeep(&operator, url, issuer).await {
                Ok(()) => {
                    (retry, delays) = (None, backoff.build());
                    break;
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(
                        operator = url,
                        "the certificate is not renewed or confirmed yet: {error:#}"
                    );
                }
            }
        }
    }
}

async fn later(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Who this gateway is and whom it trusts now.
fn newest(operator: &Operator) -> Credentials {
    operator.credentials.borrow().clone()
}

async fn upkeep(operator: &Operator, url: &str, issuer: Option<Fingerprint>) -> Result<(), RenewalError> {
    if let Some(new) = renew(operator, url, issuer).await? {
        tracing::info!("the certificate was renewed");
        // Whom to trust is said by the tables, which come from the operator that leads.
        let told = |own: &Credentials| new.trusting(&own.ca_pem, own.revoked.clone());
        told(&newest(operator)).save(&operator.identity)?;
        operator.credentials.send_modify(|own| *own = told(own));
        // One may have come in between.
        newest(operator).save_trust(&operator.identity)?;
        if is_of_another(&new, issuer)? {
            return Err(RenewalError::Behind);
        }
    }
    // Of an operator of an older release nobody asks.
    let own = newest(operator);
    if issuer.is_some() { confirm(url, &own).await } else { Ok(()) }
}

/// Whether another authority signs now.
fn is_of_another(own: &Credentials, issuer: Option<Fingerprint>) -> Result<bool, RenewalError> {
    Ok(match issuer {
        Some(issuer) => own.issuer(&own.ca_pem)? != Some(issuer),
        None => false,
    })
}

/// Says whom this gateway trusts, by the certificate that it has now.
async fn confirm(url: &str, own: &Credentials) -> Result<(), RenewalError> {
    let authorities = own.authorities().iter().map(ToString::to_string).collect();
    let confirmation = TrustConfirmation { authorities, runs_gateway: false };
    let operator = Endpoint::from_shared(url.to_owned())?.tls_config(own.client_tls(&Identity::Operator))?;
    let asked = async {
        let mut client = AgentsClient::new(operator.connect().await?);
        match client.confirm_trust(confirmation).await {
            Err(status) if status.code() != Code::Unimplemented => {
                Err(RenewalError::Refused(status.message().to_owned()))
            }
            _ => Ok(()),
        }
    };
    timeout(CERTIFY_WITHIN, asked).await.map_err(|_| RenewalError::NoAnswer)?
}

/// Takes what somebody else has put in `dir`, for ever: the agent of the host that runs this gateway, when the host has joined again.
pub async fn adopt(dir: PathBuf, current: Arc<watch::Sender<Credentials>>) {
    let mut kept = kept_fresh(dir, current.borrow().clone());
    while kept.changed().await.is_ok() {
        let newer = kept.borrow_and_update().clone();
        current.send_if_modified(|own| {
            let changed = own.certificate_pem != newer.certificate_pem;
            if changed {
                *own = newer;
            }
            changed
        });
    }
}

async fn renew(
    operator: &Operator,
    url: &str,
    issuer: Option<Fingerprint>,
) -> Result<Option<Credentials>, RenewalError> {
    let old = newest(operator);
    if !old.wants_renewal(SystemTime::now())? && !is_of_another(&old, issuer)? {
        return Ok(None);
    }
    let name = match old.identity()? {
        Identity::Gateway(name) => name.to_string(),
        _ => return Ok(None),
    };
    let own = KeyAndRequest::generate()?;
    let request =
        CertifyRequest { role: Role::Gateway.into(), name, csr_pem: own.csr_pem, addresses: Vec::new() };
    let operator = Endpoint::from_shared(url.to_owned())?.tls_config(old.client_tls(&Identity::Operator))?;
    let asked = async {
        let mut client = AgentsClient::new(operator.connect().await?);
        client.certify(request).await.map_err(|status| RenewalError::Refused(status.message().to_owned()))
    };
    let answer = timeout(CERTIFY_WITHIN, asked).await.map_err(|_| RenewalError::NoAnswer)??.into_inner();
    Ok(Some(Credentials::new(answer.certificate_pem, own.key_pem, answer.ca_pem)))
}
