//! The cluster that scenarios run in: a control plane, two nodes, cluster DNS, and our images on every node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tandem_e2e::Client;
use tandem_servers::{
    ControlPlane, GATEWAY, Image, Machine, Node, Options, POLICIES, Setting, Stage, Tool, Tools, User,
    network,
};
use tempfile::TempDir;

use crate::{cache, programs};

/// Namespace of the release.
pub(super) const SYSTEM: &str = "tandem-system";
/// Namespace of its agents.
pub(super) const AGENTS: &str = "tandem-agents";
/// Secret with the API key of `helm test`.
pub(super) const TEST_KEY: &str = "tandem-test-key";
/// Port on every node at which the operator is reached from outside.
pub(super) const OPERATOR_PORT: u16 = 30743;
/// Within what a cluster on a busy machine does anything.
pub(super) const SOON: Duration = Duration::from_secs(90);
/// Where machines see the examples of this repository.
const EXAMPLES: &str = "/var/lib/tandem/examples";
/// Kubernetes' own Service range has this one for DNS.
const DNS: &str = "10.96.0.10";

pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    /// A machine outside of Kubernetes, once it has joined.
    pub(super) mac: Option<Machine>,
    /// What clients show to gateways, once there is an operator to make it.
    key: Option<String>,
    pub(super) setting: Setting,
    pub(super) plane: ControlPlane,
    pub(super) runtime: tokio::runtime::Handle,
    dir: TempDir,
    tools: Tools,
}

impl Cluster {
    pub(super) fn start(runtime: &tokio::runtime::Runtime) -> Result<Self> {
        let begun = Instant::now();
        network()?;
        let dir = tempfile::Builder::new().prefix("tandem-cluster-").tempdir()?;
        let tools = Tools::find()?;
        let images = images(dir.path(), &tools)?;
        let options = Options {
            address: GATEWAY,
            controller_manager: true,
            scheduler: true,
            crds: false,
            api_server: Vec::new(),
        };
        let plane = runtime.block_on(ControlPlane::start_with(options))?;
        let folders = vec![(cache::workspace().join("examples"), PathBuf::from(EXAMPLES))];
        let setting = Setting { dir: dir.path().to_owned(), images, folders };
        let user = format!("--user={POLICIES}");
        plane.kubectl(&["create", "clusterrolebinding", POLICIES, "--clusterrole=view", &user])?;
        let mut nodes = Vec::new();
        for (name, number) in [("n1", 1), ("n2", 2)] {
            nodes.push(Node::start(&plane, &setting, name, number)?);
        }
        for node in &nodes {
            node.wait_ready(&plane, Duration::from_secs(120))?;
        }
        let cluster = Self {
            nodes,
            mac: None,
            key: None,
            setting,
            plane,
            runtime: runtime.handle().clone(),
            dir,
            tools,
        };
        cluster.apply(&cluster_dns())?;
        cluster.kubectl(&[
            "-n",
            "kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=60s",
        ])?;
        eprintln!("   a cluster of two nodes: {:.1} s", begun.elapsed().as_secs_f64());
        Ok(cluster)
    }

    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.plane.kubectl(arguments)
    }

    /// One field of an object, or an empty text.
    pub(super) fn field(&self, what: &[&str], path: &str) -> Result<String> {
        let path = format!("jsonpath={path}");
        self.kubectl(&[&["get"], what, &["-o", &path]].concat())
    }

    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        let path = self.dir.path().join("objects.json");
        fs::write(&path, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        self.kubectl(&["apply", "-f", &path.display().to_string()]).map(drop)
    }

    /// Where temporary files may be.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.tools.program(Tool::Helm, "helm")?);
        command.args(arguments).arg("--kubeconfig").arg(self.plane.kubeconfig(User::ADMIN)?);
        command.env("HOME", self.dir.path());
        output(&mut command)
    }

    /// `ctr` on a node, in Kubernetes' own namespace.
    pub(super) fn containerd(&self, node: &Node, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(self.tools.program(Tool::Containerd, "ctr")?);
        command.arg("-a").arg(node.dir().join("run/containerd.sock")).args(["-n", "k8s.io"]).args(arguments);
        Ok(command)
    }

    /// The driver of devices that are none, to be run on a node as the node.
    pub(super) fn device_driver(&self, node: &Node) -> Result<Command> {
        let user = format!("system:node:{}", node.name());
        let kubeconfig = self.plane.kubeconfig(User { name: &user, groups: &["system:nodes"] })?;
        let program = self.tools.program(Tool::Dra, "dra")?;
        let mut command = node.guest(&program.display().to_string())?;
        command.arg("--kubeconfig").arg(kubeconfig).args(["--node", node.name()]);
        Ok(command)
    }

    /// The CLI as its users run it, as the first admin, through the operator's port on the first node.
    pub(super) fn tandem(&self, arguments: &[&str]) -> Result<String> {
        self.tandem_through(&self.nodes[0], arguments)
    }

    /// The same through another node.
    pub(super) fn tandem_through(&self, node: &Node, arguments: &[&str]) -> Result<String> {
        let admin = self.dir.path().join(format!("admin-by-{}", node.name()));
        let config = admin.join("tandem.yaml");
        if !config.is_file() {
            fs::create_dir_all(&admin)?;
            for (key, file) in
                [("tls\\.crt", "certificate.pem"), ("tls\\.key", "key.pem"), ("ca\\.crt", "ca.pem")]
            {
                let text =
                    self.field(&["secret", "tandem-admin", "-n", SYSTEM], &format!("{{.data.{key}}}"))?;
                fs::write(admin.join(file), decoded(&text)?)?;
            }
            let text = format!("operator: https://{}:{OPERATOR_PORT}\ncredentials: .\n", node.address());
            fs::write(&config, text)?;
        }
        let mut command = Command::new(programs::dir()?.join("tandem"));
        output(command.arg("--config").arg(&config).args(arguments))
    }

    /// Makes an API key for every client of these scenarios, and gives it to `helm test`, too.
    pub(super) fn make_key(&mut self) -> Result<()> {
        let key = self.tandem(&["keys", "create", "scenarios", "-n", "default"])?.trim().to_owned();
        self.apply(&[json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": TEST_KEY, "namespace": SYSTEM},
            "stringData": {"key": key},
        })])?;
        self.key = Some(key);
        Ok(())
    }

    /// A client of the gateway at this address.
    pub(super) fn client(&self, url: &str) -> Result<Client> {
        Ok(Client::new(url)?.with_key(self.key.clone()))
    }

    /// Waits until something is as it should be; `what` says what was waited for.
    pub(super) fn until(
        &self,
        what: &str,
        within: Duration,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            match done() {
                Ok(true) => return Ok(begun.elapsed()),
                Ok(false) if begun.elapsed() > within => bail!("waited {within:?} in vain: {what}"),
                Err(error) if begun.elapsed() > within => {
                    return Err(error.context(format!("waited {within:?} in vain: {what}")));
                }
                _ => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// The status of a condition of the tiny model's deployment.
    pub(super) fn condition(&self, name: &str) -> Result<String> {
        self.field(&["infd", "tiny-kimi"], &format!("{{.status.conditions[?(@.type=='{name}')].status}}"))
    }

    /// When a condition of the tiny model's deployment changed its status last.
    pub(super) fn since(&self, name: &str) -> Result<String> {
        let path = format!("{{.status.conditions[?(@.type=='{name}')].lastTransitionTime}}");
        self.field(&["infd", "tiny-kimi"], &path)
    }

    /// What a person would look at first, for the report of a failure.
    pub(super) fn story(&self) -> String {
        let look =
            |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
        let mut story = String::new();
        for arguments in [
            ["get", "nodes,pods,infd,infh", "-A", "-o", "wide"].as_slice(),
            &["describe", "infd", "-A"],
            &["get", "events", "-A", "--sort-by=.metadata.creationTimestamp"],
        ] {
            story.push_str(&look(arguments));
        }
        for (namespace, component) in
            [(SYSTEM, "operator"), (SYSTEM, "gateway"), (SYSTEM, "test"), (AGENTS, "agent")]
        {
            let label = format!("app.kubernetes.io/component={component}");
            let arguments =
                ["logs", "-n", namespace, "-l", &label, "--all-containers", "--prefix", "--tail=15"];
            story.push_str(&look(&arguments));
        }
        for node in &self.nodes {
            story.push_str(&node.last_words("policies.log", 15));
        }
        if let Some(machine) = &self.mac {
            story.push_str(&fs::read_to_string(machine.dir().join("bare.log")).unwrap_or_default());
        }
        story
    }
}

/// A Secret's value.
fn decoded(text: &str) -> Result<Vec<u8>> {
    let mut command = Command::new("base64");
    let mut child = command
        .arg("-d")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("base64 can't be started")?;
    std::io::Write::write_all(&mut child.stdin.take().context("base64 has no input")?, text.as_bytes())?;
    Ok(child.wait_with_output()?.stdout)
}

pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{:?} can't be started", command.get_program()))?;
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {out}{said}");
    Ok(out.into_owned())
}

/// Every image that pods of the cluster need: ours as their Containerfiles say, and two of others.
fn images(dir: &Path, tools: &Tools) -> Result<Vec<PathBuf>> {
    let built = programs::dir()?;
    let mut images = Vec::new();
    for name in ["operator", "agent", "gateway", "cli"] {
        let file = cache::workspace().join(name).join("Containerfile");
        let stage = Stage::parse(&fs::read_to_string(&file)?).with_context(|| file.display().to_string())?;
        let path = dir.join(format!("{name}.tar"));
        Image::of_stage(&stage, &built)?.write(&format!("local.test/tandem-{name}:1"), &path)?;
        images.push(path);
    }
    let path = dir.join("coredns.tar");
    Image::of_program(&tools.program(Tool::CoreDns, "coredns")?)?.write("local.test/coredns:1", &path)?;
    images.push(path);
    // The parent of a pod's processes: it waits, and its children need no reaping.
    let (source, program, path) = (dir.join("pause.c"), dir.join("pause"), dir.join("pause.tar"));
    let code = "#include <signal.h>\n#include <unistd.h>\n\nint main(void) {\n  signal(SIGCHLD, SIG_IGN);\n  for (;;) pause();\n}\n";
    fs::write(&source, code)?;
    output(Command::new("cc").args(["-static", "-O1", "-o"]).arg(&program).arg(&source))?;
    Image::of_program(&program)?.write("local.test/pause:1", &path)?;
    images.push(path);
    Ok(images)
}

fn cluster_dns() -> Vec<Value> {
    let meta =
        |name: &str| json!({"name": name, "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}});
    let corefile = ".:5353 {\n  errors\n  ready :8181\n  kubernetes cluster.local in-addr.arpa ip6.arpa {\n    pods insecure\n  }\n  \
                    cache 5\n  reload\n}\n";
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("coredns")}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "coredns"},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}],
        }),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("coredns"), "data": {"Corefile": corefile}}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta("kube-dns"),
            "spec": {
                "clusterIP": DNS,
                "selector": {"k8s-app": "kube-dns"},
                "ports": [
                    {"name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "targetPort": 5353, "protocol": "TCP"},
                ],
            },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("coredns"),
            "spec": {
                // One on each node: names are found while a node is gone.
                "replicas": 2,
                "selector": {"matchLabels": {"k8s-app": "kube-dns"}},
                "template": {
                    "metadata": {"labels": {"k8s-app": "kube-dns"}},
                    "spec": {
                        "serviceAccountName": "coredns",
                        "topologySpreadConstraints": [{
                            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                        }],
                        "containers": [{
                            "name": "coredns",
                            "image": "local.test/coredns:1",
                            "imagePullPolicy": "IfNotPresent",
                            "args": ["-conf", "/etc/coredns/Corefile"],
                            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
                            "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
                        }],
                        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
                    },
                },
            },
        }),
    ]
}
