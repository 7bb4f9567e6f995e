//! `worker.proto` over a [`Worker`]: who may call what, and results as gRPC says them.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tandem_pki::{Identity, peer_identity};
use tandem_worker_api::{
    AttachRequest, CancelRequest, CancelResponse, DrainRequest, DrainResponse, GenerateEvent,
    GenerateRequest, HealthReport, HealthRequest,
    worker_server::{Worker as WorkerRpc, WorkerServer},
};
use tokio::time::{MissedTickBehavior, interval};
use tonic::{Request, Response, Status};

use crate::worker::{Events, NotServed, Phase, Worker};

/// Health is asked for every 100 ms; more often than this serves nobody.
pub(crate) const SHORTEST_HEALTH_INTERVAL: Duration = Duration::from_millis(10);
/// A long prompt, or a long prefix to resume.
const MAX_REQUEST_BYTES: usize = 16 << 20;
/// The longest drain that a caller may ask for.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// How callers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// By their certificates: gateways and admins generate; hosts see health and drain as well as they.
    Certified,
    /// Not at all: for tests without TLS.
    Anybody,
}

/// The service over `worker`.
#[must_use]
pub fn service(worker: Arc<Worker>, callers: Callers) -> WorkerServer<impl WorkerRpc> {
    WorkerServer::new(Service { worker, callers })
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_REQUEST_BYTES)
}

struct Service {
    worker: Arc<Worker>,
    callers: Callers,
}

impl Service {
    /// For what a client's stream needs.
    fn may_generate<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.allow(request, |caller| matches!(caller, Identity::Gateway(_) | Identity::Admin(_)))
    }

    /// For what running a host needs.
    fn may_operate<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.allow(request, operates)
    }

    fn allow<T>(&self, request: &Request<T>, allowed: impl Fn(&Identity) -> bool) -> Result<(), Status> {
        if self.callers == Callers::Anybody {
            return Ok(());
        }
        allow(request, allowed)
    }
}

/// Refuses a caller by its certificate.
pub(crate) fn allow<T>(request: &Request<T>, allowed: impl Fn(&Identity) -> bool) -> Result<(), Status> {
    let caller = peer_identity(request)?;
    if allowed(&caller) {
        return Ok(());
    }
    tracing::warn!(%caller, "refused a caller whose role does not allow this call");
    Err(Status::permission_denied(format!("{caller} may not do this; gateways and admins may")))
}

/// Who may see how a worker is, and end it.
pub(crate) fn operates(caller: &Identity) -> bool {
    matches!(caller, Identity::Gateway(_) | Identity::Admin(_) | Identity::Host(_))
}

#[tonic::async_trait]
impl WorkerRpc for Service {
    type GenerateStream = BoxStream<'static, Result<GenerateEvent, Status>>;
    type AttachStream = Self::GenerateStream;
    type HealthStream = BoxStream<'static, Result<HealthReport, Status>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        self.may_generate(&request)?;
        Ok(Response::new(on_the_wire(self.worker.generate(request.into_inner()).await)))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        self.may_generate(&request)?;
        let AttachRequest { id, from_index } = request.into_inner();
        let events = self.worker.attach(&id.unwrap_or_default(), from_index).map_err(status)?;
        Ok(Response::new(on_the_wire(events)))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelResponse>, Status> {
        self.may_generate(&request)?;
        self.worker.cancel(&request.into_inner().id.unwrap_or_default()).map_err(status)?;
        Ok(Response::new(CancelResponse {}))
    }

    async fn health(&self, request: Request<HealthRequest>) -> Result<Response<Self::HealthStream>, Status> {
        self.may_operate(&request)?;
        let every = Duration::from_millis(request.into_inner().interval_ms.into());
        let worker = self.worker.clone();
        if every.is_zero() {
            return Ok(Response::new(stream::iter([Ok(worker.health())]).boxed()));
        }
        let mut ticks = interval(every.max(SHORTEST_HEALTH_INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let phase = worker.phase();
        let reports = stream::unfold(Some((worker, ticks, phase)), |state| async move {
            let (worker, mut ticks, mut phase) = state?;
            tokio::select! {
                _ = ticks.tick() => {}
                // A change is reported at once; the worker is held, so that its phase can't be gone.
                _ = phase.changed() => {}
            }
            let report = worker.health();
            let over = matches!(*phase.borrow_and_update(), Phase::Failed(_) | Phase::Stopped);
            Some((Ok(report), (!over).then_some((worker, ticks, phase))))
        });
        Ok(Response::new(reports.boxed()))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.may_operate(&request)?;
        let deadline = Duration::from_millis(request.into_inner().deadline_ms.into()).min(LONGEST_DRAIN);
        let moved = self.worker.drain(deadline).await.map_err(status)?;
        Ok(Response::new(DrainResponse { moved }))
    }
}

fn on_the_wire(events: Events) -> BoxStream<'static, Result<GenerateEvent, Status>> {
    events.map(|event| event.map_err(|error| status(error.into()))).boxed()
}

fn status(error: NotServed) -> Status {
    let message = error.to_string();
    match error {
        NotServed::UnknownAttempt => Status::not_found(message),
        NotServed::FellBehind(_) => Status::out_of_range(message),
        NotServed::Unavailable(_) => Status::unavailable(message),
    }
}

#[cfg(test)]
mod tests;
