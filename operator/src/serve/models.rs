//! Weights that hosts keep, for the CLI: questions go to the hosts' agents, and their answers come back as they come.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tandem_control_api::models_request::Ask;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{ModelFile, ModelsPull, ModelsReply, ModelsRequest};
use tandem_crds::SecretRef;
use tandem_store::Key;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::caller::{chain, refusal};
use crate::cluster::Cluster;
use crate::secrets;

/// Digests that one question may name.
const MOST_DIGESTS: usize = 1024;
/// Longest source, as the API has it, and longest quant and path.
const LONGEST: usize = 2048;
/// Longest that finding out a model's files may take.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

pub(super) type Replies = Pin<Box<dyn Stream<Item = Result<ModelsReply, Status>> + Send>>;

/// Asks hosts, and streams what they answer until the last of them has ended its part or nobody listens.
pub(super) async fn ask(cluster: &Arc<Cluster>, request: ModelsRequest) -> Result<Replies, Status> {
    let question = request.ask.ok_or_else(|| Status::invalid_argument("the request asks nothing"))?;
    let hosts = hosts(cluster, &request.hosts).await?;
    check(&question, hosts.len()).map_err(Status::invalid_argument)?;
    let (id, replies) = cluster
        .asked
        .open(hosts.clone())
        .ok_or_else(|| Status::resource_exhausted("too much is asked of hosts at once: end some of it"))?;
    let task = tokio::spawn(tell(Arc::clone(cluster), id.clone(), hosts, question));
    let listening = Listening { cluster: Arc::clone(cluster), id, task: task.abort_handle() };
    let replies = ReceiverStream::new(replies).map(move |reply| {
        let _until_dropped = &listening;
        Ok(reply)
    });
    Ok(Box::pin(replies.take_until(cluster.shutdown.clone().cancelled_owned())))
}

/// While the asker's stream lives.
struct Listening {
    cluster: Arc<Cluster>,
    id: String,
    task: AbortHandle,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        for host in self.cluster.asked.close(&self.id) {
            // One that is gone needs no telling.
            self.cluster.sessions.tell(&host, Down::EndModels(self.id.clone()));
        }
    }
}

/// The hosts that are meant: those named, which exist, or all that are connected.
async fn hosts(cluster: &Cluster, named: &[String]) -> Result<BTreeSet<String>, Status> {
    if named.is_empty() {
        let connected = cluster.sessions.connected();
        if connected.is_empty() {
            return Err(Status::failed_precondition("no host is connected: see `tandem hosts list`"));
        }
        return Ok(connected);
    }
    for host in named {
        let key = Key::host(host);
        if cluster.store.get(&key).await.map_err(refusal)?.is_none() {
            return Err(Status::not_found(format!("there is no {key}")));
        }
    }
    Ok(named.iter().cloned().collect())
}

fn check(question: &Ask, hosts: usize) -> Result<(), &'static str> {
    let long = |text: &String| text.len() > LONGEST;
    match question {
        Ask::List(_) => Ok(()),
        Ask::Pull(pull) if pull.source.is_empty() => Err("say which source to pull"),
        Ask::Pull(pull) if long(&pull.source) || long(&pull.quant) => {
            Err("a source has at most 2048 characters")
        }
        Ask::Pull(pull) if pull.secret_name.is_empty() != pull.secret_key.is_empty() => {
            Err("a secret is named by its name and its key: NAME/KEY")
        }
        Ask::Import(import) if import.path.is_empty() || long(&import.path) => {
            Err("say which file or folder of the host to import")
        }
        Ask::Import(_) if hosts != 1 => Err("a path is one host's: say which with --host"),
        Ask::Verify(verify) if verify.sha256.len() > MOST_DIGESTS => {
            Err("at most 1024 files are verified at once: name none to verify all")
        }
        Ask::Prune(prune) if prune.all == (prune.keep_bytes > 0) => {
            Err("say how much to keep, or that everything may go")
        }
        Ask::Pull(_) | Ask::Import(_) | Ask::Verify(_) | Ask::Prune(_) => Ok(()),
    }
}

/// Tells the hosts what is asked; for a model to pull, once its files are known.
async fn tell(cluster: Arc<Cluster>, id: String, hosts: BTreeSet<String>, question: Ask) {
    let question = match question {
        Ask::Pull(pull) => match complete(&cluster, pull).await {
            Ok(pull) => {
                // So that they fetch from each other what one of them has.
                cluster.asked.want(&id, pull.files.iter().map(|file| file.sha256.clone()));
                cluster.wake.notify_one();
                Ask::Pull(pull)
            }
            Err(sentence) => {
                return hosts.iter().for_each(|host| cluster.asked.fail(&id, host, &sentence));
            }
        },
        other => other,
    };
    for host in hosts {
        let request = ModelsRequest { request: id.clone(), hosts: Vec::new(), ask: Some(question.clone()) };
        if !cluster.sessions.tell(&host, Down::Models(request)) {
            cluster.asked.fail(&id, &host, "it is not connected: see to its agent there");
        }
    }
}

/// A pull with the exact files, the pinned source and the secret that opens it.
async fn complete(cluster: &Cluster, pull: ModelsPull) -> Result<ModelsPull, String> {
    let ModelsPull { source, quant, secret_name, secret_key, namespace, .. } = pull;
    let mut credential = None;
    if !secret_name.is_empty() {
        let reference = SecretRef { name: secret_name.clone(), key: secret_key.clone() };
        let found = secrets::find(&*cluster.store, &namespace, &reference).await;
        let found = found.map_err(|error| chain(&error))?;
        let found = found.ok_or_else(|| secrets::missing(&*cluster.store, &namespace, &reference))?;
        credential = Some(found.secret);
    }
    let resolving = cluster.models.resolve(cluster, &source, &quant, &[], credential.as_ref());
    let resolved = tokio::time::timeout(PATIENCE, resolving)
        .await
        .map_err(|_| "finding out the model's files took longer than 10 minutes".to_owned())??;
    let files = resolved.files.into_iter().map(|file| ModelFile {
        name: file.name,
        sha256: file.sha256.to_string(),
        bytes: file.bytes,
    });
    Ok(ModelsPull {
        source: resolved.source.to_string(),
        quant,
        secret_name,
        secret_key,
        namespace,
        files: files.collect(),
        secret: credential.map_or_else(String::new, |secret| secret.reveal().to_owned()),
    })
}
