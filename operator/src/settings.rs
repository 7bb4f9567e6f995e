//! What an operator is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tandem_store::{EtcdOptions, KubernetesOptions};
use tandem_traces::Traces;

use crate::pods::ServiceAccounts;

/// Where an operator keeps its data and where it answers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of an embedded store and of the first admin's credentials. In Kubernetes these are published as a Secret; with a
    /// folder they are there, too.
    pub data_dir: Option<PathBuf>,
    /// Where the truth lives.
    pub store: StoreSettings,
    /// What this operator is called among others; none: `operator`. Every start adds letters of its own.
    pub name: Option<String>,
    /// Where other operators of the cluster reach this one; none: where it says that everybody does.
    pub peer_url: Option<String>,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where figures for Prometheus and probes are answered by plain HTTP; none: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// IP addresses and DNS names at which agents, gateways and people reach this operator. The first one is written into the
    /// admin's configuration.
    pub advertise: Vec<String>,
    /// Whose pods may join, in Kubernetes.
    pub service_accounts: ServiceAccounts,
    /// How patient it is.
    pub timing: Timing,
    /// Where passes that change something are told.
    pub traces: Traces,
    /// Where models may come from, and how they are reached.
    pub sources: SourceSettings,
}

/// Where the truth lives.
#[derive(Debug, Clone, Default)]
pub enum StoreSettings {
    /// In a file of the data folder: one operator, on one machine.
    #[default]
    Embedded,
    /// In an etcd cluster.
    Etcd(EtcdOptions),
    /// In a Kubernetes cluster.
    Kubernetes(KubernetesOptions),
}

/// Where models may come from, and how they are reached. By default from everywhere, trusting what the system trusts.
#[derive(Debug, Clone, Default)]
pub struct SourceSettings {
    /// Prefixes of sources that may be used, such as `hf://unsloth/`; none: all.
    pub allowed: Vec<String>,
    /// `FROM=TO`, such as `hf://=https://hub.example.com/`, in the order to try.
    pub mirrors: Vec<String>,
    /// An S3 store of one's own, `https://host/`; none: Amazon's. Hosts are told of it as a mirror.
    pub s3_endpoint: Option<String>,
    /// The region of S3 stores; none: `us-east-1`.
    pub s3_region: Option<String>,
    /// File of authorities to trust beside the system's, as PEM. Hosts are told of them.
    pub extra_ca: Option<PathBuf>,
}

/// How patient an operator is.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Agents report at least this often.
    pub report_interval: Duration,
    /// A host silent for longer is unknown.
    pub silent_after: Duration,
    /// How long hosts may take to report after this operator started. Nothing is planned before all have, or this is over.
    pub boot_grace: Duration,
    /// How long a lease on leading holds without renewal.
    pub lease: Duration,
    /// How much longer than its slowest party each phase of replacing the authority lasts: more than operators and workers take to
    /// notice what was written for them, and gateways to be back after a leader has changed.
    pub settle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            report_interval: Duration::from_secs(1),
            silent_after: Duration::from_secs(5),
            boot_grace: Duration::from_secs(10),
            lease: Duration::from_secs(3),
            settle: Duration::from_secs(15),
        }
    }
}
