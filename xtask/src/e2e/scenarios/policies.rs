//! The chart's NetworkPolicies, which are enforced all the time.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::cache;
use crate::e2e::cluster::{Cluster, SYSTEM};

/// The pod of `helm test` asks the gateways while the policy names others, while it names that pod, and while it names nobody: everybody may.
pub(super) fn policies(cluster: &mut Cluster) -> Result<()> {
    let only = |component: &str| json!([{"podSelector": {"matchLabels": {"app.kubernetes.io/component": component}}}]);
    let ask = |within: &str| cluster.helm(&["test", "tandem", "--namespace", SYSTEM, within]);
    let_in(cluster, &only("nobody"))?;
    let refused = ask("--timeout=20s");
    ensure!(refused.is_err(), "a pod without a right to has got through: {refused:?}");
    let said = cluster.kubectl(&["logs", "-n", SYSTEM, "tandem-test-completion"])?;
    ensure!(said.contains("no gateway answers"), "it was kept out otherwise: {said}");
    let_in(cluster, &only("test"))?;
    ask("--timeout=60s")?;
    let_in(cluster, &json!([]))?;
    ask("--timeout=60s").map(drop)
}

fn let_in(cluster: &Cluster, who: &Value) -> Result<()> {
    let chart = cache::workspace().join("charts/tandem").display().to_string();
    let value = format!("networkPolicies.gatewayFrom={who}");
    let upgrade =
        ["upgrade", "tandem", &chart, "--namespace", SYSTEM, "--reuse-values", "--set-json", &value];
    cluster.helm(&upgrade).map(drop)
}
