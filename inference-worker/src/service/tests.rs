//! The whole worker but for the model: real certificates, real connections, the scripted model.

use std::net::SocketAddr;
use std::time::SystemTime;

use tandem_engine::scheduler::scripted::{Pace, Script};
use tandem_pki::{CertificateAuthority, ClientCertificates, HOST_LIFETIME};
use tandem_worker_api::{
    AttemptId, Finished, Frame, PrefixDigest, Resume, Sampling, Started, TokenIds, finished::Reason,
    generate_event::Event, generate_request::Prompt, health_report::State, rejected::Code,
    worker_client::WorkerClient,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code as Grpc;
use tonic::transport::{Channel, Endpoint, Server};

use super::*;
use crate::scripted::load;
use crate::worker::{Settings, WorkerFailure};

/// Nothing here takes a tenth of this; it bounds a test that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

struct Cluster {
    authority: CertificateAuthority,
}

struct Running {
    address: SocketAddr,
    identity: Identity,
}

impl Cluster {
    fn new() -> Self {
        tandem_pki::install_tls_provider();
        Self { authority: CertificateAuthority::create(SystemTime::now()).unwrap() }
    }

    fn credentials(&self, identity: &Identity) -> tandem_pki::Credentials {
        self.authority.credentials(identity, &[], SystemTime::now(), HOST_LIFETIME).unwrap()
    }

    async fn start(&self, script: Script, grace: Duration) -> Running {
        let settings = Settings {
            models: vec!["tiny".into(), "llm/tiny".into()],
            workload: "w-1".into(),
            epoch: 7,
            sampling: Default::default(),
            max_sequences: 8,
            grace,
        };
        let (worker, _) =
            Worker::start(settings, move |_| Ok::<_, std::convert::Infallible>(load(script))).unwrap();
        worker.phase().wait_for(|phase| *phase == Phase::Ready).await.unwrap();
        let identity = Identity::worker("mac-a", "w-1").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .tls_config(self.credentials(&identity).server_tls(ClientCertificates::Required))
            .unwrap()
            .add_service(service(worker.clone(), Callers::Certified))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Running { address, identity }
    }

    async fn dial(&self, running: &Running, caller: &Identity) -> WorkerClient<Channel> {
        let tls = self.credentials(caller).client_tls(&running.identity);
        let endpoint = Endpoint::from_shared(format!("https://{}", running.address)).unwrap();
        WorkerClient::new(endpoint.tls_config(tls).unwrap().connect().await.unwrap())
    }

    async fn gateway(&self, running: &Running) -> WorkerClient<Channel> {
        self.dial(running, &Identity::gateway("edge").unwrap()).await
    }
}

fn attempt(stream: &str, attempt: u32) -> AttemptId {
    AttemptId { stream: stream.into(), choice: 0, attempt }
}

fn request(stream: &str, prompt: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        id: Some(attempt(stream, 0)),
        prompt: Some(Prompt::Text(prompt.into())),
        seed: 5,
        max_tokens,
        ignore_eos: true,
        top_logprobs: 2,
        model: "tiny".into(),
        ..Default::default()
    }
}

/// A script that takes a while for each token.
fn slow() -> Script {
    let pace = Pace { per_step: Duration::from_millis(4), ..Pace::default() };
    Script { context: 4096, pages: 1024, pace, ..Script::default() }
}

#[derive(Default, Debug)]
struct Said {
    started: Option<Started>,
    frames: Vec<Frame>,
    finished: Option<Finished>,
}

impl Said {
    fn ids(&self) -> Vec<u32> {
        self.frames.iter().map(|frame| frame.id).collect()
    }

    fn reason(&self) -> Reason {
        self.finished.as_ref().unwrap().reason()
    }
}

/// Reads events until the end, or until there are `frames` frames.
async fn read(stream: &mut tonic::Streaming<GenerateEvent>, frames: usize) -> Said {
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

async fn generate(client: &mut WorkerClient<Channel>, request: GenerateRequest) -> Said {
    let mut stream = client.generate(request).await.unwrap().into_inner();
    read(&mut stream, usize::MAX).await
}

async fn rejection(client: &mut WorkerClient<Channel>, request: GenerateRequest) -> (Code, String) {
    let mut stream = client.generate(request).await.unwrap().into_inner();
    match stream.message().await.unwrap().unwrap().event.unwrap() {
        Event::Rejected(rejected) => {
            assert_eq!(stream.message().await.unwrap(), None, "nothing follows a refusal");
            (rejected.code(), rejected.message)
        }
        other => panic!("{other:?} instead of a refusal"),
    }
}

#[tokio::test]
async fn frames_chain_from_the_prompt_on() {
    let cluster = Cluster::new();
    let running = cluster.start(Script::default(), PATIENCE).await;
    let said = generate(&mut cluster.gateway(&running).await, request("a", "hello", 30)).await;
    let started = said.started.as_ref().unwrap();
    assert_eq!(started.prompt_tokens, 5);
    assert_eq!(started.numerics_id, "scripted-0");
    let mut digest = PrefixDigest::of_prompt(&b"hello".map(u32::from));
    assert_eq!(started.prompt_digest, digest.to_bytes());
    for (index, frame) in said.frames.iter().enumerate() {
        assert_eq!(frame.index as usize, index);
        assert_eq!(frame.digest, digest.to_bytes());
        assert_eq!(frame.attempt, Some(attempt("a", 0)));
        assert_eq!(frame.top.len(), 2);
        digest = digest.then(frame.id);
    }
    assert_eq!((said.frames.len(), said.reason()), (30, Reason::Length));
}

#[tokio::test]
async fn a_lost_connection_is_attached_to_again() {
    let cluster = Cluster::new();
    let running = cluster.start(slow(), PATIENCE).await;
    let whole = generate(&mut cluster.gateway(&running).await, request("whole", "hello", 40)).await;

    let mut first =
        cluster.gateway(&running).await.generate(request("cut", "hello", 40)).await.unwrap().into_inner();
    let heard = read(&mut first, 7).await;
    drop(first);
    let from = heard.frames.len() as u32;
    let again = AttachRequest { id: Some(attempt("cut", 0)), from_index: from };
    let mut rest = cluster.gateway(&running).await.attach(again).await.unwrap().into_inner();
    let rest = read(&mut rest, usize::MAX).await;
    assert_eq!(rest.frames[0].index, from);
    assert_eq!([heard.ids(), rest.ids()].concat(), whole.ids());
    assert_eq!(rest.reason(), Reason::Length);

    let unknown = AttachRequest { id: Some(attempt("cut", 1)), from_index: 0 };
    let status = cluster.gateway(&running).await.attach(unknown).await.unwrap_err();
    assert_eq!(status.code(), Grpc::NotFound);
}

#[tokio::test]
async fn nobody_listening_for_the_grace_period_ends_an_attempt() {
    let cluster = Cluster::new();
    // All its tokens would take far longer than this test waits.
    let pace = Pace { per_step: Duration::from_millis(20), ..Pace::default() };
    let running = cluster.start(Script { pace, ..slow() }, Duration::from_millis(50)).await;
    let mut client = cluster.gateway(&running).await;
    let mut stream = client.generate(request("a", "hello", 4000)).await.unwrap().into_inner();
    read(&mut stream, 1).await;
    drop(stream);
    let mut health = client.health(HealthRequest { interval_ms: 10 }).await.unwrap().into_inner();
    let gone = async { while health.message().await.unwrap().unwrap().active > 0 {} };
    tokio::time::timeout(PATIENCE, gone).await.expect("the attempt goes on");
}

#[tokio::test]
async fn cancel_ends_an_attempt_and_knows_no_unknown_ones() {
    let cluster = Cluster::new();
    let running = cluster.start(slow(), PATIENCE).await;
    let mut client = cluster.gateway(&running).await;
    let mut stream = client.generate(request("a", "hello", 4000)).await.unwrap().into_inner();
    read(&mut stream, 2).await;
    // A late word about another attempt of this stream touches nothing.
    client.cancel(CancelRequest { id: Some(attempt("a", 1)) }).await.unwrap();
    read(&mut stream, 2).await;
    client.cancel(CancelRequest { id: Some(attempt("a", 0)) }).await.unwrap();
    let rest = read(&mut stream, usize::MAX).await;
    assert_eq!(rest.reason(), Reason::Cancelled);
    client.cancel(CancelRequest { id: Some(attempt("a", 0)) }).await.unwrap();
}

#[tokio::test]
async fn a_drained_worker_moves_its_attempts_and_another_continues_them_exactly() {
    let cluster = Cluster::new();
    let (first, second) = (
        cluster.start(slow(), PATIENCE).await,
        cluster.start(Script { context: 4096, pages: 600, ..Script::default() }, PATIENCE).await,
    );
    let mut base = request("a", "hello", 200);
    base.sampling =
        Some(Sampling { temperature: Some(0.9), frequency_penalty: Some(0.5), ..Default::default() });
    let whole = generate(
        &mut cluster.gateway(&second).await,
        GenerateRequest { id: Some(attempt("w", 0)), ..base.clone() },
    )
    .await;

    let mut client = cluster.gateway(&first).await;
    let mut stream = client.generate(base.clone()).await.unwrap().into_inner();
    let mut heard = read(&mut stream, 3).await;
    let moved = client.drain(DrainRequest { deadline_ms: 0 }).await.unwrap().into_inner().moved;
    assert_eq!(moved, 1);
    let end = read(&mut stream, usize::MAX).await;
    assert_eq!(end.reason(), Reason::Drained);
    heard.frames.extend(end.frames);
    let (code, _) = rejection(&mut client, request("b", "hello", 1)).await;
    assert_eq!(code, Code::Draining);

    let digest = PrefixDigest::of_prompt(&b"hello".map(u32::from)).then_all(&heard.ids());
    let resume = Resume { ids: heard.ids(), digest: digest.to_bytes() };
    let continued =
        GenerateRequest { id: Some(attempt("a", 1)), resume: Some(resume.clone()), ..base.clone() };
    let mut client = cluster.gateway(&second).await;
    let rest = generate(&mut client, continued.clone()).await;
    let plain = |frames: &[Frame]| -> Vec<_> {
        frames
            .iter()
            .map(|frame| (frame.index, frame.id, frame.logprob.to_bits(), frame.digest.clone()))
            .collect()
    };
    let all: Vec<Frame> = heard.frames.iter().chain(&rest.frames).cloned().collect();
    assert_eq!(plain(&all), plain(&whole.frames), "ids, logprobs and digests go on bit for bit");

    let wrong = Resume { digest: PrefixDigest::of_prompt(&[1]).to_bytes(), ..resume };
    let diverged = GenerateRequest { id: Some(attempt("a", 2)), resume: Some(wrong), ..continued };
    assert_eq!(rejection(&mut client, diverged).await.0, Code::Diverged);
}

#[tokio::test]
async fn roles_decide_who_may_call_what() {
    let cluster = Cluster::new();
    let running = cluster.start(Script::default(), PATIENCE).await;

    let mut host = cluster.dial(&running, &Identity::host("mac-a").unwrap()).await;
    let refused = host.generate(request("a", "x", 1)).await.unwrap_err();
    assert_eq!(refused.code(), Grpc::PermissionDenied);
    let id = Some(attempt("a", 0));
    assert_eq!(host.cancel(CancelRequest { id }).await.unwrap_err().code(), Grpc::PermissionDenied);
    let report =
        host.health(HealthRequest::default()).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!((report.state(), report.workload.as_str(), report.epoch), (State::Ready, "w-1", 7));

    let mut peer = cluster.dial(&running, &Identity::worker("mac-b", "w-2").unwrap()).await;
    assert_eq!(peer.health(HealthRequest::default()).await.unwrap_err().code(), Grpc::PermissionDenied);

    let mut admin = cluster.dial(&running, &Identity::admin("ada").unwrap()).await;
    assert_eq!(generate(&mut admin, request("b", "x", 3)).await.frames.len(), 3);

    let stranger = Cluster::new();
    let tls = stranger.credentials(&Identity::gateway("edge").unwrap());
    let trusting = tandem_pki::Credentials { ca_pem: cluster.credentials(&running.identity).ca_pem, ..tls };
    let endpoint = Endpoint::from_shared(format!("https://{}", running.address)).unwrap();
    let channel = endpoint.tls_config(trusting.client_tls(&running.identity)).unwrap().connect().await;
    let heard = match channel {
        Err(_) => return,
        Ok(channel) => WorkerClient::new(channel).health(HealthRequest::default()).await,
    };
    assert!(heard.is_err(), "another authority's certificate got an answer");
}

#[tokio::test]
async fn impossible_requests_are_refused_with_a_sentence() {
    let cluster = Cluster::new();
    let running = cluster.start(Script::default(), PATIENCE).await;
    let mut client = cluster.gateway(&running).await;
    let base = || request("a", "hello", 10);
    let ids = |ids: Vec<u32>| Some(Prompt::Ids(TokenIds { ids }));
    let refused = [
        (
            GenerateRequest { max_tokens: 300, ..base() },
            Code::ContextLengthExceeded,
            "5 tokens and max_tokens is 300",
        ),
        (
            GenerateRequest { prompt: ids(vec![1; 256]), ..base() },
            Code::ContextLengthExceeded,
            "context of 256 tokens",
        ),
        (GenerateRequest { model: "other".into(), ..base() }, Code::ModelNotFound, "serves `tiny`"),
        (GenerateRequest { prompt: ids(vec![]), ..base() }, Code::InvalidRequest, "empty"),
        (GenerateRequest { prompt: ids(vec![9999]), ..base() }, Code::InvalidRequest, "9999"),
        (GenerateRequest { prompt: None, ..base() }, Code::InvalidRequest, "no prompt"),
        (GenerateRequest { id: None, ..base() }, Code::InvalidRequest, "no attempt"),
        (GenerateRequest { top_logprobs: 21, ..base() }, Code::InvalidRequest, "top_logprobs"),
        (
            GenerateRequest {
                sampling: Some(Sampling { temperature: Some(f32::NAN), ..Default::default() }),
                ..base()
            },
            Code::InvalidRequest,
            "temperature",
        ),
        (
            GenerateRequest { resume: Some(Resume { ids: vec![1], digest: vec![0; 3] }), ..base() },
            Code::InvalidRequest,
            "16 bytes",
        ),
    ];
    for (number, (mut request, code, words)) in refused.into_iter().enumerate() {
        // A refusal uses its attempt's number up.
        request.id.iter_mut().for_each(|id| id.attempt = number as u32 + 1);
        let (found, message) = rejection(&mut client, request).await;
        assert_eq!(found, code, "{message}");
        assert!(message.contains(words), "`{message}` does not say `{words}`");
    }
    let long_name = GenerateRequest { model: "llm/tiny".into(), ..base() };
    assert_eq!(generate(&mut client, long_name.clone()).await.frames.len(), 10);
    let (code, message) = rejection(&mut client, long_name).await;
    assert!(code == Code::Overloaded && message.contains("attach"), "{message}");
}

#[tokio::test]
async fn a_poisoned_stream_ends_alone_and_a_panic_is_reported() {
    let cluster = Cluster::new();
    let script = Script { poison: Some(1), crash: Some(2), ..slow() };
    let running = cluster.start(script, PATIENCE).await;
    let mut client = cluster.gateway(&running).await;
    let of = |stream: &str, id: u32| GenerateRequest {
        prompt: Some(Prompt::Ids(TokenIds { ids: vec![9, id] })),
        sampling: Some(Sampling {
            logit_bias: [1, 2].map(|id| tandem_worker_api::LogitBias { id, bias: -100.0 }).to_vec(),
            ..Default::default()
        }),
        ..request(stream, "", 500)
    };
    let mut healthy = client.generate(of("healthy", 3)).await.unwrap().into_inner();
    read(&mut healthy, 2).await;
    let poisoned = generate(&mut client, of("poisoned", 1)).await;
    assert_eq!((poisoned.reason(), poisoned.frames.len()), (Reason::Failed, 0));
    read(&mut healthy, 2).await;

    let mut health = client.health(HealthRequest { interval_ms: 60_000 }).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().state(), State::Ready);
    let crashed = generate(&mut client, of("crash", 2)).await;
    assert_eq!(crashed.reason(), Reason::Failed);
    assert_eq!(read(&mut healthy, usize::MAX).await.reason(), Reason::Failed);
    let report = health.message().await.unwrap().unwrap();
    assert_eq!(report.state(), State::Failed);
    assert!(report.message.contains("says to crash"), "{}", report.message);
    assert_eq!(health.message().await.unwrap(), None);
}

#[tokio::test]
async fn a_worker_that_can_not_load_says_why_and_one_that_loads_says_so() {
    #[derive(Debug, thiserror::Error)]
    #[error("the file is a poem")]
    struct Poem;
    let settings = Settings {
        models: vec!["tiny".into()],
        workload: String::new(),
        epoch: 0,
        sampling: Default::default(),
        max_sequences: 1,
        grace: PATIENCE,
    };
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (worker, ended) = Worker::start(settings, move |_| {
        gone.recv_timeout(PATIENCE).unwrap();
        Err::<crate::worker::Loaded<tandem_engine::scheduler::scripted::ScriptedModel>, _>(Poem)
    })
    .unwrap();
    assert_eq!(worker.health().state(), State::Loading);
    let mut events = worker.generate(request("a", "x", 1)).await;
    let Some(Ok(GenerateEvent { event: Some(Event::Rejected(rejected)) })) = events.next().await else {
        panic!("a loading worker took a request");
    };
    assert_eq!(rejected.code(), Code::Loading);
    go.send(()).unwrap();
    assert!(matches!(ended.await.unwrap(), Err(WorkerFailure::Load(Poem))));
    assert_eq!(worker.health().state(), State::Failed);
    assert_eq!(worker.health().message, "the model can't be loaded: the file is a poem");
}
