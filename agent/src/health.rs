//! What a worker says of itself, heard over its own mTLS port.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tandem_agent_core::Health;
use tandem_pki::Identity;
use tandem_worker_api::health_report::State;
use tandem_worker_api::worker_client::WorkerClient;
use tandem_worker_api::{HealthReport, HealthRequest, WorkerEndpoint};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;

use crate::agent::Event;
use crate::home;
use crate::operator::Operators;

const INTERVAL: Duration = Duration::from_millis(500);
/// How often an endpoint file that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Bound on connecting, and on the next report.
const STEP: Duration = Duration::from_secs(5);
/// A worker from which nothing is heard for so long is reported as silent. It goes on: whoever has streams on it decides for
/// himself, much sooner.
const SILENT: Duration = Duration::from_secs(10);

/// Listens to one worker for ever; whoever started this ends it with the worker.
pub(crate) struct Listener {
    pub(crate) id: String,
    pub(crate) epoch: u64,
    pub(crate) identity: Identity,
    pub(crate) endpoint_file: PathBuf,
    pub(crate) operators: Arc<Operators>,
    pub(crate) events: mpsc::Sender<Event>,
}

impl Listener {
    pub(crate) async fn run(self) {
        let mut said = None;
        let mut heard = Instant::now();
        loop {
            if let Some(endpoint) = self.endpoint() {
                let result = self.listen(&endpoint, &mut said, &mut heard).await;
                if let Err(error) = result {
                    tracing::debug!(
                        workload = self.id,
                        error = format!("{error:#}"),
                        "a worker is not heard"
                    );
                }
            }
            if heard.elapsed() > SILENT && said.is_some() {
                self.tell(&mut said, None, Health::Silent).await;
            }
            sleep(LOOK).await;
        }
    }

    fn endpoint(&self) -> Option<WorkerEndpoint> {
        let bytes = home::read(&self.endpoint_file).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    async fn listen(
        &self,
        endpoint: &WorkerEndpoint,
        said: &mut Option<Health>,
        heard: &mut Instant,
    ) -> anyhow::Result<()> {
        let mut address = endpoint.address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        let channel = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(self.operators.credentials().client_tls(&self.identity))?
            .connect_timeout(STEP)
            .connect()
            .await?;
        let interval_ms = u32::try_from(INTERVAL.as_millis()).unwrap_or(u32::MAX);
        let request = HealthRequest { interval_ms };
        let mut reports = timeout(STEP, WorkerClient::new(channel).health(request)).await??.into_inner();
        while let Some(report) = timeout(STEP, reports.message()).await?? {
            let ours = report.workload == self.id && report.epoch == self.epoch;
            anyhow::ensure!(ours, "epoch {} of `{}` answers there", report.epoch, report.workload);
            *heard = Instant::now();
            self.tell(said, Some(endpoint.address.port()), health(&report)).await;
        }
        Ok(())
    }

    async fn tell(&self, said: &mut Option<Health>, port: Option<u16>, health: Health) {
        if said.as_ref() == Some(&health) {
            return;
        }
        *said = Some(health.clone());
        let event = Event::Health { id: self.id.clone(), epoch: self.epoch, port, health };
        if self.events.send(event).await.is_err() {
            tracing::debug!("the agent is ending");
        }
    }
}

fn health(report: &HealthReport) -> Health {
    match report.state() {
        State::Ready => Health::Ready { numerics_id: report.numerics_id.clone() },
        State::Draining => Health::Draining,
        State::Failed => Health::Failed(report.message.clone()),
        State::Loading | State::Unspecified => Health::Loading(report.load.as_ref().map_or(0, |load| {
            let percent = u128::from(load.bytes_done) * 100 / u128::from(load.bytes_total).max(1);
            u32::try_from(percent).unwrap_or(100).min(100)
        })),
    }
}
