//! Flags that say where the truth lives.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use tandem_operator::{ServiceAccount, ServiceAccounts, StoreSettings};
use tandem_store::{EtcdOptions, EtcdTls, KubernetesOptions};

#[derive(Args)]
pub(crate) struct StoreFlags {
    /// Where the truth lives: in a file of the data folder, in an etcd cluster, or in the Kubernetes cluster that the operator
    /// runs in.
    #[arg(
        long,
        env = "TANDEM_OPERATOR_STORE",
        value_enum,
        default_value = "embedded",
        help_heading = "Store"
    )]
    store: Home,
    /// URL of a member of the etcd cluster; repeat it for every member.
    #[arg(
        long = "etcd-endpoint",
        env = "TANDEM_OPERATOR_ETCD_ENDPOINTS",
        value_name = "URL",
        value_delimiter = ',',
        required_if_eq("store", "etcd"),
        help_heading = "Store"
    )]
    etcd_endpoints: Vec<String>,
    /// Key under which everything lies in etcd.
    #[arg(
        long,
        env = "TANDEM_OPERATOR_ETCD_PREFIX",
        value_name = "KEY",
        default_value = "/tandem",
        help_heading = "Store"
    )]
    etcd_prefix: String,
    /// File of the authorities that etcd's certificates are of, as PEM.
    #[arg(long, env = "TANDEM_OPERATOR_ETCD_CA", value_name = "FILE", help_heading = "Store")]
    etcd_ca: Option<PathBuf>,
    /// File of the certificate to show to etcd, as PEM.
    #[arg(
        long,
        env = "TANDEM_OPERATOR_ETCD_CERT",
        value_name = "FILE",
        requires = "etcd_key",
        requires = "etcd_ca",
        help_heading = "Store"
    )]
    etcd_cert: Option<PathBuf>,
    /// File of that certificate's key, as PEM.
    #[arg(
        long,
        env = "TANDEM_OPERATOR_ETCD_KEY",
        value_name = "FILE",
        requires = "etcd_cert",
        help_heading = "Store"
    )]
    etcd_key: Option<PathBuf>,
    /// Name to tell etcd, where it asks for one.
    #[arg(
        long,
        env = "TANDEM_OPERATOR_ETCD_USER",
        value_name = "NAME",
        requires = "etcd_password_file",
        help_heading = "Store"
    )]
    etcd_user: Option<String>,
    /// File of that name's password.
    #[arg(
        long,
        env = "TANDEM_OPERATOR_ETCD_PASSWORD_FILE",
        value_name = "FILE",
        requires = "etcd_user",
        help_heading = "Store"
    )]
    etcd_password_file: Option<PathBuf>,
    /// Kubeconfig of the cluster that is the store [default: the pod's own service account].
    #[arg(long, env = "TANDEM_OPERATOR_KUBECONFIG", value_name = "FILE", help_heading = "Store")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the operator's own leases and private records.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        value_name = "NAME",
        default_value = "tandem-system",
        help_heading = "Store"
    )]
    namespace: String,
    /// Namespace of the agents' pods [default: the operator's].
    #[arg(long, env = "TANDEM_OPERATOR_AGENTS_NAMESPACE", value_name = "NAME", help_heading = "Store")]
    agents_namespace: Option<String>,
    /// Service account of the agents' pods, in their namespace: they join as the hosts that are their nodes.
    #[arg(long, value_name = "NAME", default_value = "tandem-agent", help_heading = "Store")]
    agent_service_account: String,
    /// Service account of the gateways' pods, in the operator's namespace.
    #[arg(long, value_name = "NAME", default_value = "tandem-gateway", help_heading = "Store")]
    gateway_service_account: String,
    /// Namespace whose InferenceDeployments are meant; repeat it for several. Without it, all are.
    #[arg(
        long = "watch-namespace",
        env = "TANDEM_OPERATOR_WATCH_NAMESPACE",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Store"
    )]
    watch_namespaces: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Home {
    /// A file; one operator
    Embedded,
    /// Three voters, for clusters without Kubernetes; any number of operators
    Etcd,
    /// Custom resources; any number of operators
    Kubernetes,
}

impl StoreFlags {
    pub(crate) fn is_kubernetes(&self) -> bool {
        matches!(self.store, Home::Kubernetes)
    }

    /// Whose pods may join.
    pub(crate) fn service_accounts(&self) -> ServiceAccounts {
        let account = |namespace: &String, name: &String| ServiceAccount {
            namespace: namespace.clone(),
            name: name.clone(),
        };
        ServiceAccounts {
            agents: account(
                self.agents_namespace.as_ref().unwrap_or(&self.namespace),
                &self.agent_service_account,
            ),
            gateways: account(&self.namespace, &self.gateway_service_account),
        }
    }

    /// Reads the files that are named.
    pub(crate) fn settings(self) -> Result<StoreSettings> {
        Ok(match self.store {
            Home::Embedded => StoreSettings::Embedded,
            Home::Etcd => StoreSettings::Etcd(self.etcd()?),
            Home::Kubernetes => StoreSettings::Kubernetes(KubernetesOptions {
                kubeconfig: self.kubeconfig,
                agents_namespace: self.agents_namespace.unwrap_or_else(|| self.namespace.clone()),
                namespace: self.namespace,
                watch_namespaces: self.watch_namespaces,
            }),
        })
    }

    fn etcd(self) -> Result<EtcdOptions> {
        let own = match (&self.etcd_cert, &self.etcd_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let tls = match &self.etcd_ca {
            Some(ca) => Some(EtcdTls { ca: read(ca)?, own }),
            None => None,
        };
        let user = match (self.etcd_user, &self.etcd_password_file) {
            (Some(name), Some(file)) => Some((name, read(file)?.trim_end().to_owned())),
            _ => None,
        };
        Ok(EtcdOptions { endpoints: self.etcd_endpoints, prefix: self.etcd_prefix, tls, user })
    }
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("{} can't be read", file.display()))
}
