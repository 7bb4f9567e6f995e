//! What a plan is made from.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tandem_crds::{
    DeploymentRef, InferenceDeployment, InferenceHost, InferenceHostStatus, ResolvedFile, Sizing,
};

/// What the store holds, read at one moment, and what became of the models.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The planning leader's number.
    pub term: u64,
    /// Every deployment, with its stored status: transition times are kept from it.
    pub deployments: Vec<InferenceDeployment>,
    /// Every host. Its spec says what is assigned, its stored status what it last reported, its labels what selectors see.
    pub hosts: Vec<InferenceHost>,
    /// What became of each deployment's model, by its current spec. One that is missing is still resolving.
    pub models: BTreeMap<DeploymentRef, Model>,
}

/// What became of a deployment's model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// Files and sizes are being found out.
    Resolving,
    /// Known.
    Resolved(Resolved),
    /// They can't be had; the sentence says what to change.
    Failed(String),
}

/// A model's files and what one copy takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Names the content.
    pub revision: String,
    /// Where hosts fetch the files from: the deployment's source, pinned.
    pub source: String,
    /// In shard order.
    pub files: Vec<ResolvedFile>,
    /// Memory of one copy under the deployment's context.
    pub sizing: Sizing,
    /// Types of its tensors that no worker of this release computes, such as `Q2_K`. It is placed once there are none.
    pub lacking: Vec<String>,
}

/// What is seen now, beside the store.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// By host name. A host that is missing has never reported.
    pub hosts: BTreeMap<String, HostObservation>,
    /// Hosts that are about to go, such as those whose Kubernetes nodes are cordoned: nothing new is placed there, and what is
    /// there moves, as if somebody had asked for a drain.
    pub leaving: BTreeSet<String>,
    /// Where clients reach a gateway, for `status.endpoint`.
    pub endpoint: Option<String>,
}

/// What is known of a host now. The third value, absent, is a host that is not in the map.
#[derive(Clone, Debug, PartialEq)]
pub enum HostObservation {
    /// Silent. Whatever ran there may or may not run.
    Unknown {
        /// When it was last heard; at the latest, when this operator began to lead.
        since: Timestamp,
    },
    /// Its newest report.
    Known(Box<InferenceHostStatus>),
}
