//! The agent's side of the runner's socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{SinkExt, Stream, StreamExt, stream};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

use super::protocol::{Answer, LONGEST_LINE, Listed, Request, Start};

/// How long the runner may take to answer; it does nothing that takes time.
const ANSWER: Duration = Duration::from_secs(10);

/// The runner did not do what was asked.
#[derive(Debug, Error)]
pub enum RunnerError {
    /// Nobody listens.
    #[error("no runner listens on {path}")]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It ended in the middle, or speaks otherwise.
    #[error("the runner broke off")]
    Broken(#[source] Option<LinesCodecError>),
    /// It said something that this release does not know.
    #[error("the runner's answer can't be read: it may be of another release")]
    Unreadable(#[from] serde_json::Error),
    /// It says nothing.
    #[error("the runner has not answered for {ANSWER:?}")]
    Silent,
    /// It said no.
    #[error("the runner refused: {0}")]
    Refused(String),
}

/// Speaks to the runner of one socket, with a connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

type Connection = Framed<UnixStream, LinesCodec>;

impl Client {
    /// For the runner of this socket, which need not be there yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Starts a process.
    ///
    /// # Errors
    /// When the runner refuses: one of this id runs, or the program can't be executed.
    pub async fn start(&self, start: Start) -> Result<(), RunnerError> {
        self.ask(&Request::Start(start)).await
    }

    /// Tells a process to end, with SIGKILL after `grace`.
    ///
    /// # Errors
    /// When there is none of this id and epoch.
    pub async fn stop(&self, id: &str, epoch: u64, grace: Duration) -> Result<(), RunnerError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.ask(&Request::Stop { id: id.to_owned(), epoch, grace_ms }).await
    }

    /// Lets the runner forget an end.
    ///
    /// # Errors
    /// When it has not ended, or is forgotten already.
    pub async fn acknowledge(&self, id: &str, epoch: u64) -> Result<(), RunnerError> {
        self.ask(&Request::Acknowledge { id: id.to_owned(), epoch }).await
    }

    /// Every process, at once and after every change, until the runner is gone.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn watch(
        &self,
    ) -> Result<impl Stream<Item = Result<Vec<Listed>, RunnerError>> + Send + use<>, RunnerError> {
        let mut connection = self.connect().await?;
        send(&mut connection, &Request::Watch).await?;
        Ok(stream::unfold(Some(connection), |connection| async {
            let mut connection = connection?;
            match receive(&mut connection).await {
                Ok(Answer::Children(children)) => Some((Ok(children), Some(connection))),
                Ok(Answer::Refused(why)) => Some((Err(RunnerError::Refused(why)), None)),
                Ok(Answer::Done) => None,
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    async fn ask(&self, request: &Request) -> Result<(), RunnerError> {
        let answer = async {
            let mut connection = self.connect().await?;
            send(&mut connection, request).await?;
            receive(&mut connection).await
        };
        match timeout(ANSWER, answer).await.map_err(|_| RunnerError::Silent)?? {
            Answer::Done | Answer::Children(_) => Ok(()),
            Answer::Refused(why) => Err(RunnerError::Refused(why)),
        }
    }

    async fn connect(&self) -> Result<Connection, RunnerError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| RunnerError::Absent { path: self.socket.clone(), source })?;
        Ok(Framed::new(stream, LinesCodec::new_with_max_length(LONGEST_LINE)))
    }
}

async fn send(connection: &mut Connection, request: &Request) -> Result<(), RunnerError> {
    let line = serde_json::to_string(request)?;
    connection.send(line).await.map_err(|error| RunnerError::Broken(Some(error)))
}

async fn receive(connection: &mut Connection) -> Result<Answer, RunnerError> {
    match connection.next().await {
        Some(Ok(line)) => Ok(serde_json::from_str(&line)?),
        Some(Err(error)) => Err(RunnerError::Broken(Some(error))),
        None => Err(RunnerError::Broken(None)),
    }
}
