//! Who this gateway is: joined once by token, and known by its certificate from then on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::{CertifyRequest, Role};
use tandem_pki::{
    AuthorityError, BadToken, Credentials, CredentialsError, EnrollError, Enrollment, Identity,
    KeyAndRequest, PodFiles, Proof, join, kept_fresh,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Endpoint;

/// How often the certificate's age is looked at. It is renewed at a third of 90 days: an hour is nothing.
const LOOK_AT_AGE: Duration = Duration::from_secs(3600);
const CERTIFY_WITHIN: Duration = Duration::from_secs(10);

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

/// Loads the credentials in `dir`, or joins and saves them there.
///
/// # Errors
/// When there are none and joining does not work. Every error says what to do.
pub async fn identity(dir: &Path, how: &Join) -> Result<Credentials, IdentityError> {
    let credentials = if Credentials::exist(dir) {
        Credentials::load(dir)?
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
}

/// Renews the certificate at a third of its life, for ever: saves the new one in `dir`, and gives it to who makes new
/// connections. Without an operator it tries again later; what is left of the old one, 60 days, bounds how long.
pub async fn keep_renewed(dir: PathBuf, operators: Vec<String>, current: Arc<watch::Sender<Credentials>>) {
    let mut ages = tokio::time::interval(LOOK_AT_AGE);
    loop {
        ages.tick().await;
        for operator in &operators {
            let old = current.borrow().clone();
            match renew(&dir, operator, &old).await {
                Ok(None) => break,
                Ok(Some(new)) => {
                    tracing::info!("the certificate was renewed");
                    current.send_modify(|own| *own = new.trusting("", std::mem::take(&mut own.revoked)));
                    break;
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(operator, "the certificate was not renewed: {error:#}");
                }
            }
        }
    }
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

async fn renew(dir: &Path, operator: &str, old: &Credentials) -> Result<Option<Credentials>, RenewalError> {
    if !old.wants_renewal(SystemTime::now())? {
        return Ok(None);
    }
    let name = match old.identity()? {
        Identity::Gateway(name) => name.to_string(),
        _ => return Ok(None),
    };
    let own = KeyAndRequest::generate()?;
    let request =
        CertifyRequest { role: Role::Gateway.into(), name, csr_pem: own.csr_pem, addresses: Vec::new() };
    let operator =
        Endpoint::from_shared(operator.to_owned())?.tls_config(old.client_tls(&Identity::Operator))?;
    let asked = async {
        let mut client = AgentsClient::new(operator.connect().await?);
        client.certify(request).await.map_err(|status| RenewalError::Refused(status.message().to_owned()))
    };
    let answer = timeout(CERTIFY_WITHIN, asked).await.map_err(|_| RenewalError::NoAnswer)??.into_inner();
    let new = Credentials::new(answer.certificate_pem, own.key_pem, answer.ca_pem);
    let new = new.trusting("", old.revoked.clone());
    new.save(dir)?;
    Ok(Some(new))
}
