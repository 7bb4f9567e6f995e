//! The first admin's folder: credentials and a configuration that the CLI takes as it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use tandem_pki::{CertificateAuthority, Credentials, Identity, OPERATOR_LIFETIME};
use tandem_store::Platform;
use tandem_store::platform::PlatformSecret;

/// Name of the admin that a first start makes.
const FIRST_ADMIN: &str = "admin";

/// Makes sure that `dir` lets the CLI in: credentials of this authority that last, and `tandem.yaml` with this address.
pub(crate) fn prepare(
    dir: &Path,
    authority: &CertificateAuthority,
    operator: &str,
    now: SystemTime,
) -> Result<()> {
    if !usable(dir, authority, now) {
        let admin = Identity::admin(FIRST_ADMIN).context("the first admin's name is a DNS label")?;
        let fresh = authority.credentials(&admin, &[], now, OPERATOR_LIFETIME)?;
        fresh.save(dir).context("the admin's credentials can't be written")?;
        tracing::info!(dir = %dir.display(), "wrote the admin's credentials");
    }
    let path = dir.join("tandem.yaml");
    let text = format!(
        "# For the tandem CLI: `tandem --config {}` or TANDEM_CONFIG.\noperator: {operator}\ncredentials: .\n",
        path.display()
    );
    std::fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))
}

/// The same for a cluster of Kubernetes: the Secret `tandem-admin` of the operator's namespace.
pub(crate) async fn publish(
    platform: &dyn Platform,
    authority: &CertificateAuthority,
    operator: &str,
    now: SystemTime,
) -> Result<()> {
    let known = platform.admin().await.context("the admin's credentials can't be read")?;
    let text = |secret: &PlatformSecret, key: &str| {
        secret.values.get(key).and_then(|value| String::from_utf8(value.clone()).ok()).unwrap_or_default()
    };
    let usable = known.as_ref().is_some_and(|secret| {
        let saved =
            Credentials::new(text(secret, "tls.crt"), text(secret, "tls.key"), text(secret, "ca.crt"));
        saved.ca_pem == authority.certificate_pem() && matches!(saved.wants_renewal(now), Ok(false))
    });
    let address = known.as_ref().map(|secret| text(secret, "operator"));
    if usable && address.as_deref() == Some(operator) {
        return Ok(());
    }
    let admin = Identity::admin(FIRST_ADMIN).context("the first admin's name is a DNS label")?;
    let fresh = authority.credentials(&admin, &[], now, OPERATOR_LIFETIME)?;
    let values = BTreeMap::from([
        ("tls.crt".to_owned(), fresh.certificate_pem),
        ("tls.key".to_owned(), fresh.key_pem),
        ("ca.crt".to_owned(), fresh.ca_pem),
        ("operator".to_owned(), operator.to_owned()),
    ]);
    platform.publish_admin(&values).await.context("the admin's credentials can't be published")?;
    tracing::info!("published the admin's credentials");
    Ok(())
}

fn usable(dir: &Path, authority: &CertificateAuthority, now: SystemTime) -> bool {
    let Ok(saved) = Credentials::load(dir) else { return false };
    saved.ca_pem == authority.certificate_pem() && matches!(saved.wants_renewal(now), Ok(false))
}
