//! A worker that says what its script says, when the test lets it.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::stream::{self, BoxStream, StreamExt};
use tandem_pki::{CertificateAuthority, ClientCertificates, HOST_LIFETIME, Identity};
use tandem_worker_api::generate_event::Event;
use tandem_worker_api::worker_server::{Worker as Service, WorkerServer};
use tandem_worker_api::{
    AttachRequest, AttemptId, CancelRequest, CancelResponse, DrainRequest, DrainResponse, Finished, Frame,
    GenerateEvent, GenerateRequest, HealthReport, HealthRequest, PrefixDigest, Rejected, Started, finished,
    generate_request, health_report, rejected,
};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What a worker computes, and where it stops until it is told to go on.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub numerics_id: &'static str,
    /// Another salt is another choice of tokens.
    pub salt: u32,
    /// Waits before it speaks this index; 0 is before Started.
    pub pause: Option<Pause>,
    pub refuses: Option<rejected::Code>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    BeforeStarted,
    Before(u32),
    BeforeFinished,
}

impl Default for Script {
    fn default() -> Self {
        Self { numerics_id: "x", salt: 0, pause: None, refuses: None }
    }
}

impl Script {
    pub fn pausing(pause: Pause) -> Self {
        Self { pause: Some(pause), ..Self::default() }
    }
}

/// A token's text: characters of one to four bytes, cut anywhere.
const PIECES: [&[u8]; 8] =
    [b"a", b" ", "é".as_bytes(), b"\xf0\x9f", b"\x98\x80", "日".as_bytes(), b"\xe6", b"."];

pub fn piece(id: u32) -> &'static [u8] {
    PIECES[id as usize % PIECES.len()]
}

fn prompt_ids(request: &GenerateRequest) -> Vec<u32> {
    match &request.prompt {
        Some(generate_request::Prompt::Chat(chat)) => chat.messages_json.bytes().map(u32::from).collect(),
        other => panic!("the client sends chats, not {other:?}"),
    }
}

/// What a worker of this salt says after `ids`, up to `count` in all.
pub fn continued(messages_json: &str, choice: u32, salt: u32, mut ids: Vec<u32>, count: usize) -> Vec<u32> {
    let prompt: Vec<u32> = messages_json.bytes().map(u32::from).collect();
    let mut digest = PrefixDigest::of_prompt(&prompt).then_all(&ids);
    while ids.len() < count {
        let id = token(digest, choice, salt);
        digest = digest.then(id);
        ids.push(id);
    }
    ids
}

fn token(digest: PrefixDigest, choice: u32, salt: u32) -> u32 {
    let bytes = digest.to_bytes();
    (u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]) ^ salt).wrapping_add(choice * 7919)
}

#[derive(Debug)]
struct Shared {
    script: Script,
    ticks: AtomicU64,
    spoken: AtomicU64,
    /// Attempts that reached the pause.
    reached: watch::Sender<usize>,
    released: watch::Sender<bool>,
    frozen: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    running: watch::Sender<HashSet<AttemptId>>,
    served: watch::Sender<usize>,
    last: watch::Sender<Option<GenerateRequest>>,
}

/// A scripted worker with a runtime of its own, so that killing it closes every socket at once.
pub struct Worker {
    pub name: String,
    pub address: SocketAddr,
    pub script: Script,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Worker {
    pub fn start(authority: &CertificateAuthority, name: &str, script: Script) -> Self {
        let identity = Identity::worker("host", name).unwrap();
        let own = authority.credentials(&identity, &[], SystemTime::now(), HOST_LIFETIME).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script,
            ticks: AtomicU64::new(0),
            spoken: AtomicU64::new(0),
            reached: watch::Sender::new(0),
            released: watch::Sender::new(false),
            frozen: watch::Sender::new(false),
            draining: watch::Sender::new(false),
            running: watch::Sender::default(),
            served: watch::Sender::new(0),
            last: watch::Sender::new(None),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = WorkerServer::new(Scripted(shared.clone()));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            Server::builder()
                .tls_config(own.server_tls(ClientCertificates::Required))
                .unwrap()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { name: name.to_owned(), address, script, shared, runtime: Some(runtime) }
    }

    pub fn server_name(&self) -> String {
        Identity::worker("host", &self.name).unwrap().server_name()
    }

    /// Closes every socket at once, as SIGKILL does.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn alive(&self) -> bool {
        self.runtime.is_some()
    }

    /// So many attempts wait at the pause.
    pub async fn reached(&self, count: usize) {
        self.shared.reached.subscribe().wait_for(|reached| *reached >= count).await.unwrap();
    }

    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// Neither ticks nor frames nor reports nor answers, with every socket open.
    pub fn freeze(&self) {
        self.shared.frozen.send_replace(true);
    }

    pub fn thaw(&self) {
        self.shared.frozen.send_replace(false);
    }

    pub fn drain(&self) {
        self.shared.draining.send_replace(true);
    }

    /// Nothing runs on it.
    pub async fn idle(&self) {
        self.shared.running.subscribe().wait_for(HashSet::is_empty).await.unwrap();
    }

    /// Attempts that it took so far.
    pub fn served(&self) -> usize {
        *self.shared.served.borrow()
    }

    /// Frames of all attempts.
    pub fn spoken(&self) -> u64 {
        self.shared.spoken.load(Ordering::Relaxed)
    }

    pub async fn has_served(&self, count: usize) {
        self.shared.served.subscribe().wait_for(|served| *served >= count).await.unwrap();
    }

    pub fn last_request(&self) -> GenerateRequest {
        self.shared.last.borrow().clone().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Scripted(Arc<Shared>);

impl Shared {
    /// Returns while it is not frozen.
    async fn thawed(&self) {
        self.frozen.subscribe().wait_for(|frozen| !frozen).await.unwrap();
    }

    async fn pause_at(&self, here: Pause) {
        if self.script.pause == Some(here) {
            self.reached.send_modify(|reached| *reached += 1);
            let mut released = self.released.subscribe();
            let mut draining = self.draining.subscribe();
            tokio::select! {
                released = released.wait_for(|released| *released) => { released.unwrap(); }
                draining = draining.wait_for(|draining| *draining) => { draining.unwrap(); }
            }
        }
        self.thawed().await;
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    fn runs(&self, id: &AttemptId) -> bool {
        self.running.borrow().contains(id)
    }

    fn ended(&self, id: &AttemptId) {
        self.running.send_modify(|running| {
            running.remove(id);
        });
    }
}

enum Place {
    Start,
    Token,
    Over,
}

/// One attempt; goes on when nobody listens, as a real one does, until it is cancelled or done.
struct Voice {
    shared: Arc<Shared>,
    id: AttemptId,
    ids: Vec<u32>,
    digest: PrefixDigest,
    prompt: PrefixDigest,
    count: usize,
    place: Place,
}

impl Voice {
    async fn next(&mut self) -> Option<GenerateEvent> {
        let event = match self.place {
            Place::Over => return None,
            Place::Start => {
                self.shared.pause_at(Pause::BeforeStarted).await;
                self.place = Place::Token;
                if let Some(code) = self.shared.script.refuses {
                    self.place = Place::Over;
                    let message = "the script says so".to_owned();
                    Event::Rejected(Rejected { code: code.into(), message, param: String::new() })
                } else {
                    Event::Started(Started {
                        prompt_tokens: 9,
                        prompt_digest: self.prompt.to_bytes(),
                        numerics_id: self.shared.script.numerics_id.to_owned(),
                        ..Started::default()
                    })
                }
            }
            Place::Token if *self.shared.draining.borrow() => self.finish(finished::Reason::Drained),
            Place::Token if self.ids.len() < self.count => {
                let index = u32::try_from(self.ids.len()).unwrap();
                self.shared.pause_at(Pause::Before(index)).await;
                if *self.shared.draining.borrow() {
                    self.finish(finished::Reason::Drained)
                } else {
                    self.frame(index)
                }
            }
            Place::Token => {
                self.shared.pause_at(Pause::BeforeFinished).await;
                self.finish(finished::Reason::Length)
            }
        };
        if !self.shared.runs(&self.id) {
            self.place = Place::Over;
            return None;
        }
        if matches!(self.place, Place::Over) {
            self.shared.ended(&self.id);
        }
        Some(GenerateEvent { event: Some(event) })
    }

    fn frame(&mut self, index: u32) -> Event {
        let id = token(self.digest, self.id.choice, self.shared.script.salt);
        let digest = self.digest;
        self.shared.spoken.fetch_add(1, Ordering::Relaxed);
        self.ids.push(id);
        self.digest = digest.then(id);
        Event::Frame(Frame {
            attempt: Some(self.id.clone()),
            index,
            id,
            bytes: piece(id).to_vec(),
            logprob: -(id as f32) / 1e6,
            digest: digest.to_bytes(),
            ..Frame::default()
        })
    }

    fn finish(&mut self, reason: finished::Reason) -> Event {
        self.place = Place::Over;
        let tokens = u32::try_from(self.ids.len()).unwrap();
        Event::Finished(Finished { reason: reason.into(), tokens, message: String::new() })
    }
}

type Events<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Service for Scripted {
    type GenerateStream = Events<GenerateEvent>;
    type AttachStream = Events<GenerateEvent>;
    type HealthStream = Events<HealthReport>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        self.0.thawed().await;
        let request = request.into_inner();
        let prompt = PrefixDigest::of_prompt(&prompt_ids(&request));
        let resume = request.resume.clone().unwrap_or_default();
        let digest = prompt.then_all(&resume.ids);
        if request.resume.is_some() && resume.digest != digest.to_bytes() {
            let code = rejected::Code::Diverged.into();
            let event = Some(Event::Rejected(Rejected { code, ..Rejected::default() }));
            return Ok(Response::new(stream::iter([Ok(GenerateEvent { event })]).boxed()));
        }
        let id = request.id.clone().unwrap();
        self.0.running.send_modify(|running| assert!(running.insert(id.clone()), "an attempt came twice"));
        let voice = Voice {
            shared: self.0.clone(),
            id,
            ids: resume.ids,
            digest,
            prompt,
            count: request.max_tokens as usize,
            place: Place::Start,
        };
        self.0.last.send_replace(Some(request));
        self.0.served.send_modify(|served| *served += 1);
        let events = stream::unfold(voice, |mut voice| async { Some((Ok(voice.next().await?), voice)) });
        Ok(Response::new(events.boxed()))
    }

    async fn attach(&self, _: Request<AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::not_found("no attempt is kept"))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelResponse>, Status> {
        self.0.thawed().await;
        self.0.ended(&request.into_inner().id.unwrap());
        Ok(Response::new(CancelResponse {}))
    }

    async fn health(&self, request: Request<HealthRequest>) -> Result<Response<Self::HealthStream>, Status> {
        self.0.thawed().await;
        let every = Duration::from_millis(request.into_inner().interval_ms.into());
        let ticks = tokio::time::interval(every);
        let reports = stream::unfold((self.0.clone(), ticks), |(shared, mut ticks)| async move {
            ticks.tick().await;
            shared.thawed().await;
            let draining = *shared.draining.borrow();
            let state = if draining { health_report::State::Draining } else { health_report::State::Ready };
            let report = HealthReport {
                state: state.into(),
                ticks: shared.ticks.fetch_add(1, Ordering::Relaxed),
                active: u32::try_from(shared.running.borrow().len()).unwrap(),
                numerics_id: shared.script.numerics_id.to_owned(),
                ..HealthReport::default()
            };
            Some((Ok(report), (shared, ticks)))
        });
        Ok(Response::new(reports.boxed()))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.0.draining.send_replace(true);
        Ok(Response::new(DrainResponse { moved: 0 }))
    }
}
