//! How remote files are reached: trust, bounds and retries.

use std::time::Duration;

use backon::ExponentialBuilder;
use reqwest::Certificate;

/// Whom to trust and how long to wait. The default trusts what the system trusts.
#[derive(Clone, Debug)]
pub struct Access {
    pub(crate) extra_roots: Vec<Certificate>,
    pub(crate) connect: Duration,
    pub(crate) idle: Duration,
    first_retry: Duration,
    retries: usize,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            extra_roots: Vec::new(),
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            first_retry: Duration::from_millis(500),
            retries: 4,
        }
    }
}

impl Access {
    /// Also trusts these authorities, as PEM.
    ///
    /// # Errors
    /// When the text holds no certificate that can be read.
    pub fn trusting(mut self, pem: &[u8]) -> Result<Self, NotACertificate> {
        let roots = Certificate::from_pem_bundle(pem).map_err(|_| NotACertificate)?;
        if roots.is_empty() {
            return Err(NotACertificate);
        }
        self.extra_roots.extend(roots);
        Ok(self)
    }

    /// Waits at most this long for a connection, and for the next bytes of a body.
    #[must_use]
    pub fn waiting(mut self, connect: Duration, idle: Duration) -> Self {
        (self.connect, self.idle) = (connect, idle);
        self
    }

    /// Tries again this often, the first time after `first`, each further time after twice as long.
    #[must_use]
    pub fn retrying(mut self, retries: usize, first: Duration) -> Self {
        (self.retries, self.first_retry) = (retries, first);
        self
    }

    /// The waits between tries.
    #[must_use]
    pub fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.first_retry)
            .with_max_delay(Duration::from_secs(30))
            .with_max_times(self.retries)
            .with_jitter()
    }
}

/// Text that holds no certificate.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the extra authority is not a PEM certificate")]
pub struct NotACertificate;
