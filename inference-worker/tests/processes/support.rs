//! Real worker processes with a random model, certificates of a throw-away authority, and clients that dial them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tandem_gguf::StringArray;
use tandem_pki::{CertificateAuthority, Credentials, HOST_LIFETIME, Identity};
use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::file::{as_f32, writer};
use tandem_worker_api::generate_event::Event;
use tandem_worker_api::generate_request::Prompt;
use tandem_worker_api::health_report::State;
use tandem_worker_api::worker_client::WorkerClient;
use tandem_worker_api::{
    AttemptId, Finished, Frame, GenerateEvent, GenerateRequest, HealthRequest, Started, WorkerEndpoint,
};
use tempfile::TempDir;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Bounds a test that hangs; a machine under load must not reach it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Kimi's shape with random weights, small enough for a test, in a folder of its own.
fn write_model(folder: &Path) -> PathBuf {
    let shape = Deepseek2::minute();
    let weights = shape.random_weights(7);
    let mut file = writer(&shape, &weights, &|_, tensor| as_f32(tensor));
    // Every byte is a token, and no two of them merge.
    file.set("tokenizer.ggml.merges", std::iter::empty::<&str>().collect::<StringArray>());
    let path = folder.join("minute.gguf");
    std::fs::write(&path, file.finish().unwrap()).unwrap();
    path
}

pub(crate) struct Cluster {
    authority: CertificateAuthority,
    pub(crate) folder: TempDir,
    pub(crate) model: PathBuf,
}

/// A worker process. Dropping it kills it.
pub(crate) struct Replica {
    pub(crate) child: Child,
    pub(crate) endpoint: WorkerEndpoint,
    identity: Identity,
}

impl Replica {
    /// Waits until a worker of this name has said where it listens.
    pub(crate) async fn announced(child: Child, name: &str, endpoint_file: &Path) -> Self {
        let announced = async {
            loop {
                if let Ok(json) = std::fs::read(endpoint_file) {
                    return serde_json::from_slice::<WorkerEndpoint>(&json).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let endpoint = tokio::time::timeout(PATIENCE, announced).await.expect("the worker does not listen");
        assert_eq!(endpoint.pid, child.id());
        Self { child, endpoint, identity: Identity::worker("mac-a", name).unwrap() }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended by itself.
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
    }
}

impl Cluster {
    pub(crate) fn new() -> Self {
        tandem_pki::install_tls_provider();
        let folder = tempfile::tempdir().unwrap();
        let model = write_model(folder.path());
        Self { authority: CertificateAuthority::create(SystemTime::now()).unwrap(), folder, model }
    }

    fn credentials(&self, identity: &Identity) -> Credentials {
        self.authority.credentials(identity, &[], SystemTime::now(), HOST_LIFETIME).unwrap()
    }

    /// A spec for a worker of this name, and the file that it will announce itself in.
    pub(crate) fn spec(&self, name: &str) -> (serde_json::Value, PathBuf) {
        let home = self.folder.path().join(name);
        let credentials = home.join("identity");
        self.credentials(&Identity::worker("mac-a", name).unwrap()).save(&credentials).unwrap();
        let endpoint = home.join("endpoint.json");
        let digest = Sha256::digest(std::fs::read(&self.model).unwrap());
        let spec = serde_json::json!({
            "workload": name, "epoch": 1, "model": "minute", "deployment": "llm/minute",
            "files": [{"path": self.model, "sha256": tandem_worker_api::Sha256Hex::from(<[u8; 32]>::from(digest))}],
            "context_tokens": 512, "pool_tokens": 2048, "threads": 1, "max_sequences": 4,
            "listen": "127.0.0.1:0", "credentials_dir": credentials, "endpoint_file": endpoint,
        });
        (spec, endpoint)
    }

    /// Starts `inference-worker replica`.
    pub(crate) fn spawn(&self, name: &str, spec: &serde_json::Value, arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inference-worker"));
        command.arg("replica");
        self.spawn_program(command, name, spec, arguments)
    }

    /// Starts a program that reads a worker's spec.
    pub(crate) fn spawn_program(
        &self,
        mut program: Command,
        name: &str,
        spec: &serde_json::Value,
        arguments: &[&str],
    ) -> Child {
        let path = self.folder.path().join(name).join("spec.json");
        std::fs::write(&path, spec.to_string()).unwrap();
        program
            .arg("--spec")
            .arg(path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// A worker that listens.
    pub(crate) async fn replica(&self, name: &str) -> Replica {
        let (spec, endpoint_file) = self.spec(name);
        self.replica_of(name, &spec, &endpoint_file).await
    }

    /// A worker that listens, by a spec of one's own.
    pub(crate) async fn replica_of(
        &self,
        name: &str,
        spec: &serde_json::Value,
        endpoint_file: &Path,
    ) -> Replica {
        let mut child = self.spawn(name, spec, &["--exit-with-stdin"]);
        // Nobody reads it, and a full pipe would stop the worker.
        let mut log = child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Replica::announced(child, name, endpoint_file).await
    }

    pub(crate) async fn dial(&self, replica: &Replica, caller: &Identity) -> WorkerClient<Channel> {
        let tls = self.credentials(caller).client_tls(&replica.identity);
        let endpoint = Endpoint::from_shared(format!("https://{}", replica.endpoint.address)).unwrap();
        WorkerClient::new(endpoint.tls_config(tls).unwrap().connect().await.unwrap())
    }

    /// A gateway's connection to a worker that is ready.
    pub(crate) async fn gateway(&self, replica: &Replica) -> WorkerClient<Channel> {
        let mut client = self.dial(replica, &Identity::gateway("edge").unwrap()).await;
        let mut health = client.health(HealthRequest { interval_ms: 50 }).await.unwrap().into_inner();
        let ready = async {
            loop {
                let report = health.message().await.unwrap().unwrap();
                match report.state() {
                    State::Ready => return,
                    State::Loading => {}
                    other => panic!("{other:?}: {}", report.message),
                }
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("the worker does not get ready");
        client
    }
}

pub(crate) fn attempt(stream: &str, attempt: u32) -> AttemptId {
    AttemptId { stream: stream.into(), choice: 0, attempt }
}

pub(crate) fn request(stream: &str, prompt: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        id: Some(attempt(stream, 0)),
        prompt: Some(Prompt::Text(prompt.into())),
        seed: 5,
        max_tokens,
        ignore_eos: true,
        top_logprobs: 2,
        model: "minute".into(),
        ..Default::default()
    }
}

#[derive(Default, Debug)]
pub(crate) struct Said {
    pub(crate) started: Option<Started>,
    pub(crate) frames: Vec<Frame>,
    pub(crate) finished: Option<Finished>,
}

impl Said {
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.frames.iter().map(|frame| frame.id).collect()
    }
}

/// Reads events until the end, or until there are `frames` frames.
pub(crate) async fn read(stream: &mut Streaming<GenerateEvent>, frames: usize) -> Said {
    let reading = async {
        let mut said = Said::default();
        while said.frames.len() < frames {
            let Some(event) = stream.message().await.unwrap() else { break };
            match event.event.unwrap() {
                Event::Started(started) => said.started = Some(started),
                Event::Frame(frame) => said.frames.push(frame),
                Event::Finished(finished) => said.finished = Some(finished),
                Event::Prefill(_) => {}
                Event::Rejected(rejected) => panic!("{rejected:?}"),
            }
        }
        said
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the worker stopped speaking")
}

pub(crate) async fn generate(client: &mut WorkerClient<Channel>, request: GenerateRequest) -> Said {
    let mut stream = client.generate(request).await.unwrap().into_inner();
    read(&mut stream, usize::MAX).await
}

/// What a process logs, as far as it has come.
pub(crate) fn log_of(child: &mut Child) -> Arc<Mutex<String>> {
    let log = Arc::new(Mutex::new(String::new()));
    let (lines, written) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            written.lock().unwrap().push_str(&line);
        }
    });
    log
}

/// How a process ends.
pub(crate) async fn exit(child: &mut Child) -> ExitStatus {
    let ended = async {
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the worker does not end")
}
