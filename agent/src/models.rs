//! Answers what an operator asks about the weights of this host: list, pull, import, verify, prune. One line each, until the
//! last; nobody reading any more ends the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tandem_agent_core::{Amounts, Transfer};
use tandem_control_api::agent_message::Message as Up;
use tandem_control_api::models_reply::Said;
use tandem_control_api::models_request::Ask;
use tandem_control_api::{
    self as api, AgentMessage, ModelsImport, ModelsProgress, ModelsPrune, ModelsPull, ModelsReply,
    ModelsRequest, ModelsVerify,
};
use tandem_sources::{ResolvedFile, Secret, Sha256Hex, Source};
use tandem_weights::{FileState, Order, Peer, Progress, StoredFile};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::error::chain;
use crate::keeper::{Keeper, seconds};
use crate::settings::Settings;
use crate::supply::Supply;

/// How often progress is told.
const OFTEN: Duration = Duration::from_secs(1);
/// Files that one request may name.
const MOST_FILES: usize = 1024;

/// What answers need.
pub(crate) struct Models {
    pub(crate) settings: Arc<Settings>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) supply: watch::Receiver<Supply>,
    pub(crate) peers: watch::Receiver<Vec<Peer>>,
}

/// Why an answer ends early.
enum End {
    /// A sentence for whoever asked.
    Failed(String),
    /// Nobody reads any more.
    Unread,
}

impl From<String> for End {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl Models {
    /// Answers to the end.
    pub(crate) async fn answer(&self, request: ModelsRequest, up: &mpsc::Sender<AgentMessage>) {
        let reply = Reply { request: &request.request, up };
        let ended = match &request.ask {
            Some(Ask::List(_)) => self.list(&reply).await,
            Some(Ask::Pull(pull)) => self.pull(pull, &reply).await,
            Some(Ask::Import(import)) => self.import(import, &reply).await,
            Some(Ask::Verify(verify)) => self.verify(verify, &reply).await,
            Some(Ask::Prune(prune)) => self.prune(prune, &reply).await,
            None => {
                Err(End::Failed("this release does not know what is asked: upgrade this host".to_owned()))
            }
        };
        let last = match ended {
            Ok(()) => reply.send(None, true).await,
            Err(End::Failed(why)) => reply.send(Some(Said::Error(why)), true).await,
            Err(End::Unread) => Err(End::Unread),
        };
        if last.is_err() {
            tracing::debug!(request = request.request, "nobody reads an answer about models any more");
        }
    }

    async fn list(&self, reply: &Reply<'_>) -> Result<(), End> {
        let stock = self.keeper.stock().await.map_err(|error| chain(&error))?;
        for file in &stock.files {
            reply.file(file, state(&file.state)).await?;
        }
        Ok(())
    }

    async fn pull(&self, pull: &ModelsPull, reply: &Reply<'_>) -> Result<(), End> {
        let source: Source = pull.source.parse().map_err(|error| chain(&error))?;
        let files = resolved(&pull.files)?;
        let access = self.supply.borrow().access(&self.settings.access)?;
        let credential = (!pull.secret.is_empty()).then(|| Secret::new(&pull.secret));
        let order = |file: &ResolvedFile| Order {
            file: file.clone(),
            source: source.clone(),
            credential: credential.clone(),
            access: access.clone(),
            peers: self.peers.clone(),
            own_host: self.settings.name.to_string(),
        };
        let orders: Vec<Order> = files.iter().map(order).collect();
        // From the start, so that what has come does not make room for what comes.
        self.keeper.pulled(&files);
        let progress = Progress::new();
        progress.expect(&files);
        let work = async { self.keeper.bring(orders, &progress).await.map_err(|error| chain(&error)) };
        let done = reply.while_working("fetched", &progress, work).await;
        self.keeper.pulled(&files);
        self.keeper.news.notify_one();
        done?;
        let stock = self.keeper.stock().await.map_err(|error| chain(&error))?;
        for file in files.iter().filter_map(|file| stock.of(&file.sha256)) {
            reply.file(file, state(&file.state)).await?;
        }
        Ok(())
    }

    async fn import(&self, import: &ModelsImport, reply: &Reply<'_>) -> Result<(), End> {
        let path = PathBuf::from(&import.path);
        if !path.is_absolute() {
            let why = format!(
                "`{}` is not an absolute path on this host: give it from the root on",
                path.display()
            );
            return Err(End::Failed(why));
        }
        check(&path).await?;
        let progress = Progress::new();
        let work = async {
            self.keeper.store.import(&path, import.copy, &progress).await.map_err(|error| chain(&error))
        };
        let files = reply.while_working("hashed", &progress, work).await;
        self.keeper.news.notify_one();
        for file in files? {
            reply.file(&file, "Imported").await?;
        }
        Ok(())
    }

    async fn verify(&self, verify: &ModelsVerify, reply: &Reply<'_>) -> Result<(), End> {
        let stock = self.keeper.stock().await.map_err(|error| chain(&error))?;
        let mut chosen: Vec<StoredFile> = Vec::new();
        for digest in &verify.sha256 {
            let digest: Sha256Hex = digest.parse().map_err(|_| format!("`{digest}` is not a sha256"))?;
            let file = stock.of(&digest).ok_or_else(|| format!("{digest} is not on this host"))?;
            chosen.push(file.clone());
        }
        if chosen.is_empty() {
            chosen = stock.files;
        }
        chosen.retain(|file| !matches!(file.state, FileState::Partial(_)));
        let mut wrong = 0;
        for file in &chosen {
            let progress = Progress::new();
            let what = format!(
                "hashed of {}",
                if file.name.is_empty() { file.sha256.to_string() } else { file.name.clone() }
            );
            let work = async { Ok(self.keeper.verify(file.sha256, &file.name, &progress).await) };
            match reply.while_working(&what, &progress, work).await? {
                Ok(()) => reply.file(file, "Verified").await?,
                Err(found) => {
                    wrong += 1;
                    reply.file(file, "Damaged").await?;
                    reply
                        .note(format!(
                            "{}: it is out of use, and fetched again where it is needed",
                            found.why
                        ))
                        .await?;
                }
            }
        }
        let count = chosen.len();
        if wrong > 0 {
            return Err(End::Failed(format!("{wrong} of {count} files are not what they should be")));
        }
        reply.note(format!("{count} files are what they should be")).await
    }

    async fn prune(&self, prune: &ModelsPrune, reply: &Reply<'_>) -> Result<(), End> {
        let keep = match (prune.all, prune.keep_bytes, self.keeper.store.options().budget_bytes) {
            (true, ..) => 0,
            (false, 0, Some(budget)) => budget,
            (false, 0, None) => {
                let why =
                    "this host has no budget for weights: say how much to keep, or prune all that may go";
                return Err(End::Failed(why.to_owned()));
            }
            (false, keep, _) => keep,
        };
        let gone = self.keeper.prune(keep, prune.dry_run).await.map_err(|error| chain(&error))?;
        for file in &gone {
            reply.file(file, if prune.dry_run { state(&file.state) } else { "Removed" }).await?;
        }
        let stock = self.keeper.stock().await.map_err(|error| chain(&error))?;
        let left = if prune.dry_run { gone.iter().map(|file| file.bytes).sum() } else { 0 };
        let above = stock.used_bytes.saturating_sub(left).saturating_sub(keep);
        if above > 0 && !prune.all {
            let note =
                format!("{above} bytes above that stay: `tandem models list` says why each file stays");
            reply.note(note).await?;
        }
        Ok(())
    }
}

/// The way back to whoever asked.
struct Reply<'a> {
    request: &'a str,
    up: &'a mpsc::Sender<AgentMessage>,
}

impl Reply<'_> {
    async fn send(&self, said: Option<Said>, end: bool) -> Result<(), End> {
        let reply = ModelsReply { request: self.request.to_owned(), host: String::new(), said, end };
        self.up.send(Up::Models(reply).into()).await.map_err(|_| End::Unread)
    }

    async fn note(&self, note: String) -> Result<(), End> {
        self.send(Some(Said::Note(note)), false).await
    }

    async fn file(&self, file: &StoredFile, state: &str) -> Result<(), End> {
        let file = api::StoredFile {
            sha256: file.sha256.to_string(),
            bytes: file.bytes,
            name: file.name.clone(),
            path: if file.referred { file.path.display().to_string() } else { String::new() },
            last_used: seconds(file.last_used),
            pinned: file.pinned.clone().unwrap_or_default(),
            state: state.to_owned(),
        };
        self.send(Some(Said::File(file)), false).await
    }

    /// Does the work, and tells how far it is meanwhile.
    async fn while_working<T>(
        &self,
        what: &str,
        progress: &Progress,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, End> {
        tokio::pin!(work);
        let (start, mut transfer) = (Instant::now(), Transfer::default());
        let mut tick = interval(OFTEN);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                done = &mut work => {
                    self.progress(what, progress, &mut transfer, start).await?;
                    return Ok(done?);
                }
                _ = tick.tick() => self.progress(what, progress, &mut transfer, start).await?,
            }
        }
    }

    async fn progress(
        &self,
        what: &str,
        progress: &Progress,
        transfer: &mut Transfer,
        start: Instant,
    ) -> Result<(), End> {
        let (done, total) = (progress.done(), progress.total());
        let (source, peer) = (progress.source_bytes(), progress.peer_bytes());
        // What is only read moves nothing.
        let source = if source == 0 && peer == 0 { done } else { source };
        let measured = transfer.measure(start.elapsed(), Amounts { done, total, source, peer });
        let progress = ModelsProgress {
            what: what.to_owned(),
            done,
            total,
            bytes_per_second: measured.bytes_per_second,
        };
        self.send(Some(Said::Progress(progress)), false).await
    }
}

fn state(state: &FileState) -> &'static str {
    match state {
        FileState::Verified => "Verified",
        FileState::Partial(_) => "Partial",
        FileState::Changed(_) => "Changed",
    }
}

fn resolved(files: &[api::ModelFile]) -> Result<Vec<ResolvedFile>, String> {
    if files.is_empty() || files.len() > MOST_FILES {
        return Err(format!("{} files are to be pulled: it has to be 1 to {MOST_FILES}", files.len()));
    }
    let file = |file: &api::ModelFile| {
        let sha256 =
            file.sha256.parse().map_err(|_| format!("`{}` of {} is not a sha256", file.sha256, file.name))?;
        Ok(ResolvedFile { name: file.name.clone(), sha256, bytes: file.bytes })
    };
    files.iter().map(file).collect()
}

/// A path that is imported leads to a regular file or a folder.
async fn check(path: &Path) -> Result<(), String> {
    match tokio::fs::metadata(path).await {
        Ok(there) if there.is_file() || there.is_dir() => Ok(()),
        Ok(_) => Err(format!("`{}` is neither a file nor a folder", path.display())),
        Err(error) => Err(format!("`{}` can't be read on this host: {error}", path.display())),
    }
}
