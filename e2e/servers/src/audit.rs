//! The API server's audit log: who asked for what, as it was recorded.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Every request once, when it is over.
pub(crate) const POLICY: &str =
    "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";

/// One request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// When it came, as RFC 3339.
    pub request_received_timestamp: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, …
    pub verb: String,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Who asked.
    pub user: AuditUser,
    /// What program it was, as it says.
    #[serde(default)]
    pub user_agent: String,
    /// For what; none for paths that are no resources.
    #[serde(default)]
    pub object_ref: Option<AuditObject>,
    /// How it was answered.
    #[serde(default)]
    pub response_status: Option<AuditStatus>,
}

/// Who asked.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditUser {
    /// Such as `system:serviceaccount:tandem-system:tandem-operator`.
    pub username: String,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditObject {
    /// Plural name.
    pub resource: String,
    /// Such as `status`; may be empty.
    pub subresource: String,
    /// API group; empty for the core group.
    pub api_group: String,
    /// Empty for what is of the whole cluster.
    pub namespace: String,
    /// Empty for lists.
    pub name: String,
}

/// How a request was answered.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditStatus {
    /// HTTP status.
    #[serde(default)]
    pub code: u16,
}

impl AuditEvent {
    /// Whether it changed anything, or meant to.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }
}

/// All that the log holds; a line that is still being written is left out.
pub(crate) fn read(path: &Path) -> Result<Vec<AuditEvent>> {
    let text = fs::read_to_string(path).context("the audit log can't be read")?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).context("an audit event can't be read")).collect()
}
