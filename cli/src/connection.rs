//! The line to an operator, and its refusals in words.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use tandem_control_api::fleet_client::FleetClient;
use tandem_control_api::objects_client::ObjectsClient;
use tandem_control_api::{ListRequest, ObjectRef};
use tandem_pki::{Credentials, Identity};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::config;
use crate::object::Kind;

/// Bound on reaching the operator; a dead one should not look like a slow one.
const CONNECT: Duration = Duration::from_secs(5);
/// The largest object list that is accepted, in bytes.
const MESSAGE: usize = 64 << 20;

/// A client of one operator.
pub(crate) struct Connection {
    /// Objects: deployments and hosts.
    pub(crate) objects: ObjectsClient<Channel>,
    /// Everything else.
    pub(crate) fleet: FleetClient<Channel>,
    /// Namespace of deployments.
    pub(crate) namespace: String,
    /// Where the operator is, for messages.
    pub(crate) operator: String,
}

impl Connection {
    /// Prepares the connection; the first call dials.
    pub(crate) fn open(named: Option<&Path>, namespace: String) -> Result<Self> {
        let config = config::load(named)?;
        let credentials = Credentials::load(&config.credentials)
            .context("the credentials that the configuration names can't be used")?;
        let channel = Endpoint::from_shared(config.operator.clone())
            .and_then(|endpoint| endpoint.tls_config(credentials.client_tls(&Identity::Operator)))
            .with_context(|| format!("`{}` is not an operator's address", config.operator))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .connect_lazy();
        Ok(Self {
            objects: ObjectsClient::new(channel.clone()).max_decoding_message_size(MESSAGE),
            fleet: FleetClient::new(channel),
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
        let answer = self.objects.get(reference).await.map_err(|status| self.explain(status))?;
        serde_json::from_str(&answer.into_inner().json).context("the operator sent no JSON")
    }

    /// Objects of a kind, in the operator's order.
    pub(crate) async fn list(
        &mut self,
        kind: Kind,
        name: Option<&str>,
        everywhere: bool,
    ) -> Result<Vec<Value>> {
        let request = self.list_request(kind, name, everywhere);
        let answer = self.objects.list(request).await.map_err(|status| self.explain(status))?;
        let parse = |json: &String| serde_json::from_str(json).context("the operator sent no JSON");
        answer.into_inner().json.iter().map(parse).collect()
    }

    /// A refusal as a sentence that says what to do.
    pub(crate) fn explain(&self, status: Status) -> anyhow::Error {
        match status.code() {
            Code::Unavailable => anyhow!(
                "no operator answers at {}: check that it runs and that its port is open ({})",
                self.operator,
                root(&status)
            ),
            Code::PermissionDenied | Code::Unauthenticated => {
                anyhow!("the operator refuses these credentials: {}", status.message())
            }
            _ if status.message().is_empty() => anyhow!("the operator answered {:?}", status.code()),
            _ => anyhow!("{}", status.message()),
        }
    }

    fn namespace_of(&self, kind: Kind) -> String {
        if kind.namespaced() { self.namespace.clone() } else { String::new() }
    }
}

/// The innermost cause, which for a connection says `refused` or `certificate` where the outer ones say `transport`.
fn root(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if std::ptr::addr_eq(cause, status) { status.message().to_owned() } else { cause.to_string() }
}
