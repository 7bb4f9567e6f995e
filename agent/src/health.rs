//! What a worker says of itself, heard over its own mTLS port.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tandem_agent_core::{Health, Warmth};
use tandem_pki::Identity;
use tandem_worker_api::health_report::State;
use tandem_worker_api::worker_client::WorkerClient;
use tandem_worker_api::{HealthReport, HealthRequest, WorkerEndpoint};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;

use crate::event::Event;
use crate::home;
use crate::operator::Operators;

const INTERVAL: Duration = Duration::from_millis(500);
/// How often an endpoint file that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// How long a process may take to listen. It does so before it loads anything.
const LISTENS: Duration = Duration::from_secs(120);
/// Until a worker that broke off is asked again.
const AGAIN: Duration = Duration::from_millis(250);
/// Bound on connecting, and on the next report.
const STEP: Duration = Duration::from_secs(5);

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
        let mut pulse = None;
        let start = Instant::now();
        loop {
            let Some(endpoint) = self.endpoint() else {
                if start.elapsed() > LISTENS {
                    let why = format!("it has not begun to listen for {} s", LISTENS.as_secs());
                    self.tell(&mut said, None, Health::Hung(why)).await;
                }
                sleep(LOOK).await;
                continue;
            };
            let pulse = pulse.get_or_insert_with(|| Pulse::new(Instant::now()));
            if let Err(error) = self.listen(&endpoint, &mut said, pulse).await {
                tracing::debug!(workload = self.id, error = format!("{error:#}"), "a worker is not heard");
            }
            if let Some(health) = pulse.missed(Instant::now()) {
                self.tell(&mut said, None, health).await;
            }
            sleep(AGAIN).await;
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
        pulse: &mut Pulse,
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
            let hung = pulse.heard(report.ticks, report.active > 0, Instant::now());
            let health = hung.unwrap_or_else(|| health(&report));
            self.tell(said, Some(endpoint.address.port()), health).await;
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

/// Tells silence and standstill from the observer's own pauses.
struct Pulse {
    heard: Instant,
    /// Failed attempts since then.
    missed: u32,
    /// The last tick that differed from the one before, or was of an idle worker.
    ticks: u64,
    moved: Instant,
}

impl Pulse {
    /// Nothing heard for so long is reported. Whoever has streams on the worker decides for himself, much sooner.
    const SILENT: Duration = Duration::from_secs(10);
    /// Nothing heard for so long: the process is ended.
    const DEAF: Duration = Duration::from_secs(30);
    /// Fewer failures are no evidence, however long they took: it may have been us who were held.
    const FAILURES: u32 = 3;
    /// Work, and not one layer computed in this time: the process is ended.
    const STANDSTILL: Duration = Duration::from_secs(120);

    fn new(now: Instant) -> Self {
        Self { heard: now, missed: 0, ticks: 0, moved: now }
    }

    /// A report has come.
    fn heard(&mut self, ticks: u64, busy: bool, now: Instant) -> Option<Health> {
        // Reports that stood still while nobody listened say nothing about the time between.
        let gap = now.duration_since(self.heard) > Self::STANDSTILL;
        (self.heard, self.missed) = (now, 0);
        if !busy || ticks != self.ticks || gap {
            (self.ticks, self.moved) = (ticks, now);
        }
        let still = now.duration_since(self.moved);
        (still > Self::STANDSTILL)
            .then(|| Health::Hung(format!("it has work and has computed nothing for {} s", still.as_secs())))
    }

    /// An attempt to hear it has failed.
    fn missed(&mut self, now: Instant) -> Option<Health> {
        self.missed = self.missed.saturating_add(1);
        let silence = now.duration_since(self.heard);
        if self.missed < Self::FAILURES || silence <= Self::SILENT {
            None
        } else if silence <= Self::DEAF || self.missed <= Self::FAILURES {
            Some(Health::Silent)
        } else {
            Some(Health::Hung(format!("it has not answered for {} s", silence.as_secs())))
        }
    }
}

fn health(report: &HealthReport) -> Health {
    match report.state() {
        State::Ready => Health::Ready { numerics_id: report.numerics_id.clone() },
        State::Warm => {
            let said = report.warmth.unwrap_or_default();
            let warmth = Warmth {
                resident: said.bytes_resident,
                total: said.bytes_total,
                disk_rate: said.disk_bytes_per_second,
                memory_rate: said.memory_bytes_per_second,
            };
            Health::Warm { warmth, message: Some(report.message.clone()).filter(|words| !words.is_empty()) }
        }
        State::Draining => Health::Draining,
        State::Failed => Health::Failed(report.message.clone()),
        State::Loading | State::Unspecified => Health::Loading(report.load.as_ref().map_or(0, |load| {
            let percent = u128::from(load.bytes_done) * 100 / u128::from(load.bytes_total).max(1);
            u32::try_from(percent).unwrap_or(100).min(100)
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Instant {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *START + Duration::from_secs(seconds)
    }

    #[test]
    fn silence_is_several_failures_over_some_time() {
        let mut pulse = Pulse::new(after(0));
        assert_eq!(
            (pulse.missed(after(1)), pulse.missed(after(2)), pulse.missed(after(3))),
            (None, None, None)
        );
        assert_eq!(pulse.missed(after(11)), Some(Health::Silent));
        assert!(matches!(pulse.missed(after(31)), Some(Health::Hung(_))));
        assert_eq!(pulse.heard(1, false, after(32)), None);
        // This process was itself held for an hour: one failure says nothing about the worker.
        assert_eq!(pulse.missed(after(3632)), None);
        assert_eq!(pulse.missed(after(3633)), None);
        assert_eq!(pulse.missed(after(3634)), Some(Health::Silent));
    }

    #[test]
    fn a_worker_with_work_and_no_progress_hangs() {
        let mut pulse = Pulse::new(after(0));
        let mut heard = |ticks, busy, at| pulse.heard(ticks, busy, after(at)).is_some();
        assert!(!heard(5, true, 1));
        assert!(!heard(5, true, 100));
        assert!(!heard(6, true, 120));
        assert!(!heard(6, true, 200));
        assert!(heard(6, true, 241));
        // Idle is no hang.
        assert!(!heard(6, false, 242));
        assert!(!heard(6, false, 9999));
        assert!(!heard(6, true, 10_000));
    }
}
