//! Who this gateway is: joined once by token, and known by its certificate from then on.

use std::path::{Path, PathBuf};

use tandem_control_api::Role;
use tandem_pki::{
    BadToken, Credentials, CredentialsError, EnrollError, Enrollment, Identity, JoinToken, join,
};
use thiserror::Error;

/// What a first start needs.
#[derive(Clone, Debug)]
pub struct Join {
    /// Operators, `https://HOST:PORT` each; tried in order.
    pub operators: Vec<String>,
    /// The join token as it was given, if it was.
    pub token: Option<String>,
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
    let token: JoinToken =
        how.token.as_ref().ok_or_else(|| IdentityError::NoToken(dir.to_owned()))?.parse()?;
    let mut last = IdentityError::NoOperator;
    for operator in &how.operators {
        let enrollment = Enrollment {
            operator: operator.clone(),
            token: token.clone(),
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
