//! A Kubernetes control plane of real servers: etcd and kube-apiserver, with controller manager and scheduler where asked for.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tempfile::TempDir;

use crate::audit::{self, AuditEvent};
use crate::etcd::Etcd;
use crate::pki::{self, Authority, Pair};
use crate::port::free_port;
use crate::process::Server;
use crate::tools::{Tool, Tools};

/// The API server is ready in 3 s on a free machine of two cores.
const READY: Duration = Duration::from_secs(90);
/// First address of [`SERVICES`], which is the API server's own Service.
const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const SERVICES: &str = "10.96.0.0/20";

/// What a control plane is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the API server listens. An address of a namespace lets nodes reach it.
    pub address: IpAddr,
    /// Garbage collection, garbage of namespaces, tokens, Deployments and DaemonSets, node lifecycle, autoscaling.
    pub controller_manager: bool,
    /// Whether pods get nodes.
    pub scheduler: bool,
    /// Whether Tandem's own resource definitions are there from the start.
    pub crds: bool,
    /// More arguments of kube-apiserver.
    pub api_server: Vec<String>,
}

impl Default for Options {
    /// An API server on loopback that knows Tandem's resources.
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            controller_manager: false,
            scheduler: false,
            crds: true,
            api_server: Vec::new(),
        }
    }
}

/// Somebody who talks to the API server, by certificate.
#[derive(Clone, Copy, Debug)]
pub struct User<'a> {
    /// Name.
    pub name: &'a str,
    /// Groups; `system:masters` may do everything.
    pub groups: &'a [&'a str],
}

impl User<'static> {
    /// Somebody who may do everything.
    pub const ADMIN: Self = Self { name: "admin", groups: &["system:masters"] };
}

/// A running control plane, with RBAC, TLS, admission and an audit log.
pub struct ControlPlane {
    // In the order in which they have to end: an API server without its etcd hangs.
    scheduler: Option<Server>,
    controller_manager: Option<Server>,
    api_server: Server,
    etcd: Etcd,
    authority: Authority,
    url: String,
    kubectl: PathBuf,
    dir: TempDir,
}

impl ControlPlane {
    /// Starts the API server on loopback, with Tandem's resources, and waits until it is ready.
    ///
    /// # Errors
    /// When the tools can't be had or a server doesn't start.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts what is asked for, and waits until it is ready.
    ///
    /// # Errors
    /// When the tools can't be had or a server doesn't start.
    pub async fn start_with(options: Options) -> Result<Self> {
        let tools = Tools::find()?;
        let etcd = Etcd::start(1)?;
        let dir =
            tempfile::Builder::new().prefix("tandem-kubernetes-").tempdir().context("no temporary folder")?;
        let port = free_port(options.address)?;
        let url = format!("https://{}:{port}", options.address);
        let authority = write_pki(dir.path(), &options)?;
        let program = tools.program(Tool::Kubernetes, "kube-apiserver")?;
        let command = api_server(&program, dir.path(), &etcd, port, &options);
        let api_server = Server::start("kube-apiserver", command, dir.path())?;
        let kubectl = tools.program(Tool::Kubernetes, "kubectl")?;
        let mut plane = Self {
            scheduler: None,
            controller_manager: None,
            api_server,
            etcd,
            authority,
            url,
            kubectl,
            dir,
        };
        plane.kubeconfig(User::ADMIN)?;
        plane.wait_ready().await?;
        if options.crds {
            plane.install_crds().await?;
        }
        if options.controller_manager {
            let program = tools.program(Tool::Kubernetes, "kube-controller-manager")?;
            plane.controller_manager = Some(plane.start_controller_manager(&program)?);
        }
        if options.scheduler {
            let program = tools.program(Tool::Kubernetes, "kube-scheduler")?;
            plane.scheduler = Some(plane.start_scheduler(&program)?);
        }
        Ok(plane)
    }

    /// Waits until the API server answers that it is ready.
    ///
    /// # Errors
    /// When it doesn't, with the end of its log.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let client = self.client(User::ADMIN).await?;
        let end = tokio::time::Instant::now() + READY;
        loop {
            let request = http_get("/readyz")?;
            let asked = tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await;
            if matches!(asked, Ok(Ok(_))) {
                return Ok(());
            }
            self.api_server.check()?;
            ensure!(
                tokio::time::Instant::now() < end,
                "kube-apiserver is not ready after {READY:?}:\n{}",
                self.api_server.last_words(20)
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Where the API server listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Folder of its certificates, kubeconfigs and logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The certificate of the cluster's authority, as PEM.
    #[must_use]
    pub fn ca(&self) -> &str {
        self.authority.certificate()
    }

    /// A certificate of the cluster's authority for a server of these names, and its key, both PEM.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn server_certificate(&self, names: &[&str]) -> Result<(String, String)> {
        let pair = self.authority.server(names.first().context("a server has a name")?, &[], names)?;
        Ok((pair.certificate, pair.key))
    }

    /// The API server's process, to stop or to signal.
    pub fn api_server(&mut self) -> &mut Server {
        &mut self.api_server
    }

    /// The etcd behind the API server.
    pub fn etcd(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// A kubeconfig file for a user, made on first use.
    ///
    /// # Errors
    /// When certificate or file can't be made.
    pub fn kubeconfig(&self, user: User<'_>) -> Result<PathBuf> {
        let path = self.dir.path().join(format!("{}.kubeconfig", user.name.replace([':', '/'], "-")));
        if path.is_file() {
            return Ok(path);
        }
        let pair = self.authority.user(user.name, user.groups)?;
        fs::write(&path, kubeconfig(&self.url, self.ca(), &pair)?)
            .context("a kubeconfig can't be written")?;
        Ok(path)
    }

    /// A client for a user.
    ///
    /// # Errors
    /// When the kubeconfig can't be made or read.
    pub async fn client(&self, user: User<'_>) -> Result<kube::Client> {
        let config = Kubeconfig::read_from(self.kubeconfig(user)?).context("the kubeconfig can't be read")?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
            .await
            .context("the kubeconfig can't be used")?;
        kube::Client::try_from(config).context("no client can be made")
    }

    /// `kubectl` as the admin: what it prints. Its errors are this one's.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_as(User::ADMIN, arguments)
    }

    /// `kubectl` as somebody: what it prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl_as(&self, user: User<'_>, arguments: &[&str]) -> Result<String> {
        let output =
            self.kubectl_command(user)?.args(arguments).output().context("kubectl can't be started")?;
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A `kubectl` command for somebody, to add to.
    ///
    /// # Errors
    /// When no kubeconfig can be made.
    pub fn kubectl_command(&self, user: User<'_>) -> Result<Command> {
        let mut command = Command::new(&self.kubectl);
        // Its caches of discovery lie in the home folder, and would outlive this cluster.
        command.arg("--kubeconfig").arg(self.kubeconfig(user)?).env("HOME", self.dir.path());
        Ok(command)
    }

    /// Every request that the API server has recorded so far.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn audit(&self) -> Result<Vec<AuditEvent>> {
        audit::read(&self.dir.path().join("audit.log"))
    }

    async fn install_crds(&self) -> Result<()> {
        for yaml in tandem_crds::generated_files().into_iter().map(|(_, yaml)| yaml) {
            let path = self.dir.path().join("crd.yaml");
            fs::write(&path, yaml).context("a definition can't be written")?;
            self.kubectl(&["apply", "--server-side", "-f", &path.display().to_string()])?;
        }
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            "inferencedeployments.inference.tandem.dev",
            "inferencehosts.inference.tandem.dev",
        ])?;
        Ok(())
    }

    fn start_controller_manager(&self, program: &Path) -> Result<Server> {
        let dir = self.dir.path();
        let config =
            self.kubeconfig(User { name: "system:kube-controller-manager", groups: &["system:masters"] })?;
        let mut command = Command::new(program);
        command
            .arg("--kubeconfig")
            .arg(&config)
            .arg("--service-account-private-key-file")
            .arg(dir.join("sa.key"))
            .arg("--root-ca-file")
            .arg(dir.join("ca.crt"))
            .args(["--leader-elect=false", "--use-service-account-credentials=false"])
            .args(["--allocate-node-cidrs=false", "--bind-address=127.0.0.1"])
            .args(["--node-monitor-grace-period=20s", "--node-monitor-period=2s"])
            .args(["--horizontal-pod-autoscaler-sync-period=2s"])
            .arg(format!("--secure-port={}", free_port(IpAddr::V4(Ipv4Addr::LOCALHOST))?));
        Server::start("kube-controller-manager", command, dir)
    }

    fn start_scheduler(&self, program: &Path) -> Result<Server> {
        let config = self.kubeconfig(User { name: "system:kube-scheduler", groups: &["system:masters"] })?;
        let mut command = Command::new(program);
        command
            .arg("--kubeconfig")
            .arg(&config)
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"])
            .arg(format!("--secure-port={}", free_port(IpAddr::V4(Ipv4Addr::LOCALHOST))?));
        Server::start("kube-scheduler", command, self.dir.path())
    }
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path).body(Vec::new()).context("no request")
}

/// Certificates of the cluster: the API server's, its client certificates for kubelets and for extension servers, and the key of
/// service accounts.
fn write_pki(dir: &Path, options: &Options) -> Result<Authority> {
    let authority = Authority::create("tandem-test-cluster")?;
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let addresses = [options.address, IpAddr::V4(Ipv4Addr::LOCALHOST), SERVICE];
    let server = authority.server("kube-apiserver", &addresses, &names)?;
    let kubelet = authority.user("kube-apiserver-kubelet-client", &["system:masters"])?;
    let proxy = authority.user("front-proxy-client", &[])?;
    let accounts = pki::signing_key()?;
    let files = [
        ("ca.crt", authority.certificate()),
        ("api.crt", &server.certificate),
        ("api.key", &server.key),
        ("kubelet-client.crt", &kubelet.certificate),
        ("kubelet-client.key", &kubelet.key),
        ("front-proxy.crt", &proxy.certificate),
        ("front-proxy.key", &proxy.key),
        ("sa.pub", &accounts.certificate),
        ("sa.key", &accounts.key),
        ("audit.yaml", audit::POLICY),
    ];
    for (name, content) in files {
        fs::write(dir.join(name), content).with_context(|| format!("{name} can't be written"))?;
    }
    Ok(authority)
}

fn api_server(program: &Path, dir: &Path, etcd: &Etcd, port: u16, options: &Options) -> Command {
    let mut command = Command::new(program);
    let mut file = |flag: &str, name: &str| {
        command.arg(format!("--{flag}={}", dir.join(name).display()));
    };
    for (flag, name) in [
        ("tls-cert-file", "api.crt"),
        ("tls-private-key-file", "api.key"),
        ("client-ca-file", "ca.crt"),
        ("kubelet-client-certificate", "kubelet-client.crt"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("requestheader-client-ca-file", "ca.crt"),
        ("proxy-client-cert-file", "front-proxy.crt"),
        ("proxy-client-key-file", "front-proxy.key"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
        ("audit-policy-file", "audit.yaml"),
        ("audit-log-path", "audit.log"),
    ] {
        file(flag, name);
    }
    command
        .arg(format!("--etcd-servers={}", etcd.endpoints().join(",")))
        .arg(format!("--secure-port={port}"))
        .arg(format!("--bind-address={}", options.address))
        .arg(format!("--advertise-address={}", options.address))
        .arg(format!("--service-cluster-ip-range={SERVICES}"))
        .args(["--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=Node,RBAC"])
        .args(["--enable-admission-plugins=NodeRestriction", "--allow-privileged=true"])
        .args([
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-group-headers=X-Remote-Group",
        ])
        .args([
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        ])
        .args(["--kubelet-preferred-address-types=InternalIP", "--enable-aggregator-routing=true"])
        .args(["--anonymous-auth=false", "--profiling=false", "--audit-log-mode=blocking"])
        .args(&options.api_server);
    if options.address.is_loopback() {
        // It would announce its own address to pods, and refuses to announce this one.
        command.arg("--endpoint-reconciler-type=none");
    }
    command
}

fn kubeconfig(url: &str, ca: &str, pair: &Pair) -> Result<String> {
    let data = |pem: &str| encode(pem.as_bytes());
    serde_yaml::to_string(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority-data": data(ca)}}],
        "users": [{"name": "user", "user": {
            "client-certificate-data": data(&pair.certificate),
            "client-key-data": data(&pair.key),
        }}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
        "current-context": "test",
    }))
    .context("a kubeconfig can't be written")
}

fn encode(bytes: &[u8]) -> String {
    use k8s_openapi::ByteString;
    let json = serde_json::to_value(ByteString(bytes.to_vec())).expect("bytes are base64");
    json.as_str().expect("base64 is text").to_owned()
}
