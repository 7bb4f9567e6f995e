//! Gateways under TLS, as clients in the cluster meet them.

use anyhow::Result;
use serde_json::json;

use crate::cache;
use crate::e2e::cluster::{Cluster, SYSTEM};

/// A Secret as cert-manager makes it, an upgrade that names it, and a completion that `helm test` gets over HTTPS with the Secret's authority alone.
pub(super) fn gateway_tls(cluster: &mut Cluster) -> Result<()> {
    let name = format!("tandem-gateway.{SYSTEM}.svc");
    let (certificate, key) = cluster.plane.server_certificate(&[&name])?;
    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "gateway-tls", "namespace": SYSTEM},
        "stringData": {"tls.crt": certificate, "tls.key": key, "ca.crt": cluster.plane.ca()},
    })])?;
    upgrade(cluster, "gateway-tls", 443)?;
    cluster.helm(&["test", "tandem", "--namespace", SYSTEM, "--timeout=60s"])?;
    upgrade(cluster, "", 80)?;
    cluster.kubectl(&["delete", "secret", "gateway-tls", "-n", SYSTEM]).map(drop)
}

fn upgrade(cluster: &Cluster, secret: &str, port: u16) -> Result<()> {
    let chart = cache::workspace().join("charts/tandem").display().to_string();
    let values = format!("gateway.tls.secretName={secret},gateway.service.port={port}");
    let upgrade =
        ["upgrade", "tandem", &chart, "--namespace", SYSTEM, "--reuse-values", "--wait", "--timeout=120s"];
    cluster.helm(&[&upgrade[..], &["--set", &values]].concat()).map(drop)
}
