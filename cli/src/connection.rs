//! The line to an operator, and its refusals in words.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tandem_control_api::fleet_client::FleetClient;
use tandem_control_api::keys_client::KeysClient;
use tandem_control_api::objects_client::ObjectsClient;
use tandem_control_api::secrets_client::SecretsClient;
use tandem_control_api::{EventsRequest, ListRequest, ObjectRef};
use tandem_pki::{Credentials, Identity};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;

use crate::config;
use crate::dial;
use crate::near;
use crate::object::{Kind, name, text};

/// Bound on an answer, or on the start of one that is a stream.
const ANSWER: Duration = Duration::from_secs(30);
/// How often a quiet connection is asked whether it lives, and how long the answer may take.
const PING: Duration = Duration::from_secs(10);
/// What tonic says when [`ANSWER`] is over.
const TIMED_OUT: &str = "Timeout expired";
/// The largest object list that is accepted, in bytes.
const MESSAGE: usize = 64 << 20;

/// A client of one operator.
#[derive(Clone)]
pub(crate) struct Connection {
    /// Objects: deployments and hosts.
    pub(crate) objects: ObjectsClient<Channel>,
    /// Hosts, tokens, logs, weights.
    pub(crate) fleet: FleetClient<Channel>,
    /// API keys.
    pub(crate) keys: KeysClient<Channel>,
    /// Secrets.
    pub(crate) secrets: SecretsClient<Channel>,
    /// Namespace of deployments.
    pub(crate) namespace: String,
    /// Where the operator is, for messages.
    pub(crate) operator: String,
}

impl Connection {
    /// Prepares the connection; the first call dials.
    pub(crate) fn open(named: Option<&Path>, namespace: String) -> Result<Self> {
        let config = config::load(named)?;
        let folder = config.credentials.display();
        let credentials = Credentials::load(&config.credentials)
            .with_context(|| format!("the credentials in {folder} can't be used"))?;
        let (_, end) =
            credentials.validity().with_context(|| format!("the credentials in {folder} can't be used"))?;
        if end < SystemTime::now() {
            bail!(
                "the certificate in {folder} has expired: the operator writes a new one to DATA-DIR/admin when it \
                 starts, use that"
            );
        }
        let channel = Endpoint::from_shared(config.operator.clone())
            .and_then(|endpoint| endpoint.tls_config(credentials.client_tls(&Identity::Operator)))
            .with_context(|| format!("`{}` is not an operator's address", config.operator))?
            .connect_timeout(dial::CONNECT)
            .timeout(ANSWER)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .connect_with_connector_lazy(service_fn(dial::dial));
        Ok(Self {
            objects: ObjectsClient::new(channel.clone()).max_decoding_message_size(MESSAGE),
            fleet: FleetClient::new(channel.clone()),
            keys: KeysClient::new(channel.clone()),
            secrets: SecretsClient::new(channel).max_decoding_message_size(MESSAGE),
            namespace,
            operator: config.operator,
        })
    }

    /// Names an object of this namespace, or of none where its kind has none.
    pub(crate) fn reference(&self, kind: Kind, name: &str) -> ObjectRef {
        ObjectRef { kind: kind.name().to_owned(), namespace: self.namespace_of(kind), name: name.to_owned() }
    }

    /// A request for all objects of a kind, or for one by name.
    pub(crate) fn list_request(&self, kind: Kind, name: Option<&str>, everywhere: bool) -> ListRequest {
        let namespace = if everywhere { String::new() } else { self.namespace_of(kind) };
        ListRequest { kind: kind.name().to_owned(), namespace, name: name.unwrap_or_default().to_owned() }
    }

    /// One object.
    pub(crate) async fn get(&mut self, kind: Kind, name: &str) -> Result<Value> {
        let reference = self.reference(kind, name);
        match self.objects.get(reference.clone()).await {
            Ok(answer) => parse(&answer.into_inner().json),
            Err(status) => Err(self.explain_about(&reference, &status).await),
        }
    }

    /// Objects of a kind, in the operator's order.
    pub(crate) async fn list(&mut self, kind: Kind, everywhere: bool) -> Result<Vec<Value>> {
        let request = self.list_request(kind, None, everywhere);
        let answer = self.objects.list(request).await.map_err(|status| self.explain(&status))?;
        answer.into_inner().json.iter().map(|json| parse(json)).collect()
    }

    /// What happened to an object, oldest first. Each event gets an `object`, KIND/NAME, so that lists of them tell.
    pub(crate) async fn events(&mut self, kind: Kind, reference: ObjectRef) -> Result<Vec<Value>> {
        let label = format!("{}/{}", kind.lower(), reference.name);
        let request = EventsRequest { r#ref: Some(reference) };
        let answer = self.objects.events(request).await.map_err(|status| self.explain(&status))?;
        let mut events: Vec<Value> =
            answer.into_inner().json.iter().map(|json| parse(json)).collect::<Result<_>>()?;
        for event in &mut events {
            if let Some(event) = event.as_object_mut() {
                event.insert("object".to_owned(), label.clone().into());
            }
        }
        Ok(events)
    }

    /// A refusal as a sentence that says what to do.
    pub(crate) fn explain(&self, status: &Status) -> anyhow::Error {
        let operator = &self.operator;
        match status.code() {
            Code::DeadlineExceeded => late(operator),
            Code::Cancelled if status.message() == TIMED_OUT => late(operator),
            Code::Unavailable | Code::Cancelled => unreachable(operator, &root(status)),
            // So tonic names what breaks in mid-answer.
            Code::Unknown if std::error::Error::source(status).is_some() => {
                unreachable(operator, &root(status))
            }
            Code::PermissionDenied | Code::Unauthenticated => {
                anyhow!(
                    "the operator refuses these credentials: {}; use those that it wrote to DATA-DIR/admin",
                    status.message()
                )
            }
            Code::Unimplemented => {
                anyhow!("the operator at {operator} is older than this command: upgrade it")
            }
            _ if status.message().is_empty() => anyhow!("the operator answered {:?}", status.code()),
            _ => anyhow!("{}", status.message()),
        }
    }

    /// As [`Self::explain`]; where the object is not there, with names that are.
    pub(crate) async fn explain_about(&mut self, about: &ObjectRef, status: &Status) -> anyhow::Error {
        let plain = self.explain(status);
        let (Code::NotFound, Ok(kind)) = (status.code(), about.kind.parse()) else { return plain };
        let Ok(objects) = self.list(kind, true).await else { return plain };
        let names =
            |object: &Value| (text(object, &["metadata", "namespace"]).to_owned(), name(object).to_owned());
        let known: Vec<(String, String)> = objects.iter().map(names).collect();
        anyhow!("{plain}: {}", near::hint(&about.namespace, &about.name, &known))
    }

    fn namespace_of(&self, kind: Kind) -> String {
        if kind.namespaced() { self.namespace.clone() } else { String::new() }
    }
}

fn parse(json: &str) -> Result<Value> {
    serde_json::from_str(json).context("the operator sent no JSON")
}

fn late(operator: &str) -> anyhow::Error {
    anyhow!("the operator at {operator} took more than {ANSWER:?} to answer: see its log")
}

/// A handshake that fails is told apart from a port that nobody listens on: the mend is another. A server that refuses a
/// certificate mostly just closes the connection, as one does that is shut down.
fn unreachable(operator: &str, cause: &str) -> anyhow::Error {
    if ["certificate", "UnknownCA", "BadSignature", "DecryptError"].iter().any(|word| cause.contains(word)) {
        return anyhow!(
            "the operator at {operator} and these credentials are not of one cluster, or its authority was replaced since they \
             were made: use those that it wrote to DATA-DIR/admin ({cause})"
        );
    }
    // Which of them it is depends on what comes first: the server's close, or our next write.
    if ["connection closed", "broken pipe", "connection reset"].iter().any(|word| cause.contains(word)) {
        return anyhow!(
            "the operator at {operator} closed the connection: it is being shut down, or it doesn't know these \
             credentials; use those that it wrote to DATA-DIR/admin ({cause})"
        );
    }
    anyhow!("no operator answers at {operator}: check that it runs and that its port is open ({cause})")
}

/// The innermost cause, which for a connection says `refused` or `certificate` where the outer ones say `transport`.
fn root(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if std::ptr::addr_eq(cause, status) { status.message().to_owned() } else { cause.to_string() }
}
