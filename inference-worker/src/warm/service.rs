//! `worker.proto` over a warm worker: health, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tandem_worker_api::worker_server::{Worker as WorkerRpc, WorkerServer};
use tandem_worker_api::{
    AttachRequest, CancelRequest, CancelResponse, DrainRequest, DrainResponse, GenerateEvent,
    GenerateRequest, HealthReport, HealthRequest,
};
use tokio::time::{MissedTickBehavior, interval};
use tonic::{Request, Response, Status};

use super::{Phase, Warm};
use crate::service::{SHORTEST_HEALTH_INTERVAL, allow, operates};

pub(super) fn service(warm: Arc<Warm>) -> WorkerServer<impl WorkerRpc> {
    WorkerServer::new(Service(warm))
}

struct Service(Arc<Warm>);

type Events<T> = BoxStream<'static, Result<T, Status>>;

fn serves_nobody() -> Status {
    Status::failed_precondition("this worker keeps weights warm and serves nobody; ask a replica")
}

#[tonic::async_trait]
impl WorkerRpc for Service {
    type GenerateStream = Events<GenerateEvent>;
    type AttachStream = Events<GenerateEvent>;
    type HealthStream = Events<HealthReport>;

    async fn generate(&self, _: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        Err(serves_nobody())
    }

    async fn attach(&self, _: Request<AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        Err(serves_nobody())
    }

    async fn cancel(&self, _: Request<CancelRequest>) -> Result<Response<CancelResponse>, Status> {
        Err(serves_nobody())
    }

    async fn health(&self, request: Request<HealthRequest>) -> Result<Response<Self::HealthStream>, Status> {
        allow(&request, operates)?;
        let every = Duration::from_millis(request.into_inner().interval_ms.into());
        let warm = self.0.clone();
        if every.is_zero() {
            return Ok(Response::new(stream::iter([Ok(warm.health())]).boxed()));
        }
        let mut ticks = interval(every.max(SHORTEST_HEALTH_INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let phase = warm.phase();
        let reports = stream::unfold(Some((warm, ticks, phase)), |state| async move {
            let (warm, mut ticks, mut phase) = state?;
            tokio::select! {
                _ = ticks.tick() => {}
                // A change is reported at once; the worker is held, so that its phase can't be gone.
                _ = phase.changed() => {}
            }
            let report = warm.health();
            let over = matches!(*phase.borrow_and_update(), Phase::Ended(_));
            Some((Ok(report), (!over).then_some((warm, ticks, phase))))
        });
        Ok(Response::new(reports.boxed()))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        allow(&request, operates)?;
        Ok(Response::new(DrainResponse { moved: 0 }))
    }
}
