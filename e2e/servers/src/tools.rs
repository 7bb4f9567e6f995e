//! The servers' programs: Go modules under `e2e/tools`, each built once into a cache.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

/// Overrides where kube-apiserver, etcd and kubectl are, as it does for other projects.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// Which minor of Kubernetes is tested against, such as `1.34` or `oldest`; the newest, if it is not set.
pub const MINOR: &str = "TANDEM_KUBERNETES";

/// A minor version of Kubernetes that Tandem supports: `1.N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Minor(u32);

impl fmt::Display for Minor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.0)
    }
}

impl Minor {
    /// Every supported one, oldest first: those that there is a module for.
    ///
    /// # Errors
    /// When the folder of modules can't be read.
    pub fn supported() -> Result<Vec<Self>> {
        let mut minors = Vec::new();
        let modules = modules();
        // Its path is of the build: a program that was built in a checkout that has moved since looks where that was.
        let entries = fs::read_dir(modules).with_context(|| {
            format!(
                "{} can't be read: if the checkout was moved, touch its sources and build again",
                modules.display()
            )
        })?;
        for entry in entries {
            let name = entry?.file_name();
            let minor = name.to_str().and_then(|name| name.strip_prefix("kubernetes-1."));
            minors.extend(minor.and_then(|minor| minor.parse().ok()).map(Self));
        }
        minors.sort();
        Ok(minors)
    }

    /// The one to test against: `$TANDEM_KUBERNETES`, else the newest.
    ///
    /// # Errors
    /// When it is none of those supported.
    pub fn wanted() -> Result<Self> {
        match env::var(MINOR) {
            Ok(wanted) => Self::named(&wanted).context(MINOR),
            Err(_) => Self::named("newest"),
        }
    }

    /// The one of that name: `1.N`, `oldest` or `newest`.
    ///
    /// # Errors
    /// When it is none of those supported.
    pub fn named(name: &str) -> Result<Self> {
        let supported = Self::supported()?;
        let found = match name {
            "oldest" => supported.first(),
            "newest" => supported.last(),
            name => supported.iter().find(|minor| minor.to_string() == name),
        };
        let names = || supported.iter().map(|minor| format!("{minor}, ")).collect::<String>();
        found.copied().with_context(|| {
            format!("Kubernetes {name} is not supported: use one of {}oldest or newest", names())
        })
    }
}

/// What is built from one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl.
    Kubernetes,
    /// etcd, etcdctl, etcdutl.
    Etcd,
    /// helm.
    Helm,
    /// containerd, its shim and ctr.
    Containerd,
    /// runc; wants libseccomp's headers.
    Runc,
    /// The plugins bridge, loopback, ptp, host-local and portmap.
    Cni,
    /// coredns, with the plugins that the nodes' Corefile names.
    CoreDns,
    /// promtool.
    Prometheus,
    /// glua, the Lua that Argo CD evaluates health checks with.
    Lua,
    /// kstatus: what the library that helm and Flux wait by makes of an object on standard input.
    Kstatus,
    /// dra: a driver of devices that are none, by dynamic resource allocation.
    Dra,
    /// kustomize-controller of Flux, and in `definitions` the custom resources that it reads.
    Flux,
    /// policies: enforces NetworkPolicies on a node, as kube-network-policies decides.
    Policies,
}

/// How one program is built.
struct Program {
    name: &'static str,
    package: &'static str,
}

impl Program {
    fn is_named_as_its_package(&self) -> bool {
        self.package.rsplit('/').next() == Some(self.name)
    }
}

const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package }
}

const KUBERNETES: [Program; 6] = [
    program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    program("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    program("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
];
const ETCD: [Program; 3] = [
    program("etcd", "go.etcd.io/etcd/server/v3"),
    program("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
    program("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
];
const HELM: [Program; 1] = [program("helm", "helm.sh/helm/v4/cmd/helm")];
const CONTAINERD: [Program; 3] = [
    program("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
    program("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    program("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
];
const RUNC: [Program; 1] = [program("runc", "github.com/opencontainers/runc")];
const CNI: [Program; 5] = [
    program("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
    program("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
    program("ptp", "github.com/containernetworking/plugins/plugins/main/ptp"),
    program("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
    program("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
];
const CORE_DNS: [Program; 1] = [program("coredns", "tandem.dev/e2e/tools/coredns")];
const PROMETHEUS: [Program; 1] = [program("promtool", "github.com/prometheus/prometheus/cmd/promtool")];
const LUA: [Program; 1] = [program("glua", "github.com/yuin/gopher-lua/cmd/glua")];
const KSTATUS: [Program; 1] = [program("kstatus", "tandem.dev/e2e/tools/kstatus")];
const DRA: [Program; 1] = [program("dra", "tandem.dev/e2e/tools/dra")];
const FLUX: [Program; 1] = [program("kustomize-controller", "github.com/fluxcd/kustomize-controller")];
const POLICIES: [Program; 1] = [program("policies", "tandem.dev/e2e/tools/policies")];

/// Custom resources that a program reads, from a module of which nothing else may be wanted.
struct Definitions {
    module: &'static str,
    /// What go.mod requires at the version that is meant.
    version_of: &'static str,
}

const FLUX_DEFINITIONS: [Definitions; 2] = [
    Definitions {
        module: "github.com/fluxcd/kustomize-controller",
        version_of: "github.com/fluxcd/kustomize-controller",
    },
    Definitions {
        module: "github.com/fluxcd/source-controller",
        version_of: "github.com/fluxcd/source-controller/api",
    },
];

impl Tool {
    /// Every tool, in the order in which they are built.
    pub const ALL: [Self; 13] = [
        Self::Kubernetes,
        Self::Etcd,
        Self::Containerd,
        Self::Runc,
        Self::Cni,
        Self::CoreDns,
        Self::Helm,
        Self::Prometheus,
        Self::Lua,
        Self::Kstatus,
        Self::Dra,
        Self::Flux,
        Self::Policies,
    ];

    fn programs(self) -> &'static [Program] {
        match self {
            Self::Kubernetes => &KUBERNETES,
            Self::Etcd => &ETCD,
            Self::Helm => &HELM,
            Self::Containerd => &CONTAINERD,
            Self::Runc => &RUNC,
            Self::Cni => &CNI,
            Self::CoreDns => &CORE_DNS,
            Self::Prometheus => &PROMETHEUS,
            Self::Lua => &LUA,
            Self::Kstatus => &KSTATUS,
            Self::Dra => &DRA,
            Self::Flux => &FLUX,
            Self::Policies => &POLICIES,
        }
    }

    fn definitions(self) -> &'static [Definitions] {
        if self == Self::Flux { &FLUX_DEFINITIONS } else { &[] }
    }

    fn module(self, minor: Minor) -> String {
        match self {
            Self::Kubernetes => format!("kubernetes-{minor}"),
            Self::Etcd => "etcd".to_owned(),
            Self::Helm => "helm".to_owned(),
            Self::Containerd => "containerd".to_owned(),
            Self::Runc => "runc".to_owned(),
            Self::Cni => "cni".to_owned(),
            Self::CoreDns => "coredns".to_owned(),
            Self::Prometheus => "prometheus".to_owned(),
            Self::Lua => "lua".to_owned(),
            Self::Kstatus => "kstatus".to_owned(),
            Self::Dra => "dra".to_owned(),
            Self::Flux => "flux".to_owned(),
            Self::Policies => "policies".to_owned(),
        }
    }

    /// Build tags and whether C is linked.
    fn recipe(self) -> (&'static str, bool) {
        match self {
            Self::Containerd => ("no_btrfs no_devmapper no_zfs", false),
            // Without seccomp every unprivileged pod fails.
            Self::Runc => ("seccomp", true),
            // Those of clouds take longer to compile than all the rest.
            Self::Prometheus => ("remove_all_sd", false),
            _ => ("", false),
        }
    }

    /// What the system has to bring, if it doesn't.
    ///
    /// # Errors
    /// Names the package and how to install it.
    pub fn check_system(self) -> Result<()> {
        go()?;
        if self == Self::Runc {
            let found = Command::new("pkg-config").args(["--exists", "libseccomp"]).status();
            ensure!(
                found.is_ok_and(|status| status.success()),
                "runc wants the headers of libseccomp: install libseccomp-dev and pkg-config"
            );
        }
        Ok(())
    }
}

/// Where built tools are.
#[derive(Clone, Debug)]
pub struct Tools {
    cache: PathBuf,
    minor: Minor,
}

impl Tools {
    /// Of the wanted minor, in `tools` of `$TANDEM_CACHE`, or of the user's cache folder.
    ///
    /// # Errors
    /// When there is no cache folder, or the minor is not supported.
    pub fn find() -> Result<Self> {
        let cache = match (env::var_os("TANDEM_CACHE"), env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
            (Some(dir), _, _) => dir.into(),
            (None, Some(dir), _) => Path::new(&dir).join("tandem"),
            (None, None, Some(home)) if cfg!(target_os = "macos") => {
                Path::new(&home).join("Library/Caches/tandem")
            }
            (None, None, Some(home)) => Path::new(&home).join(".cache/tandem"),
            _ => bail!("neither TANDEM_CACHE nor HOME is set: say where tools may be kept"),
        };
        Ok(Self { cache: cache.join("tools"), minor: Minor::wanted()? })
    }

    /// One program's path, building its tool first if it isn't there.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn program(&self, tool: Tool, name: &str) -> Result<PathBuf> {
        if let Some(assets) = env::var_os(ASSETS) {
            let path = Path::new(&assets).join(name);
            if path.is_file() {
                return Ok(path);
            }
        }
        Ok(self.dir(tool)?.join(name))
    }

    /// Where a tool's programs are, or will be.
    ///
    /// # Errors
    /// When its module can't be read.
    pub fn place(&self, tool: Tool) -> Result<PathBuf> {
        let module = modules().join(tool.module(self.minor));
        Ok(self.cache.join(format!("{}-{}", tool.module(self.minor), digest(&module, tool)?)))
    }

    /// What this machine lacks to build a tool, or to run it if it is built already; nothing: it can be had.
    ///
    /// # Errors
    /// When its module can't be read.
    pub fn lacks(&self, tool: Tool) -> Result<Option<String>> {
        let dir = self.place(tool)?;
        if !dir.is_dir() {
            return Ok(tool.check_system().err().map(|error| format!("{error:#}")));
        }
        // The one that is linked with a library of the system's.
        let runs = || {
            Command::new(dir.join("runc")).arg("--version").output().is_ok_and(|said| said.status.success())
        };
        let lacking = tool == Tool::Runc && !runs();
        Ok(lacking.then(|| "runc doesn't run here: it wants libseccomp, install libseccomp2".to_owned()))
    }

    /// The folder with a tool's programs, built first if it isn't there.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn dir(&self, tool: Tool) -> Result<PathBuf> {
        let dir = self.place(tool)?;
        if dir.is_dir() {
            return Ok(dir);
        }
        fs::create_dir_all(&self.cache).with_context(|| format!("{} can't be made", self.cache.display()))?;
        let lock = File::create(self.cache.join(".lock")).context("the cache can't be locked")?;
        // Another test may be building: it is waited for.
        let _held = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .context("the cache can't be locked")?;
        if !dir.is_dir() {
            self.build(tool, &dir)?;
        }
        Ok(dir)
    }

    fn build(&self, tool: Tool, dir: &Path) -> Result<()> {
        let module = &modules().join(tool.module(self.minor));
        tool.check_system()?;
        eprintln!("building {} into {} (once)", tool.module(self.minor), dir.display());
        let unfinished = dir.with_extension("building");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).context("an unfinished build can't be removed")?;
        }
        let (tags, links_c) = tool.recipe();
        let mut flags = "-s -w".to_owned();
        if tool == Tool::Kubernetes {
            let version = required(module, "k8s.io/kubernetes")?;
            for (name, value) in
                [("gitVersion", version.as_str()), ("gitMajor", "1"), ("gitMinor", &self.minor.0.to_string())]
            {
                flags.push_str(&format!(" -X k8s.io/component-base/version.{name}={value}"));
            }
        }
        fs::create_dir_all(&unfinished).context("no folder for programs")?;
        let go_build = |to: &Path, packages: &[&str]| {
            let status = go()?
                .current_dir(module)
                .args(["build", "-trimpath", "-buildvcs=false", "-tags", tags, "-ldflags", &flags, "-o"])
                .arg(to)
                .args(packages)
                .env("CGO_ENABLED", if links_c { "1" } else { "0" })
                .stdin(Stdio::null())
                .status()
                .context("go can't be started")?;
            ensure!(status.success(), "{} can't be built from {}", packages.join(", "), module.display());
            Ok(())
        };
        // Together, so that one is linked while others are compiled; go gives each the name of its package.
        let (alike, others): (Vec<&Program>, Vec<_>) =
            tool.programs().iter().partition(|program| program.is_named_as_its_package());
        if !alike.is_empty() {
            go_build(&unfinished, &alike.iter().map(|program| program.package).collect::<Vec<_>>())?;
        }
        for program in others {
            go_build(&unfinished.join(program.name), &[program.package])?;
        }
        for definitions in tool.definitions() {
            definitions.copy(module, &unfinished.join("definitions"))?;
        }
        fs::rename(&unfinished, dir).context("a finished build can't be put in place")
    }
}

impl Definitions {
    /// Into `to`; `go` verifies what it downloads.
    fn copy(&self, tool: &Path, to: &Path) -> Result<()> {
        let version = required(tool, self.version_of)?;
        let output = go()?
            .current_dir(tool)
            .args(["mod", "download", "-json", &format!("{}@{version}", self.module)])
            .output()
            .context("go can't be started")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{} can't be downloaded: {said}", self.module);
        let said: serde_json::Value = serde_json::from_str(&said).context("go speaks no JSON")?;
        let from = Path::new(said["Dir"].as_str().context("go names no folder")?).join("config/crd/bases");
        fs::create_dir_all(to).context("no folder for definitions")?;
        for file in fs::read_dir(&from).with_context(|| format!("{} can't be read", from.display()))? {
            let file = file?;
            fs::copy(file.path(), to.join(file.file_name())).context("a definition can't be copied")?;
        }
        Ok(())
    }
}

fn go() -> Result<Command> {
    let found = Command::new("go").arg("version").output();
    ensure!(
        found.is_ok_and(|output| output.status.success()),
        "go is not installed: tests against real servers build these with Go 1.26 or newer"
    );
    Ok(Command::new("go"))
}

fn modules() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tools"))
}

/// Changes with everything that a build depends on.
fn digest(module: &Path, tool: Tool) -> Result<String> {
    let mut hasher = Sha256::new();
    // A module that brings its own program.
    let own = module.join("main.go").exists().then_some("main.go");
    for file in ["go.mod", "go.sum"].into_iter().chain(own) {
        let path = module.join(file);
        hasher.update(fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?);
    }
    let (tags, links_c) = tool.recipe();
    hasher.update(format!("{tags} {links_c}"));
    for program in tool.programs() {
        hasher.update(format!("{} {}", program.name, program.package));
    }
    for definitions in tool.definitions() {
        hasher.update(definitions.module);
    }
    Ok(hex::encode(&hasher.finalize()[..8]))
}

/// The version of a module that a go.mod requires.
fn required(module: &Path, name: &str) -> Result<String> {
    let text = fs::read_to_string(module.join("go.mod")).context("a go.mod can't be read")?;
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut versions = words.filter_map(|words| match words[..] {
        ["require", found, version, ..] | [found, version, ..] if found == name => Some(version.to_owned()),
        _ => None,
    });
    versions.next().with_context(|| format!("{} requires no {name}", module.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    /// Go compiles a library once for all that want it at one version, and Kubernetes' are large: together these take minutes
    /// instead of a quarter of an hour.
    #[test]
    fn clients_of_kubernetes_agree_on_the_libraries_that_they_share() {
        let clients =
            [Tool::Helm, Tool::Prometheus, Tool::CoreDns, Tool::Kstatus, Tool::Flux, Tool::Policies];
        let newest = Minor::named("newest").unwrap();
        for library in ["k8s.io/apimachinery", "golang.org/x/net", "golang.org/x/text"] {
            let version = |tool: Tool| required(&modules().join(tool.module(newest)), library).unwrap();
            let versions = clients.map(version);
            assert!(versions.iter().all(|other| *other == versions[0]), "{library}: {versions:?}");
        }
    }
}
