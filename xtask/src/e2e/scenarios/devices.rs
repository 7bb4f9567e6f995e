//! Agents get devices as the platform gives them: counted by name, and by dynamic resource allocation.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::cache;
use crate::e2e::cluster::{AGENTS, Cluster, SOON, SYSTEM};

/// An extended resource, as device plugins of accelerators announce them.
const COUNTED: &str = "tandem.test/accelerator";
/// What the driver of this test calls itself, and its class of devices.
const DRIVER: &str = "gpu.tandem.test";
const TEMPLATE: &str = "gpus";

struct Driver(Child);

impl Driver {
    fn start(mut command: Command, log: &std::path::Path) -> Result<Self> {
        let log = std::fs::File::create(log).context("a log can't be made")?;
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn().context("the driver can't be started")?))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Both nodes announce one device of each kind, the pool asks for both, and each agent's pod gets its own.
pub(super) fn devices(cluster: &mut Cluster) -> Result<()> {
    let mut drivers = Vec::new();
    for node in &cluster.nodes {
        let log = cluster.dir().join(format!("{}-driver.log", node.name()));
        drivers.push(Driver::start(cluster.device_driver(node)?, &log)?);
        let capacity = json!({"status": {"capacity": {COUNTED: "1"}}}).to_string();
        cluster.kubectl(&[
            "patch",
            "node",
            node.name(),
            "--subresource=status",
            "--type=merge",
            "-p",
            &capacity,
        ])?;
    }
    cluster.until("both drivers have told of their devices", SOON, || {
        let devices = cluster.field(&["resourceslices"], "{.items[*].spec.devices[*].name}")?;
        Ok(devices.split_whitespace().count() == 2)
    })?;
    let selector = format!("device.driver == \"{DRIVER}\"");
    cluster.apply(&[
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": DRIVER},
            "spec": {"selectors": [{"cel": {"expression": selector}}]},
        }),
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
            "metadata": {"name": TEMPLATE, "namespace": AGENTS},
            "spec": {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": DRIVER}}]}}},
        }),
    ])?;
    let chart = cache::workspace().join("charts/tandem").display().to_string();
    // A list that is set replaces the one before as a whole.
    let pool = "--set=agents.pools[0].name=default,agents.pools[0].memoryLimit=2GB";
    let counted = format!("agents.pools[0].resources.limits.{}=1", COUNTED.replace('.', "\\."));
    let claimed = format!("agents.pools[0].resourceClaimTemplates={{{TEMPLATE}}}");
    cluster.helm(&[
        "upgrade",
        "tandem",
        &chart,
        "--namespace",
        SYSTEM,
        "--reuse-values",
        pool,
        "--set",
        &counted,
        "--set",
        &claimed,
    ])?;
    cluster.until("each agent's pod has its devices, and is ready", 2 * SOON, || {
        let label = "app.kubernetes.io/component=agent";
        let of = |path: &str| cluster.field(&["pods", "-n", AGENTS, "-l", label], path);
        let ready = of("{.items[*].status.conditions[?(@.type=='Ready')].status}")?;
        let claims = of("{.items[*].status.resourceClaimStatuses[*].resourceClaimName}")?;
        let path = COUNTED.replace('.', "\\.");
        let counts = of(&format!("{{.items[*].spec.containers[*].resources.limits.{path}}}"))?;
        Ok(ready == "True True" && claims.split_whitespace().count() == 2 && counts == "1 1")
    })?;
    let path = "{range .items[*]}{.status.allocation.devices.results[*].pool} {.status.reservedFor[*].resource}{'\\n'}{end}";
    let allocated = cluster.field(&["resourceclaims", "-n", AGENTS], path)?;
    let mut allocated: Vec<&str> = allocated.lines().collect();
    allocated.sort_unstable();
    ensure!(allocated == ["n1 pods", "n2 pods"], "the claims are {allocated:?}");
    cluster.until("the model is served by both", SOON, || {
        Ok(cluster.condition("Redundant")? == "True" && cluster.condition("Ready")? == "True")
    })?;
    // What holds devices ends while its driver is there to hear of it.
    cluster.helm(&["upgrade", "tandem", &chart, "--namespace", SYSTEM, "--reuse-values", pool])?;
    cluster.until("no claim is left", 2 * SOON, || {
        Ok(cluster.field(&["resourceclaims", "-n", AGENTS], "{.items[*].metadata.name}")?.is_empty())
    })?;
    cluster.kubectl(&["delete", "deviceclass", DRIVER])?;
    cluster.kubectl(&["delete", "resourceslices", "--all"]).map(drop)
}
