//! Models: from a source and a quant to exact files and their memory, in the background and remembered.
//!
//! Headers come over the network. The answer is kept in the store, so that a restart asks nobody again, and a source
//! whose content changes under a deployment is noticed instead of half-loaded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tandem_crds::{Context, InferenceDeploymentSpec, KvCache, ListedFile, ModelStatus, ResolvedFile, Sizing};
use tandem_gguf::ShardSet;
use tandem_plan::sizing;
use tandem_sources::{Access, Resolved, Source};
use tandem_store::{Store, StoreError};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::caller::chain;
use crate::cluster::Cluster;

/// Collection of answers in the store.
const ANSWERS: &str = "models";
/// Models that are read at once.
const AT_ONCE: usize = 2;
/// Longest that reading one model may take.
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// Wait after a first failure, doubled after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// What the files of a model are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Files {
    source: String,
    quant: String,
    listed: Vec<(String, String)>,
}

/// What one copy is loaded for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Load {
    context_tokens: u32,
    pool_tokens: u32,
    f32_cache: bool,
}

impl Load {
    fn context(&self) -> Context {
        Context {
            tokens: self.context_tokens,
            pool_tokens: Some(self.pool_tokens),
            kv_cache: if self.f32_cache { KvCache::F32 } else { KvCache::F16 },
        }
    }
}

type Question = (Files, Load);

/// What is known of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Knowledge {
    /// Being found out.
    Working,
    /// Known.
    Known(Arc<Answer>),
    /// Not to be had, for now; a sentence that says what to change. Tried again by itself.
    Failed(String),
}

/// The exact files, and what a copy takes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) model: ModelStatus,
    pub(crate) sizing: Sizing,
    /// Types of its tensors that this release doesn't compute. Not kept in the store: the next release may.
    pub(crate) lacking: Vec<String>,
}

/// As the store keeps it: the files, and the sizes for each way that they were loaded.
#[derive(Serialize, Deserialize)]
struct Saved {
    model: ModelStatus,
    sizings: Vec<(Load, Sizing)>,
}

enum State {
    Working(AbortHandle),
    Known(Arc<Answer>),
    Failed { sentence: String, failures: u32, retry: Duration },
}

/// Every model that is asked for.
pub(crate) struct Models {
    known: Mutex<BTreeMap<Question, State>>,
    at_once: Arc<Semaphore>,
}

impl Models {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::default(), at_once: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Question, State>> {
        self.known.lock().expect("no panic while models are changed")
    }

    /// What is known of the model that this deployment asks for; begins to find out, if nothing is.
    pub(crate) fn look(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        spec: &InferenceDeploymentSpec,
    ) -> Knowledge {
        let question = question(spec);
        let now = cluster.clock.elapsed();
        let mut known = self.lock();
        let failures = match known.get(&question) {
            Some(State::Known(answer)) => return Knowledge::Known(Arc::clone(answer)),
            Some(State::Working(_)) => return Knowledge::Working,
            Some(State::Failed { sentence, retry, .. }) if *retry > now => {
                return Knowledge::Failed(sentence.clone());
            }
            Some(State::Failed { failures, .. }) => *failures,
            None => 0,
        };
        let said = match known.get(&question) {
            Some(State::Failed { sentence, .. }) => Knowledge::Failed(sentence.clone()),
            _ => Knowledge::Working,
        };
        let work = find_out(Arc::clone(self), Arc::clone(cluster), question.clone(), failures);
        known.insert(question, State::Working(tokio::spawn(work).abort_handle()));
        said
    }

    /// When a failed one is due again.
    pub(crate) fn next_retry(&self) -> Option<Duration> {
        let known = self.lock();
        known
            .values()
            .filter_map(|state| if let State::Failed { retry, .. } = state { Some(*retry) } else { None })
            .min()
    }

    /// Forgets, and stops finding out, what none of these deployments asks for.
    pub(crate) async fn keep(
        &self,
        store: &dyn Store,
        specs: &[&InferenceDeploymentSpec],
    ) -> Result<(), StoreError> {
        let asked: Vec<Question> = specs.iter().map(|spec| question(spec)).collect();
        let dropped = {
            let mut known = self.lock();
            let before = known.len();
            known.retain(|question, state| {
                let keep = asked.contains(question);
                if !keep && let State::Working(task) = state {
                    task.abort();
                }
                keep
            });
            known.len() != before
        };
        if dropped {
            let keys: Vec<String> = asked.iter().map(|(files, _)| record_key(files)).collect();
            for record in store.records(ANSWERS).await? {
                if !keys.contains(&record.key) {
                    match store.delete_record(ANSWERS, &record.key, &record.version).await {
                        Err(error) if !error.is_conflict() => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }
}

fn question(spec: &InferenceDeploymentSpec) -> Question {
    let listed = spec.model.files.iter().map(|file: &ListedFile| (file.name.clone(), file.sha256.clone()));
    let files =
        Files { source: spec.model.source.clone(), quant: spec.quant.clone(), listed: listed.collect() };
    let load = Load {
        context_tokens: spec.context.tokens,
        pool_tokens: spec.context.pool(),
        f32_cache: spec.context.kv_cache == KvCache::F32,
    };
    (files, load)
}

fn record_key(files: &Files) -> String {
    let json = serde_json::to_vec(files).expect("texts are JSON");
    Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn find_out(models: Arc<Models>, cluster: Arc<Cluster>, question: Question, failures: u32) {
    let found = tokio::time::timeout(LONGEST, answer(&models, &cluster, &question)).await;
    let found =
        found.unwrap_or_else(|_| Err("reading the model took longer than 6 hours: put it nearer".to_owned()));
    let state = match found {
        Ok(answer) => {
            tracing::info!(
                source = question.0.source,
                quant = question.0.quant,
                revision = answer.model.revision,
                "model known"
            );
            State::Known(Arc::new(answer))
        }
        Err(sentence) => {
            tracing::warn!(
                source = question.0.source,
                quant = question.0.quant,
                reason = sentence,
                "model not known"
            );
            let wait = FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LAST_RETRY);
            let retry = cluster.clock.elapsed() + wait;
            State::Failed { sentence, failures: failures.saturating_add(1), retry }
        }
    };
    models.lock().entry(question).and_modify(|known| *known = state);
    cluster.wake.notify_one();
}

/// From the store, or by reading the model.
async fn answer(models: &Models, cluster: &Cluster, (files, load): &Question) -> Result<Answer, String> {
    let key = record_key(files);
    let saved = saved(&*cluster.store, &key).await.map_err(|error| chain(&error))?;
    if let Some(saved) = &saved
        && let Some((_, sizing)) = saved.sizings.iter().find(|(known, _)| known == load)
    {
        return Ok(Answer { model: saved.model.clone(), sizing: *sizing, lacking: Vec::new() });
    }
    let _turn = models.at_once.acquire().await.map_err(|_| "the operator is ending".to_owned())?;
    let source: Source =
        files.source.parse().map_err(|error: tandem_sources::BadSource| error.to_string())?;
    let listed = listed(files)?;
    let resolved = tandem_sources::resolve(&source, &files.quant, &listed, None, &Access::default())
        .await
        .map_err(|error| chain(&error))?;
    if let Some(saved) = &saved
        && saved.model.revision != resolved.revision
    {
        return Err(format!(
            "the files of {} have changed since this deployment was made: put the old ones back, or delete the deployment and \
             apply it again",
            files.source
        ));
    }
    let context = load.context();
    let answer = tokio::task::spawn_blocking(move || size(resolved, &context))
        .await
        .map_err(|_| "the model's headers could not be read: see the operator's log".to_owned())??;
    if answer.lacking.is_empty() {
        let kept = remember(&*cluster.store, &key, &answer.model, load, answer.sizing);
        kept.await.map_err(|error| chain(&error))?;
    }
    Ok(answer)
}

fn listed(files: &Files) -> Result<Vec<tandem_sources::ListedFile>, String> {
    let parse = |(name, sha256): &(String, String)| {
        let sha256 = sha256.parse().map_err(|_| format!("model.files: {sha256} is not a sha256"))?;
        Ok(tandem_sources::ListedFile { name: name.clone(), sha256 })
    };
    files.listed.iter().map(parse).collect()
}

/// Files and memory of a resolved model, from its headers alone.
fn size(resolved: Resolved, context: &Context) -> Result<Answer, String> {
    let shards = ShardSet::assemble(resolved.headers).map_err(|error| chain(&error))?;
    let sizing = sizing::size(&shards, context).map_err(|error| chain(&error))?;
    let lacking = sizing::lacking(&shards, context).map_err(|error| chain(&error))?;
    let files = resolved.files.iter().map(|file| ResolvedFile {
        name: file.name.clone(),
        sha256: file.sha256.to_string(),
        bytes: file.bytes,
    });
    let model = ModelStatus {
        revision: resolved.revision.clone(),
        source: resolved.source.to_string(),
        files: files.collect(),
    };
    Ok(Answer { model, sizing, lacking: lacking.into_iter().map(str::to_owned).collect() })
}

async fn saved(store: &dyn Store, key: &str) -> Result<Option<Saved>, StoreError> {
    let record = store.record(ANSWERS, key).await?;
    Ok(record.and_then(|record| serde_json::from_slice(&record.value).ok()))
}

async fn remember(
    store: &dyn Store,
    key: &str,
    model: &ModelStatus,
    load: &Load,
    sizing: Sizing,
) -> Result<(), StoreError> {
    loop {
        let record = store.record(ANSWERS, key).await?;
        let before = record.as_ref().and_then(|record| serde_json::from_slice::<Saved>(&record.value).ok());
        let mut sizings = before.map(|saved| saved.sizings).unwrap_or_default();
        sizings.retain(|(known, _)| known != load);
        sizings.push((load.clone(), sizing));
        let value =
            serde_json::to_vec(&Saved { model: model.clone(), sizings }).expect("texts and numbers are JSON");
        match store.put_record(ANSWERS, key, record.as_ref().map(|record| &record.version), value).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}
