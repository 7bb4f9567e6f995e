//! A real node: kubelet, containerd, kube-proxy and what enforces NetworkPolicies in namespaces of their own, which die together like a machine.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control_plane::{ControlPlane, User};
use crate::site::{self, CONTROLLERS, group, run};
use crate::tools::{Tool, Tools};

/// Where the control plane is, as nodes see it.
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1));
/// Who enforces NetworkPolicies on nodes: it has to be let read these, pods and namespaces.
pub const POLICIES: &str = "kube-network-policies";
/// Address of the cluster's DNS.
pub(crate) const DNS: &str = "10.96.0.10";
const BRIDGE: &str = "tandem0";
/// Nodes, and machines that are none, have numbers up to this.
const MOST: u8 = 9;

/// What nodes have in common.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Folder of the nodes' data.
    pub dir: PathBuf,
    /// Images, as tar files.
    pub images: Vec<PathBuf>,
    /// Folders that each machine sees at another place: (here, there), read-only.
    pub folders: Vec<(PathBuf, PathBuf)>,
}

/// The network that all machines of a site are on; made once.
///
/// # Errors
/// When this is no site, or a network can't be made.
pub fn network() -> Result<()> {
    ensure!(site::inside().is_some(), "a network of nodes is made inside of a site only");
    // This site's mounts are its own from here on, and what lies in /run is its own, too.
    run("mount", &["--make-rprivate", "/"])?;
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
    fs::create_dir_all("/run/netns").context("/run/netns can't be made")?;
    run("ip", &["link", "set", "lo", "up"])?;
    run("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
    run("ip", &["addr", "add", &format!("{GATEWAY}/24"), "dev", BRIDGE])?;
    run("ip", &["link", "set", BRIDGE, "up"])?;
    for number in 1..=MOST {
        run("ip", &["route", "add", &pods(number), "via", &address(number)])?;
    }
    run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]).map(drop)
}

fn address(number: u8) -> String {
    format!("172.30.0.1{number}")
}

fn pods(number: u8) -> String {
    format!("10.244.1{number}.0/24")
}

/// A machine on the site's network: a network namespace, and what runs in it.
pub struct Machine {
    name: String,
    number: u8,
    dir: PathBuf,
    program: PathBuf,
    child: Option<Child>,
}

impl Machine {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> String {
        address(self.number)
    }

    /// Its folder, with the logs of what runs on it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn create(name: &str, number: u8, dir: &Path) -> Result<Self> {
        ensure!((1..=MOST).contains(&number), "a machine's number is 1 to {MOST}");
        let (dir, outer) = (dir.join(name), format!("veth{number}"));
        for folder in ["kubelet", "containerd", "state", "cni", "pods", "containers", "data", "run"] {
            fs::create_dir_all(dir.join(folder)).context("a machine's folder can't be made")?;
        }
        run("ip", &["netns", "add", name])?;
        run("ip", &["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        run("ip", &["link", "set", &outer, "master", BRIDGE, "up"])?;
        let inner = |arguments: &[&str]| run("ip", &[&["-n", name], arguments].concat());
        inner(&["link", "set", "lo", "up"])?;
        inner(&["link", "set", "eth0", "up"])?;
        inner(&["addr", "add", &format!("{}/24", address(number)), "dev", "eth0"])?;
        inner(&["route", "add", "default", "via", &GATEWAY.to_string()])?;
        for other in (1..=MOST).filter(|other| *other != number) {
            inner(&["route", "add", &pods(other), "via", &address(other)])?;
        }
        run("ip", &["netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        let program = dir.join("init.sh");
        Ok(Self { name: name.to_owned(), number, dir, program, child: None })
    }

    /// Boots it: its first process is the script, and ends with everything else when it is killed.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn boot(&mut self) -> Result<()> {
        let site = site::inside().context("machines run inside of a site only")?;
        let own = format!("{site}/{}", self.name);
        let mut join = String::new();
        for controller in CONTROLLERS {
            let dir = group(controller, &own);
            fs::create_dir_all(&dir).with_context(|| format!("{} can't be made", dir.display()))?;
            join.push_str(&format!("echo 0 > {}/cgroup.procs; ", dir.display()));
        }
        // A group of processors has to be told which.
        for name in [&site, &own] {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let all =
                    fs::read_to_string(group("cpuset", "").join(file)).context("cpuset can't be read")?;
                fs::write(group("cpuset", name).join(file), all.trim()).context("cpuset can't be written")?;
            }
        }
        let log = fs::File::create(self.dir.join("init.log")).context("a log can't be made")?;
        let start = format!(
            "{join} exec nsenter --net=/run/netns/{} unshare --mount --uts --ipc --cgroup --pid --fork --kill-child bash {}",
            self.name,
            self.program.display()
        );
        let mut command = Command::new("bash");
        command
            .args(["-c", &start])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        self.child = Some(command.spawn().context("bash can't be started")?);
        Ok(())
    }

    /// SIGKILL to its first process: the kernel ends all others, as when a machine loses its power.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().with_context(|| format!("{} is not running", self.name))?;
        kill(first_child(child.id())?, Signal::SIGKILL).context("a machine can't be killed")?;
        drop(child.wait());
        Ok(())
    }

    /// Cuts its link, or mends it.
    ///
    /// # Errors
    /// When the link is not there.
    pub fn link(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        run("ip", &["link", "set", &format!("veth{}", self.number), state]).map(drop)
    }

    /// Cuts its links to all other machines that are cut off like this, or mends them. Everybody else reaches it, and it them.
    ///
    /// # Errors
    /// When the link is not there.
    pub fn isolate(&self, isolated: bool) -> Result<()> {
        let (port, state) = (format!("veth{}", self.number), if isolated { "on" } else { "off" });
        run("bridge", &["link", "set", "dev", &port, "isolated", state]).map(drop)
    }

    /// A command that runs on it.
    ///
    /// # Errors
    /// When it is not running.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.entered(&["-m", "-u", "-i", "-n", "-p"], program)
    }

    /// A command that sees its files and its network, and is a child of ours like any other: it can be ended and waited for. What
    /// runs on the machine itself is the machine's, and ends with it.
    ///
    /// # Errors
    /// When it is not running.
    pub fn guest(&self, program: &str) -> Result<Command> {
        self.entered(&["-m", "-n"], program)
    }

    fn entered(&self, namespaces: &[&str], program: &str) -> Result<Command> {
        let child = self.child.as_ref().with_context(|| format!("{} is not running", self.name))?;
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(first_child(child.id())?.to_string()).args(namespaces).arg("--").arg(program);
        Ok(command)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill().unwrap_or_default();
        }
        run("ip", &["netns", "del", &self.name]).map(drop).unwrap_or_default();
    }
}

fn first_child(parent: u32) -> Result<Pid> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let children =
            fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        if let Some(child) = children.split_whitespace().next().and_then(|child| child.parse().ok()) {
            return Ok(Pid::from_raw(child));
        }
        ensure!(Instant::now() < end, "a machine has no first process");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What every machine begins with: mounts of its own, and a name.
fn prologue(machine: &Machine, setting: &Setting) -> String {
    let dir = machine.dir.display();
    let mut script = format!(
        r"mount --make-rprivate /
mount --make-rshared /
mount -t proc proc /proc
hostname {name}
echo nameserver 127.0.0.1 > {dir}/run/resolv.conf
mount --bind {dir}/run/resolv.conf /etc/resolv.conf
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock /run/containerd
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/lib/tandem
mount --bind {dir}/data /var/lib/tandem
cat /proc/sys/kernel/random/uuid > {dir}/run/boot_id
mount --bind {dir}/run/boot_id /proc/sys/kernel/random/boot_id
",
        name = machine.name
    );
    for controller in CONTROLLERS {
        let options = if controller == "systemd" { "none,name=systemd" } else { controller };
        script.push_str(&format!(
            "mkdir /sys/fs/cgroup/{controller}; mount -t cgroup -o {options} cgroup /sys/fs/cgroup/{controller}\n"
        ));
    }
    for (here, there) in &setting.folders {
        let (here, there) = (here.display(), there.display());
        script.push_str(&format!("mkdir -p {there}; mount --bind -o ro {here} {there}\n"));
    }
    script
}

/// A node of a cluster.
pub struct Node(Machine);

impl Node {
    /// Makes and boots a node of this name; it registers itself.
    ///
    /// # Errors
    /// When a tool is missing or something can't be set up.
    pub fn start(plane: &ControlPlane, setting: &Setting, name: &str, number: u8) -> Result<Self> {
        let machine = Machine::create(name, number, &setting.dir)?;
        let tools = Tools::find()?;
        let dir = machine.dir.display().to_string();
        let bin = |tool: Tool| Ok::<_, anyhow::Error>(tools.dir(tool)?.display().to_string());
        let (kubernetes, containerd) = (bin(Tool::Kubernetes)?, bin(Tool::Containerd)?);
        let (runc, cni, policies) = (bin(Tool::Runc)?, bin(Tool::Cni)?, bin(Tool::Policies)?);
        // Policies hold between pods of one node, too.
        run("ip", &["netns", "exec", name, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"])?;
        let user = format!("system:node:{name}");
        let kubelet = plane.kubeconfig(User { name: &user, groups: &["system:nodes"] })?;
        let proxy = plane.kubeconfig(User { name: "system:kube-proxy", groups: &[] })?;
        let reader = plane.kubeconfig(User { name: POLICIES, groups: &[] })?;

        fs::write(machine.dir.join("containerd.toml"), containerd_config(&dir, &runc, &cni))?;
        fs::write(machine.dir.join("cni/10-tandem.conflist"), cni_config(&dir, number))?;
        let ca = plane.dir().join("ca.crt");
        fs::write(machine.dir.join("kubelet.yaml"), kubelet_config(&dir, &ca))?;
        let mut script = String::from("#!/bin/bash\n");
        script.push_str(&prologue(&machine, setting));
        script.push_str(&format!(
            r"mkdir -p /var/log/pods /var/log/containers /var/lib/kubelet
mount --bind {dir}/pods /var/log/pods
mount --bind {dir}/containers /var/log/containers
mount --bind {dir}/kubelet /var/lib/kubelet
rm -rf {dir}/run/ipam {dir}/state/*
export PATH={containerd}:{runc}:/usr/sbin:/usr/bin:/sbin:/bin
while :; do {containerd}/containerd --config {dir}/containerd.toml >> {dir}/containerd.log 2>&1; sleep 1; done &
until {containerd}/ctr -a {dir}/run/containerd.sock version > /dev/null 2>&1; do sleep .1; done
"
        ));
        for image in &setting.images {
            script.push_str(&format!(
                "{containerd}/ctr -a {dir}/run/containerd.sock -n k8s.io images import --local {} >> {dir}/import.log 2>&1\n",
                image.display()
            ));
        }
        let address = machine.address();
        script.push_str(&format!(
            r"while :; do {kubernetes}/kubelet --config {dir}/kubelet.yaml --hostname-override {name} --node-ip {address} --kubeconfig {kubelet} >> {dir}/kubelet.log 2>&1; sleep 1; done &
while :; do {kubernetes}/kube-proxy --kubeconfig {proxy} --hostname-override {name} --proxy-mode nftables --cluster-cidr 10.244.0.0/16 --bind-address-hard-fail=false --healthz-bind-address 127.0.0.1:10256 --metrics-bind-address 127.0.0.1:10249 --conntrack-max-per-core 0 --nodeport-addresses {address}/32 >> {dir}/proxy.log 2>&1; sleep 1; done &
while :; do {policies}/policies --kubeconfig {reader} --node {name} >> {dir}/policies.log 2>&1; sleep 1; done &
wait
",
            kubelet = kubelet.display(),
            proxy = proxy.display(),
            reader = reader.display(),
        ));
        fs::write(&machine.program, script)?;
        let mut node = Self(machine);
        node.0.boot()?;
        Ok(node)
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Errors
    /// When it doesn't become so, with the end of the kubelet's log.
    pub fn wait_ready(&self, plane: &ControlPlane, within: Duration) -> Result<()> {
        let end = Instant::now() + within;
        let name = self.0.name();
        loop {
            let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
            if plane.kubectl(&["get", "node", name, "-o", path]).is_ok_and(|answer| answer == "True") {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("node {name} is not ready:\n{}", self.last_words("kubelet.log", 15));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The end of one of its logs.
    #[must_use]
    pub fn last_words(&self, log: &str, lines: usize) -> String {
        let text = fs::read_to_string(self.0.dir().join(log)).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl std::ops::Deref for Node {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.0
    }
}

impl std::ops::DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.0
    }
}

/// A machine that is no node: it runs one program.
///
/// # Errors
/// When it can't be made or booted.
pub fn bare(setting: &Setting, name: &str, number: u8, command_line: &str) -> Result<Machine> {
    let mut machine = Machine::create(name, number, &setting.dir)?;
    let script = format!(
        "#!/bin/bash\n{}exec {command_line} >> {}/bare.log 2>&1\n",
        prologue(&machine, setting),
        machine.dir.display()
    );
    fs::write(&machine.program, script)?;
    machine.boot()?;
    Ok(machine)
}

fn containerd_config(dir: &str, runc: &str, cni: &str) -> String {
    format!(
        r#"version = 3
root = "{dir}/containerd"
state = "{dir}/state"
[grpc]
  address = "{dir}/run/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  use_local_image_pull = true
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "local.test/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{cni}"]
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{runc}/runc"
      SystemdCgroup = false
"#
    )
}

fn cni_config(dir: &str, number: u8) -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "tandem",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": format!("{dir}/run/ipam"),
                    "ranges": [[{"subnet": pods(number)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}

fn kubelet_config(dir: &str, ca: &Path) -> String {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/",
        "containerRuntimeEndpoint": format!("unix://{dir}/run/containerd.sock"),
        "podLogsDir": "/var/log/pods",
        "authentication": {
            "x509": {"clientCAFile": ca.display().to_string()},
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
        },
        "authorization": {"mode": "Webhook"},
        "address": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1",
        "failSwapOn": false,
        "enableControllerAttachDetach": false,
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 20,
        "syncFrequency": "10s",
    })
    .to_string()
}
