//! The operator's watch, which outlives a restart of the operator.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tandem_control_api::object_event::Type;
use tandem_control_api::{ListRequest, ObjectEvent};
use tokio::time::sleep;
use tonic::{Code, Status, Streaming};

use crate::connection::Connection;

/// Between two tries to find an operator that was there before.
const PAUSE: Duration = Duration::from_millis(500);
/// How many of them; together a minute, or more where every try takes its time.
const TRIES: u32 = 120;

/// Something that a watch tells.
#[derive(Debug)]
pub(crate) enum Change {
    /// An object is there, or is different.
    Seen(Value),
    /// An object was deleted; this is what it was.
    Gone(Value),
    /// All that exists has been told.
    Complete,
    /// The operator was away. All that exists is told again, and what is not told is gone.
    Again,
}

/// Every object that a request means, then every change of them.
pub(crate) struct Watch {
    connection: Connection,
    request: ListRequest,
    events: Streaming<ObjectEvent>,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// At once when no operator answers: it is only waited for where it was there before.
    pub(crate) async fn open(connection: &Connection, request: ListRequest) -> Result<Self> {
        let mut connection = connection.clone();
        let answer = connection.objects.watch(request.clone()).await;
        let events = answer.map_err(|status| connection.explain(&status))?.into_inner();
        Ok(Self { connection, request, events })
    }

    /// The next change; ends only with an error.
    pub(crate) async fn next(&mut self) -> Result<Change> {
        loop {
            match self.events.message().await {
                Ok(Some(event)) => match event.r#type() {
                    Type::Unspecified => {}
                    Type::Added | Type::Modified => return object(&event).map(Change::Seen),
                    Type::Deleted => return object(&event).map(Change::Gone),
                    Type::Bookmark => return Ok(Change::Complete),
                },
                Ok(None) => return self.again(None).await,
                Err(status) => return self.again(Some(status)).await,
            }
        }
    }

    async fn again(&mut self, broken: Option<Status>) -> Result<Change> {
        let mut last = broken.unwrap_or_else(|| Status::unavailable("the operator ended the watch"));
        for _ in 0..TRIES {
            if final_word(&last) {
                break;
            }
            sleep(PAUSE).await;
            match self.connection.objects.watch(self.request.clone()).await {
                Ok(answer) => {
                    self.events = answer.into_inner();
                    return Ok(Change::Again);
                }
                Err(status) => last = status,
            }
        }
        Err(self.connection.explain(&last))
    }
}

/// Whether asking again would get the same answer.
fn final_word(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::NotFound
            | Code::Unimplemented
    )
}

fn object(event: &ObjectEvent) -> Result<Value> {
    serde_json::from_str(&event.json).context("the operator sent no JSON")
}
