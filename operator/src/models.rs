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
use tandem_sources::{Resolved, Secret};
use tandem_store::{Store, StoreError, Version};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::caller::chain;
use crate::cluster::Cluster;
use crate::secrets::Credential;

/// Collection of answers in the store.
const ANSWERS: &str = "models";
/// Models that are read at once.
const AT_ONCE: usize = 2;
/// Longest that reading one model's headers may take, waiting for others included.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// Wait after a first failure, doubled after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// What the files of a model are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Files {
    source: String,
    quant: String,
    listed: Vec<(String, String)>,
    /// Namespace, name and key of the secret that opens the source: what one namespace may read, another may not.
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<(String, String, String)>,
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

/// What there is of the credential that a deployment names: none is asked for, one is there, or the sentence that says what to
/// do about one that is not.
pub(crate) type Found = Result<Option<Credential>, String>;

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
    Working { task: AbortHandle, with: Option<Version> },
    Known(Arc<Answer>),
    Failed { sentence: String, failures: u32, retry: Duration, with: Option<Version> },
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

    /// What is known of the model that this deployment asks for; begins to find out, if nothing is. A credential that has
    /// changed is a reason to ask again at once.
    pub(crate) fn look(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        namespace: &str,
        spec: &InferenceDeploymentSpec,
        found: &Found,
    ) -> Knowledge {
        let question = question(namespace, spec);
        let version = version(found);
        let now = cluster.clock.elapsed();
        let mut known = self.lock();
        let (said, failures) = match known.get(&question) {
            Some(State::Known(answer)) => return Knowledge::Known(Arc::clone(answer)),
            Some(State::Working { with, .. }) if *with == version => return Knowledge::Working,
            Some(State::Working { task, .. }) => {
                task.abort();
                (Knowledge::Working, 0)
            }
            Some(State::Failed { sentence, retry, failures, with }) if *with == version => {
                if *retry > now {
                    return Knowledge::Failed(sentence.clone());
                }
                (Knowledge::Failed(sentence.clone()), *failures)
            }
            Some(State::Failed { .. }) | None => (Knowledge::Working, 0),
        };
        let work = find_out(Arc::clone(self), Arc::clone(cluster), question.clone(), found.clone(), failures);
        known.insert(question, State::Working { task: tokio::spawn(work).abort_handle(), with: version });
        said
    }

    /// Reads what a source has of a quant, or of the files that a manifest lists, when it is its turn.
    pub(crate) async fn resolve(
        &self,
        cluster: &Cluster,
        source: &str,
        quant: &str,
        listed: &[tandem_sources::ListedFile],
        credential: Option<&Secret>,
    ) -> Result<Resolved, String> {
        let source = cluster.sources.parse(source)?;
        let _turn = self.at_once.acquire().await.map_err(|_| "the operator is ending".to_owned())?;
        tandem_sources::resolve(&source, quant, listed, credential, &cluster.sources.access)
            .await
            .map_err(|error| chain(&error))
    }

    /// When a failed one is due again.
    pub(crate) fn next_retry(&self) -> Option<Duration> {
        let known = self.lock();
        known
            .values()
            .filter_map(|state| if let State::Failed { retry, .. } = state { Some(*retry) } else { None })
            .min()
    }

    /// Forgets, and stops finding out, what none of these deployments, each with its namespace, asks for.
    pub(crate) async fn keep(
        &self,
        store: &dyn Store,
        specs: &[(&str, &InferenceDeploymentSpec)],
    ) -> Result<(), StoreError> {
        let asked: Vec<Question> = specs.iter().map(|(namespace, spec)| question(namespace, spec)).collect();
        let dropped = {
            let mut known = self.lock();
            let before = known.len();
            known.retain(|question, state| {
                let keep = asked.contains(question);
                if !keep && let State::Working { task, .. } = state {
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

fn version(found: &Found) -> Option<Version> {
    let credential = found.as_ref().ok().and_then(Option::as_ref);
    credential.map(|credential| credential.version.clone())
}

fn question(namespace: &str, spec: &InferenceDeploymentSpec) -> Question {
    let listed = spec.model.files.iter().map(|file: &ListedFile| (file.name.clone(), file.sha256.clone()));
    let credential = spec.model.credentials.as_ref().map(|credentials| {
        let reference = &credentials.secret_ref;
        (namespace.to_owned(), reference.name.clone(), reference.key.clone())
    });
    let files = Files {
        source: spec.model.source.clone(),
        quant: spec.quant.clone(),
        listed: listed.collect(),
        credential,
    };
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

async fn find_out(
    models: Arc<Models>,
    cluster: Arc<Cluster>,
    question: Question,
    found: Found,
    failures: u32,
) {
    let with = version(&found);
    let answered = tokio::time::timeout(LONGEST, answer(&models, &cluster, &question, found)).await;
    let answered = answered
        .unwrap_or_else(|_| Err("reading the model's headers took longer than 30 minutes".to_owned()));
    let state = match answered {
        Ok(answer) => {
            tracing::info!(
                source = answer.model.source,
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
            State::Failed { sentence, failures: failures.saturating_add(1), retry, with: with.clone() }
        }
    };
    cluster.traced.wakes(format_args!("model {}", question.0.source));
    models.lock().entry(question).and_modify(|known| {
        // Somebody may have begun anew meanwhile, with another credential.
        if matches!(known, State::Working { with: now, .. } if *now == with) {
            *known = state;
        }
    });
    cluster.wake.notify_one();
}

/// From the store, or by reading the model. A source with a revision is pinned by the first answer: neither a restart nor
/// another context makes it move on.
async fn answer(
    models: &Models,
    cluster: &Cluster,
    (files, load): &Question,
    found: Found,
) -> Result<Answer, String> {
    // Also what is known already: the rule may be newer.
    cluster.sources.parse(&files.source)?;
    let key = record_key(files);
    let saved = saved(&*cluster.store, &key).await.map_err(|error| chain(&error))?;
    if let Some(saved) = &saved
        && let Some((_, sizing)) = saved.sizings.iter().find(|(known, _)| known == load)
    {
        return Ok(Answer { model: saved.model.clone(), sizing: *sizing, lacking: Vec::new() });
    }
    let credential = found?.map(|credential| credential.secret);
    let pinned = saved.as_ref().map(|saved| &saved.model.source).filter(|source| !source.is_empty());
    let source = pinned.unwrap_or(&files.source);
    let listed = listed(files)?;
    let resolved = models.resolve(cluster, source, &files.quant, &listed, credential.as_ref()).await?;
    if let Some(saved) = &saved
        && saved.model.revision != resolved.revision
    {
        return Err(format!(
            "the files of {source} have changed since this deployment was made: put the old ones back, or delete the deployment \
             and apply it again"
        ));
    }
    let context = load.context();
    let answer = tokio::task::spawn_blocking(move || size(resolved, &context))
        .await
        .map_err(|_| "the model's headers could not be read: see the operator's log".to_owned())??;
    // What this release can't run, a later one may: the revision is pinned, and sized again.
    let sizing = answer.lacking.is_empty().then_some(answer.sizing);
    let kept = remember(&*cluster.store, &key, &answer.model, load, sizing);
    kept.await.map_err(|error| chain(&error))?;
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
    sizing: Option<Sizing>,
) -> Result<(), StoreError> {
    loop {
        let record = store.record(ANSWERS, key).await?;
        let before = record.as_ref().and_then(|record| serde_json::from_slice::<Saved>(&record.value).ok());
        let mut sizings = before.map(|saved| saved.sizings).unwrap_or_default();
        sizings.retain(|(known, _)| known != load);
        sizings.extend(sizing.map(|sizing| (load.clone(), sizing)));
        let value =
            serde_json::to_vec(&Saved { model: model.clone(), sizings }).expect("texts and numbers are JSON");
        match store.put_record(ANSWERS, key, record.as_ref().map(|record| &record.version), value).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use jiff::Timestamp;
    use serde_json::json;
    use tandem_store::{EmbeddedStore, ManualClock};

    use super::*;
    use crate::settings::{SourceSettings, Timing};
    use crate::sources::Sources;

    /// On a clock that stands still no retry is ever due: only what is new is a reason to ask again.
    #[tokio::test]
    async fn another_credential_is_asked_with_at_once_and_the_same_one_is_not() {
        tandem_pki::install_tls_provider();
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
        let store = EmbeddedStore::open(&dir.path().join("store.redb"), clock.clone()).await.unwrap();
        let now = SystemTime::now();
        let authorities = crate::authority::open(&store, now).await.unwrap();
        let credentials = authorities.operator(&[], now).unwrap();
        let publisher = crate::publish::Publisher::new(Vec::new(), String::new(), None);
        let cluster = Arc::new(Cluster::new(
            Arc::new(store),
            clock.clone(),
            authorities,
            crate::lead::Own::new("operator", "https://127.0.0.1:1", credentials, publisher),
            Timing::default(),
            crate::pods::ServiceAccounts::default(),
            Sources::new(&SourceSettings::default()).unwrap(),
        ));
        let spec: InferenceDeploymentSpec = serde_json::from_value(json!({
            "model": {"name": "tiny", "source": format!("file://{}/none", dir.path().display()),
                "credentials": {"secretRef": {"name": "hub", "key": "token"}}},
            "quant": "F32", "context": {"tokens": 32},
        }))
        .unwrap();
        let with = |version: &str| -> Found {
            let secret = Secret::new("x");
            Ok(Some(Credential { secret, version: Version(version.to_owned()) }))
        };
        let look = |found: &Found| cluster.models.look(&cluster, "llm", &spec, found);
        let missing: Found = Err("set it".to_owned());
        assert_eq!(look(&missing), Knowledge::Working);
        cluster.wake.notified().await;
        assert_eq!(look(&missing), Knowledge::Failed("set it".to_owned()));
        assert_eq!(look(&with("1")), Knowledge::Working, "it is there now");
        cluster.wake.notified().await;
        let Knowledge::Failed(sentence) = look(&with("1")) else { panic!("there is no such folder") };
        assert!(sentence.contains("does not exist"), "{sentence}");
        assert_eq!(look(&with("2")), Knowledge::Working, "it is another one");
        cluster.wake.notified().await;
        assert!(matches!(look(&with("2")), Knowledge::Failed(_)));
        clock.advance(LAST_RETRY);
        assert!(matches!(look(&with("2")), Knowledge::Failed(_)), "told on while it is tried again");
        cluster.wake.notified().await;
    }
}
