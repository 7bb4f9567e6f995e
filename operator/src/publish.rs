//! Where an operator puts whom to trust: for pods and people of Kubernetes, and into the first admin's folder.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tandem_store::{Store, Version};

use crate::admin;
use crate::authority::Authorities;

/// Writes what the authorities' record says, once for each version of it.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Addresses in this operator's own certificate.
    pub(crate) advertise: Vec<String>,
    /// Where people reach it.
    url: String,
    /// Of the first admin; none where people take credentials from the platform.
    admin: Option<PathBuf>,
    done: Mutex<Option<Version>>,
}

impl Publisher {
    pub(crate) fn new(advertise: Vec<String>, url: String, admin: Option<PathBuf>) -> Self {
        Self { advertise, url, admin, done: Mutex::default() }
    }

    pub(crate) fn has_published(&self, authorities: &Authorities) -> bool {
        self.done.lock().expect("no panic while it is changed").as_ref() == Some(authorities.version())
    }

    /// Everything, unless it was done for this version of the record.
    pub(crate) async fn publish(
        &self,
        store: &dyn Store,
        authorities: &Authorities,
        revoked: &BTreeSet<String>,
        now: (SystemTime, Timestamp),
    ) -> Result<()> {
        if self.has_published(authorities) {
            return Ok(());
        }
        let admins = admin::Admins { store, authorities, revoked, url: &self.url, now };
        if let Some(platform) = store.platform() {
            let published = platform.publish_trust(&authorities.bundle()).await;
            published.context("the authority can't be published")?;
            admins.publish(platform).await?;
        }
        if let Some(dir) = &self.admin {
            admins.prepare(dir).await?;
        }
        *self.done.lock().expect("no panic while it is changed") = Some(authorities.version().clone());
        Ok(())
    }
}
