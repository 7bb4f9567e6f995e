//! A worker that loads nothing and is ready, or warm, at once: listens with its certificate, writes its endpoint, ends with its
//! standard input.

use std::io::Read;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tandem_pki::{ClientCertificates, Credentials, install_tls_provider};
use tandem_worker_api::health_report::State;
use tandem_worker_api::worker_server::{Worker, WorkerServer};
use tandem_worker_api::{
    AttachRequest, CancelRequest, CancelResponse, DrainRequest, DrainResponse, GenerateEvent,
    GenerateRequest, HealthReport, HealthRequest, Warmth, WorkerEndpoint, WorkerSpec,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

struct Stub(WorkerSpec);

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Stub {
    type GenerateStream = Events<GenerateEvent>;
    type AttachStream = Events<GenerateEvent>;
    type HealthStream = Events<HealthReport>;

    async fn generate(&self, _: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        Err(Status::unimplemented("a stub"))
    }

    async fn attach(&self, _: Request<AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("a stub"))
    }

    async fn cancel(&self, _: Request<CancelRequest>) -> Result<Response<CancelResponse>, Status> {
        Err(Status::unimplemented("a stub"))
    }

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<Self::HealthStream>, Status> {
        // As it is started: `replica` or `warm`.
        let warm = std::env::var("STUB_COMMAND").is_ok_and(|command| command == "warm");
        // A start would take 40 s by these where none was measured.
        let warmth = Warmth {
            bytes_resident: 80,
            bytes_total: 100,
            disk_bytes_per_second: 1,
            memory_bytes_per_second: 5,
        };
        let report = HealthReport {
            state: if warm { State::Warm } else { State::Ready }.into(),
            numerics_id: if warm { String::new() } else { "stub".to_owned() },
            warmth: warm.then_some(warmth),
            workload: self.0.workload.clone(),
            epoch: self.0.epoch,
            ..HealthReport::default()
        };
        let beats = stream::unfold(report, |report| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Some((Ok(report.clone()), report))
        });
        Ok(Response::new(beats.boxed()))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        Err(Status::unimplemented("a stub"))
    }
}

pub(crate) async fn serve(spec: &str) {
    install_tls_provider();
    let spec = WorkerSpec::parse(&std::fs::read(spec).unwrap()).unwrap();
    let listener = TcpListener::bind(spec.listen).await.unwrap();
    let endpoint = WorkerEndpoint { address: listener.local_addr().unwrap(), pid: std::process::id() };
    let credentials = Credentials::load(&spec.credentials_dir).unwrap();
    let endpoint_file = spec.endpoint_file.clone();
    let server = Server::builder()
        .tls_config(credentials.server_tls(ClientCertificates::Required))
        .unwrap()
        .add_service(WorkerServer::new(Stub(spec)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    std::fs::write(endpoint_file, serde_json::to_vec(&endpoint).unwrap()).unwrap();
    println!("the stub serves");
    std::thread::spawn(|| {
        drop(std::io::stdin().read(&mut [0]));
        std::process::exit(0);
    });
    server.await.unwrap();
}
