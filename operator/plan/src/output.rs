//! What a plan is: a value. Steps say why, specs and statuses say what to write.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use tandem_crds::{DeploymentRef, InferenceDeploymentStatus, InferenceHostSpec, Sampling};
use thiserror::Error;

/// The next step, complete.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What changes, in order, each with its reason.
    pub steps: Vec<Step>,
    /// The whole new spec of every host whose spec changes.
    pub specs: BTreeMap<String, InferenceHostSpec>,
    /// The status of every deployment.
    pub statuses: BTreeMap<DeploymentRef, InferenceDeploymentStatus>,
    /// Every deployment's route, sorted by deployment.
    pub routes: Vec<Route>,
    /// What stays for now although it shall go, and what it waits for.
    pub waiting: Vec<Waiting>,
    /// Why nothing is placed at present, if so many hosts vanished at once that the observer itself is suspect.
    pub frozen: Option<String>,
    /// When time alone changes the plan.
    pub wake_at: Option<Timestamp>,
}

/// One change and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whose spec changes.
    pub host: String,
    /// What changes there.
    pub action: Action,
    /// A sentence for the event.
    pub reason: String,
}

/// A change of one host's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The spec gets the leader's term, which fences earlier leaders out.
    Lead {
        /// The new term.
        term: u64,
    },
    /// A copy starts.
    Start {
        /// Whose.
        deployment: DeploymentRef,
        /// Its id.
        workload: String,
        /// Its start number.
        epoch: u64,
    },
    /// A copy is started again with another spec, in its own place.
    Replace {
        /// Whose.
        deployment: DeploymentRef,
        /// Its id, which stays.
        workload: String,
        /// Its new start number.
        epoch: u64,
    },
    /// A warm copy is told to serve.
    Promote {
        /// Whose.
        deployment: DeploymentRef,
        /// Its id, which stays.
        workload: String,
        /// Its new start number.
        epoch: u64,
    },
    /// A copy that serves is kept warm from now on.
    Demote {
        /// Whose.
        deployment: DeploymentRef,
        /// Its id, which stays.
        workload: String,
        /// Its new start number.
        epoch: u64,
    },
    /// A copy's spec changes in what needs no start.
    Revise {
        /// Whose.
        deployment: DeploymentRef,
        /// Its id.
        workload: String,
    },
    /// A copy is drained and stopped.
    Stop {
        /// Whose. It may be gone.
        deployment: DeploymentRef,
        /// Its id.
        workload: String,
    },
}

impl Step {
    /// The deployment that the step is about, if it is about one.
    #[must_use]
    pub fn deployment(&self) -> Option<&DeploymentRef> {
        match &self.action {
            Action::Lead { .. } => None,
            Action::Start { deployment, .. }
            | Action::Replace { deployment, .. }
            | Action::Promote { deployment, .. }
            | Action::Demote { deployment, .. }
            | Action::Revise { deployment, .. }
            | Action::Stop { deployment, .. } => Some(deployment),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, reason, .. } = self;
        match &self.action {
            Action::Lead { term } => write!(f, "lead {host} in term {term}: {reason}"),
            Action::Start { workload, epoch, .. } => {
                write!(f, "start {workload}@{epoch} on {host}: {reason}")
            }
            Action::Replace { workload, epoch, .. } => {
                write!(f, "replace {workload}@{epoch} on {host}: {reason}")
            }
            Action::Promote { workload, epoch, .. } => {
                write!(f, "promote {workload}@{epoch} on {host}: {reason}")
            }
            Action::Demote { workload, epoch, .. } => {
                write!(f, "demote {workload}@{epoch} on {host}: {reason}")
            }
            Action::Revise { workload, .. } => write!(f, "revise {workload} on {host}: {reason}"),
            Action::Stop { workload, .. } => write!(f, "stop {workload} on {host}: {reason}"),
        }
    }
}

/// A copy that stays for now although it shall go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Where it is.
    pub host: String,
    /// Whose it is.
    pub deployment: DeploymentRef,
    /// Its id.
    pub workload: String,
    /// What it waits for, as a sentence.
    pub reason: String,
}

/// How gateways reach a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `spec.model.name`.
    pub model: String,
    /// Whose route.
    pub deployment: DeploymentRef,
    /// Whether the bare model name is this deployment's: it is the oldest of those that have it.
    pub owns_short_name: bool,
    /// Where copies answer, sorted by workload and host.
    pub replicas: Vec<Replica>,
    /// For requests that don't say.
    pub sampling: Option<Sampling>,
    /// Longest sequence.
    pub context_tokens: u32,
    /// When the deployment was created.
    pub created: Timestamp,
}

/// A copy that answers, or still does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// Workload id.
    pub workload: String,
    /// Where.
    pub host: String,
    /// Start number of what answers there.
    pub epoch: u64,
    /// `host:port`.
    pub address: String,
    /// In its certificate.
    pub server_name: String,
    /// Equal ids continue each other's streams bit for bit.
    pub numerics_id: String,
    /// Its quantisation.
    pub quant: String,
    /// Finish what runs; send nothing new.
    pub draining: bool,
}

/// Another operator leads.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "host {host} carries term {term}, but this operator's is {own}: another one leads, so this one stops planning"
)]
pub struct Outranked {
    /// Where it was seen.
    pub host: String,
    /// The other's term.
    pub term: u64,
    /// This operator's.
    pub own: u64,
}
