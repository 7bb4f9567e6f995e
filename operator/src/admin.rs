//! The first admin's credentials: a folder that the CLI takes as it is, and a Secret in Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tandem_pki::{Credentials, Identity, KeyAndRequest, OPERATOR_LIFETIME, serial_of_certificate};
use tandem_store::platform::PlatformSecret;
use tandem_store::{Platform, Store};

use crate::authority::Authorities;
use crate::membership::{self, Binding, Made};

/// Name of the admin that a first start makes.
const FIRST_ADMIN: &str = "admin";

/// What making credentials for an admin takes.
pub(crate) struct Admins<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) authorities: &'a Authorities,
    /// Serial numbers that are not to be used any more.
    pub(crate) revoked: &'a BTreeSet<String>,
    /// Where people reach this operator.
    pub(crate) url: &'a str,
    pub(crate) now: (SystemTime, Timestamp),
}

impl Admins<'_> {
    /// Makes sure that `dir` lets the CLI in: credentials of the authority that signs, everything to trust, and `tandem.yaml`
    /// with this operator's address.
    pub(crate) async fn prepare(&self, dir: &Path) -> Result<()> {
        let saved = Credentials::load(dir).ok();
        let known = saved.filter(|saved| self.usable(saved));
        let newest = self.newest(known.as_ref()).await?;
        if known.as_ref() != Some(&newest) {
            newest.save(dir).context("the admin's credentials can't be written")?;
            tracing::info!(dir = %dir.display(), "wrote the admin's credentials");
        }
        let path = dir.join("tandem.yaml");
        let text = format!(
            "# For the tandem CLI: `tandem --config {}` or TANDEM_CONFIG.\noperator: {}\ncredentials: .\n",
            path.display(),
            self.url
        );
        replace(&path, &text).with_context(|| format!("{} can't be written", path.display()))
    }

    /// The same for a cluster of Kubernetes: the Secret `tandem-admin` of the operator's namespace.
    pub(crate) async fn publish(&self, platform: &dyn Platform) -> Result<()> {
        let known = platform.admin().await.context("the admin's credentials can't be read")?;
        let text = |secret: &PlatformSecret, key: &str| {
            let value = secret.values.get(key);
            value.and_then(|value| String::from_utf8(value.clone()).ok()).unwrap_or_default()
        };
        let saved = known.as_ref().map(|secret| {
            Credentials::new(text(secret, "tls.crt"), text(secret, "tls.key"), text(secret, "ca.crt"))
        });
        let address = known.as_ref().map(|secret| text(secret, "operator"));
        let usable = saved.filter(|saved| self.usable(saved));
        let newest = self.newest(usable.as_ref()).await?;
        if usable.as_ref() == Some(&newest) && address.as_deref() == Some(self.url) {
            return Ok(());
        }
        let values = BTreeMap::from([
            ("tls.crt".to_owned(), newest.certificate_pem),
            ("tls.key".to_owned(), newest.key_pem),
            ("ca.crt".to_owned(), newest.ca_pem),
            ("operator".to_owned(), self.url.to_owned()),
        ]);
        platform.publish_admin(&values).await.context("the admin's credentials can't be published")?;
        tracing::info!("published the admin's credentials");
        Ok(())
    }

    /// These with everything to trust, or others.
    async fn newest(&self, usable: Option<&Credentials>) -> Result<Credentials> {
        let bundle = self.authorities.bundle();
        if let Some(usable) = usable {
            return Ok(usable.trusting(&bundle, usable.revoked.clone()));
        }
        let admin = Identity::admin(FIRST_ADMIN).context("the first admin's name is a DNS label")?;
        let own = KeyAndRequest::generate()?;
        let issued = self.authorities.sign(&own.csr_pem, &admin, &[], self.now.0, OPERATOR_LIFETIME)?;
        let made = Made { identity: &admin, issued: &issued };
        membership::remember(self.store, &admin, &made, &Binding::Operator, self.now.1).await?;
        Ok(Credentials::new(issued.certificate_pem, own.key_pem, issued.ca_pem))
    }

    /// Whether a certificate is of the authority that signs, lasts, and is trusted.
    fn usable(&self, saved: &Credentials) -> bool {
        let signed = saved.issuer(&self.authorities.bundle()).ok().flatten();
        signed == Some(self.authorities.signing())
            && matches!(saved.wants_renewal(self.now.0), Ok(false))
            && serial(saved).is_some_and(|serial| !self.revoked.contains(&serial))
    }
}

/// Writes beside and renames, unless it is there already: people and scripts read it whenever they like.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|known| known == text.as_bytes()) {
        return Ok(());
    }
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(beside, path)
}

fn serial(saved: &Credentials) -> Option<String> {
    serial_of_certificate(&saved.der().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn whoever_reads_meanwhile_gets_all_of_the_old_or_all_of_the_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tandem.yaml");
        let texts =
            ["operator: https://127.0.0.1:7443\n", "operator: https://127.0.0.1:7444\ncredentials: .\n"];
        replace(&path, texts[0]).unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| (0..200).for_each(|n| replace(&path, texts[n % 2]).unwrap()));
            while !writer.is_finished() {
                let read = fs::read_to_string(&path).unwrap();
                assert!(texts.contains(&read.as_str()), "{read:?}");
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
