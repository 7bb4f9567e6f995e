//! The first admin's folder: credentials and a configuration that the CLI takes as it is.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use tandem_pki::{CertificateAuthority, Credentials, Identity, OPERATOR_LIFETIME};

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

fn usable(dir: &Path, authority: &CertificateAuthority, now: SystemTime) -> bool {
    let Ok(saved) = Credentials::load(dir) else { return false };
    saved.ca_pem == authority.certificate_pem() && matches!(saved.wants_renewal(now), Ok(false))
}
