//! The command line of `tandem-agent run`, and what it means.

mod weights;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use clap::Args;
use sysinfo::System;
use tandem_pki::{JoinToken, Name, PodFiles, Proof, local_address_towards};
use tandem_sources::Access;
use tandem_traces::TraceFlags;
use tonic::transport::Uri;

use weights::WeightsArgs;
pub(crate) use weights::WeightsSettings;

/// Variables that children get when we have them; nothing else of our environment reaches them.
const PASSED_ON: [&str; 9] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "LC_ALL",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "RAYON_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
];

/// Arguments of `tandem-agent run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// An operator, https://HOST:PORT; repeat it for several
    #[arg(long, env = "TANDEM_OPERATOR", value_delimiter = ',', required = true)]
    operator: Vec<String>,
    /// File with the join token, for the first start
    #[arg(long, value_name = "FILE", env = "TANDEM_JOIN_TOKEN_FILE", conflicts_with = "join_token")]
    join_token_file: Option<PathBuf>,
    /// The join token itself. Other users of this machine can read command lines: prefer the file or the variable
    #[arg(long, value_name = "TOKEN", env = "TANDEM_JOIN_TOKEN", hide_env_values = true)]
    join_token: Option<String>,
    /// File with the token of this pod's service account, projected for the audience tandem-operator: instead of a join token
    #[arg(
        long,
        value_name = "FILE",
        env = "TANDEM_SERVICE_ACCOUNT_TOKEN_FILE",
        requires = "ca_file",
        conflicts_with_all = ["join_token", "join_token_file"]
    )]
    service_account_token_file: Option<PathBuf>,
    /// File with the cluster's authorities, as PEM, as the operator publishes them
    #[arg(long, value_name = "FILE", env = "TANDEM_CA_FILE", requires = "service_account_token_file")]
    ca_file: Option<PathBuf>,
    /// This host's name in the cluster, a DNS label [default: the machine's name]
    #[arg(long, env = "TANDEM_HOST_NAME")]
    name: Option<String>,
    /// Folder of credentials, weights and state [default: /var/lib/tandem/agent for root, else ~/.tandem/agent]
    #[arg(long, value_name = "DIR", env = "TANDEM_AGENT_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// IP address or DNS name at which gateways and peers dial this host [default: the one that leads to the operator]
    #[arg(long, value_name = "ADDRESS", env = "TANDEM_HOST_ADDRESS")]
    address: Option<String>,
    /// A label that deployments can select; repeat it for several
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// The worker's executable [default: inference-worker beside this one]
    #[arg(long, value_name = "FILE")]
    worker_program: Option<PathBuf>,
    /// Run a gateway on this host, and listen here for clients
    #[arg(long, value_name = "ADDRESS:PORT")]
    gateway_listen: Option<SocketAddr>,
    /// The gateway's executable [default: tandem-gateway beside this one]
    #[arg(long, value_name = "FILE", requires = "gateway_listen")]
    gateway_program: Option<PathBuf>,
    /// File with the certificate that the gateway's clients see, and its chain, as PEM; read anew when it changes
    #[arg(long, value_name = "FILE", requires_all = ["gateway_listen", "gateway_tls_key"])]
    gateway_tls_cert: Option<PathBuf>,
    /// File with that certificate's private key, as PEM
    #[arg(long, value_name = "FILE", requires = "gateway_tls_cert")]
    gateway_tls_key: Option<PathBuf>,
    /// Where clients reach the gateway [default: http(s)://ADDRESS:PORT]
    #[arg(long, value_name = "URL", requires = "gateway_listen")]
    gateway_advertise: Option<String>,
    /// Serve the gateway's figures and probes here, without TLS [default: off]
    #[arg(long, value_name = "ADDRESS:PORT", requires = "gateway_listen")]
    gateway_metrics_listen: Option<SocketAddr>,
    /// Let in clients of the gateway without an API key. On loopback they are let in anyway
    #[arg(long, requires = "gateway_listen")]
    gateway_unauthenticated: bool,
    /// What workers may take of this machine's memory, such as 400GB [default: all that nothing else holds]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ByteSize>,
    /// Somebody else starts `tandem-agent runner`, such as a second container of the same pod
    #[arg(long)]
    external_runner: bool,
    /// Also trust the authorities in this PEM file when weights are fetched by https, beside those of the operator's `--extra-ca`
    #[arg(long, value_name = "FILE")]
    extra_ca: Option<PathBuf>,
    /// Serve figures for Prometheus at http://ADDRESS:PORT/metrics, without TLS [default: off]
    #[arg(long, value_name = "ADDRESS:PORT", env = "TANDEM_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    traces: TraceFlags,
}

/// What the agent is to do, checked.
pub(crate) struct Settings {
    pub(crate) operators: Vec<String>,
    pub(crate) proof: Option<Proof>,
    pub(crate) name: Name,
    pub(crate) data_dir: PathBuf,
    pub(crate) address: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) worker_program: PathBuf,
    pub(crate) gateway: Option<GatewaySettings>,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) external_runner: bool,
    pub(crate) access: Access,
    /// Where figures are read.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) weights: WeightsSettings,
    /// Where traces go.
    pub(crate) traces: TraceFlags,
}

pub(crate) struct GatewaySettings {
    pub(crate) program: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: String,
    /// Certificate and key that clients see.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// Where the gateway's figures are read.
    pub(crate) metrics: Option<SocketAddr>,
    /// Clients need no API key.
    pub(crate) unauthenticated: bool,
}

impl Settings {
    pub(crate) fn of(args: RunArgs) -> Result<Self> {
        for url in &args.operator {
            let uri: Option<Uri> = url.parse().ok();
            let right = uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
            ensure!(right, "`{url}` is not an operator's address: give it as https://HOST:PORT");
        }
        let name = match args.name {
            Some(name) => name.parse()?,
            None => machine_name()?,
        };
        let address = match args.address {
            Some(address) => address,
            None => {
                let operator = &args.operator[0];
                let address = local_address_towards(operator);
                address.with_context(|| format!("no way leads to {operator}: give --address"))?.to_string()
            }
        };
        let data_dir = match args.data_dir {
            Some(dir) => std::path::absolute(&dir)?,
            None => default_data_dir()?,
        };
        // The gateway runs in a folder of its own.
        let absolute = |path: Option<PathBuf>| path.map(std::path::absolute).transpose();
        let tls = absolute(args.gateway_tls_cert)?.zip(absolute(args.gateway_tls_key)?);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let gateway = args.gateway_listen.map(|listen| {
            let advertise = args.gateway_advertise.unwrap_or_else(|| advertised(scheme, &address, listen));
            Ok::<_, anyhow::Error>(GatewaySettings {
                program: program(args.gateway_program, "tandem-gateway")?,
                listen,
                advertise,
                tls,
                metrics: args.gateway_metrics_listen,
                unauthenticated: args.gateway_unauthenticated,
            })
        });
        let mut access = Access::default();
        if let Some(path) = args.extra_ca {
            let pem = fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?;
            access = access.trusting(&pem)?;
        }
        Ok(Self {
            proof: match (args.service_account_token_file, args.ca_file) {
                (Some(token), Some(ca)) => Some(Proof::Pod(PodFiles { token, ca })),
                _ => token(args.join_token, args.join_token_file)?.map(Proof::Token),
            },
            operators: args.operator,
            name,
            data_dir,
            address,
            labels: args.label.into_iter().collect(),
            worker_program: program(args.worker_program, "inference-worker")?,
            gateway: gateway.transpose()?,
            memory_limit: args.memory_limit.map(|size| size.as_u64()),
            external_runner: args.external_runner,
            access,
            metrics: args.metrics_listen,
            weights: WeightsSettings::of(args.weights)?,
            traces: args.traces,
        })
    }

    /// Where workers listen: on loopback when that is what the host advertises, else everywhere.
    pub(crate) fn worker_listen(&self) -> SocketAddr {
        let ip = match self.address.parse::<IpAddr>() {
            Ok(ip) if ip.is_loopback() => ip,
            Ok(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(ip, 0)
    }

    /// A port of this host as gateways and peers dial it.
    pub(crate) fn endpoint(&self, port: u16) -> String {
        host_and_port(&self.address, port)
    }
}

/// The environment that children get.
pub(crate) fn passed_on() -> BTreeMap<String, String> {
    PASSED_ON.iter().filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?))).collect()
}

fn host_and_port(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

fn advertised(scheme: &str, address: &str, listen: SocketAddr) -> String {
    let host = if listen.ip().is_unspecified() { address.to_owned() } else { listen.ip().to_string() };
    format!("{scheme}://{}", host_and_port(&host, listen.port()))
}

fn token(given: Option<String>, file: Option<PathBuf>) -> Result<Option<JoinToken>> {
    let text = match (given, file) {
        (Some(text), _) => text,
        (None, Some(path)) => {
            fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(text.parse()?))
}

/// The machine's own name, as far as it is a DNS label.
fn machine_name() -> Result<Name> {
    let full = System::host_name().context("this machine has no name: give --name")?;
    let label = full.split('.').next().unwrap_or_default().to_ascii_lowercase().replace('_', "-");
    label.parse().with_context(|| format!("this machine's name, {full}, can't be used: give --name"))
}

fn default_data_dir() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/tandem/agent".into());
    }
    let home = env::var_os("HOME").context("there is no HOME: give --data-dir")?;
    Ok(Path::new(&home).join(".tandem/agent"))
}

fn program(given: Option<PathBuf>, beside: &str) -> Result<PathBuf> {
    let path = match given {
        Some(path) => std::path::absolute(path)?,
        None => env::current_exe().context("this program's own path is unknown")?.with_file_name(beside),
    };
    if !path.is_file() {
        bail!("{} is not there: give --worker-program or --gateway-program", path.display());
    }
    Ok(path)
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_get_their_ports() {
        assert_eq!(host_and_port("192.168.7.2", 80), "192.168.7.2:80");
        assert_eq!(host_and_port("fd00::1", 80), "[fd00::1]:80");
        assert_eq!(host_and_port("mac-a.lan", 80), "mac-a.lan:80");
        assert_eq!(
            advertised("https", "mac-a.lan", "0.0.0.0:8080".parse().unwrap()),
            "https://mac-a.lan:8080"
        );
        assert_eq!(
            advertised("http", "mac-a.lan", "127.0.0.1:8080".parse().unwrap()),
            "http://127.0.0.1:8080"
        );
    }

    #[test]
    fn labels_have_a_key() {
        assert_eq!(label("zone=a=b"), Ok(("zone".to_owned(), "a=b".to_owned())));
        assert!(label("zone").is_err() && label("=a").is_err());
    }
}
