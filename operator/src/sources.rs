//! Where models may come from, and how they are reached: the same for the operator, which reads headers, and for hosts, which are
//! told in their supply.

use anyhow::{Context as _, Result};
use tandem_sources::Access;

use crate::settings::SourceSettings;

/// As [`SourceSettings`], checked.
pub(crate) struct Sources {
    pub(crate) access: Access,
    pub(crate) allowed: Vec<String>,
    pub(crate) mirrors: Vec<String>,
}

impl Sources {
    /// Checks settings.
    ///
    /// # Errors
    /// When the file of authorities can't be read.
    pub(crate) fn new(settings: &SourceSettings) -> Result<Self> {
        let mut access = Access::default();
        if let Some(path) = &settings.extra_ca {
            let pem = std::fs::read(path)
                .with_context(|| format!("the file of --extra-ca, {}, can't be read", path.display()))?;
            access = access
                .trusting(&pem)
                .with_context(|| format!("the file of --extra-ca, {}, can't be used", path.display()))?;
        }
        Ok(Self { access, allowed: settings.allowed.clone(), mirrors: settings.mirrors.clone() })
    }
}
