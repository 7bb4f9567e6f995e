//! One try at a choice: a call to a worker, its events passed on, and its cancel.

use std::sync::Arc;
use std::time::Duration;

use tandem_gateway_core::conduct::{Input, Loss};
use tandem_worker_api::{AttemptId, GenerateRequest, generate_event};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use crate::replica::Replica;

/// A worker answers the call itself within this; its first event may take longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A call that is cancelled before it was answered gets so long, so that the cancel does not overtake it.
const ANSWER_TO_CANCEL_WITHIN: Duration = Duration::from_secs(1);

/// An attempt that runs. Dropping it cancels the attempt at its worker.
pub(crate) struct Attempt {
    cancel: DropGuard,
}

impl Attempt {
    /// Calls the worker in a task of its own. What it says, and that it was lost, goes to `out`.
    pub(crate) fn start(
        tasks: &TaskTracker,
        replica: Arc<Replica>,
        request: GenerateRequest,
        out: mpsc::Sender<Input>,
    ) -> Self {
        let cancelled = CancellationToken::new();
        let guard = cancelled.clone().drop_guard();
        // Counted at once, so that the next choice already sees a busier worker.
        let running = replica.run();
        tasks.spawn(async move {
            let _running = running;
            let id = request.id.clone().unwrap_or_default();
            if speak(&replica, request, &id, &out, &cancelled).await == Ended::Cancelled {
                replica.cancel(id).await;
            }
        });
        Self { cancel: guard }
    }

    /// It said its last word: nothing is left to cancel.
    pub(crate) fn leave(self) {
        self.cancel.disarm();
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    ByItself,
    Cancelled,
}

async fn speak(
    replica: &Replica,
    request: GenerateRequest,
    id: &AttemptId,
    out: &mpsc::Sender<Input>,
    cancelled: &CancellationToken,
) -> Ended {
    let lost = async |loss: Loss, code: Code, why: &str| {
        let (stream, attempt, replica) = (short(&id.stream), id.attempt, replica.name());
        tracing::info!(%stream, attempt, %replica, ?loss, ?code, why, "an attempt is lost");
        // A closed receiver is a choice that is over.
        drop(out.send(Input::Lost(id.attempt, loss)).await);
        Ended::ByItself
    };
    let refused = async |status: Status| lost(loss(&status), status.code(), status.message()).await;
    let Some(mut client) = replica.client() else {
        return lost(Loss::NotTaken, Code::Unavailable, "there is no connection").await;
    };
    let call = client.generate(request);
    tokio::pin!(call);
    let answer = tokio::select! {
        biased;
        answer = timeout(ANSWER_WITHIN, &mut call) => answer,
        () = cancelled.cancelled() => {
            // Whatever the answer is, the cancel comes after it.
            drop(timeout(ANSWER_TO_CANCEL_WITHIN, &mut call).await);
            return Ended::Cancelled;
        }
    };
    let mut events = match answer {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return refused(status).await,
        Err(_) => {
            lost(Loss::NotTaken, Code::DeadlineExceeded, "the call is not answered").await;
            return Ended::Cancelled;
        }
    };
    let mut ended = false;
    loop {
        let event = tokio::select! {
            biased;
            () = cancelled.cancelled() => return Ended::Cancelled,
            // The choice is over, and this attempt said its last token.
            () = out.closed() => return Ended::ByItself,
            event = events.message() => event,
        };
        let input = match event {
            Ok(Some(event)) => {
                ended |= matches!(event.event, Some(generate_event::Event::Finished(_)));
                Input::Heard(id.attempt, event)
            }
            // It said its last word.
            Ok(None) | Err(_) if ended => return Ended::ByItself,
            Ok(None) => return lost(Loss::Broken, Code::Ok, "the events ended without a last word").await,
            Err(status) => return refused(status).await,
        };
        tokio::select! {
            biased;
            () = cancelled.cancelled() => return Ended::Cancelled,
            sent = out.send(input) => if sent.is_err() {
                return Ended::ByItself;
            }
        }
    }
}

/// Enough of a stream's id to find it in a log; the whole would let its reader resume it.
pub(crate) fn short(stream: &str) -> &str {
    stream.get(..8).unwrap_or(stream)
}

/// What a worker says as a status, it says alive; a broken connection comes as one of the others.
fn loss(status: &Status) -> Loss {
    match status.code() {
        Code::Unknown | Code::Internal | Code::Cancelled => Loss::Broken,
        _ => Loss::NotTaken,
    }
}
