//! The gateway of a bare host: a child of the runner, certified in the host's own name.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tandem_agent_core::{Credentials, restart_delay};
use tandem_pki::Identity;

use crate::home::Home;
use crate::runner::Start;
use crate::settings::{Settings, passed_on};

/// The runner's name for it: no workload can have it, since `@` is in no DNS label.
pub(crate) const ID: &str = "@gateway";
/// A gateway is no part of the host's spec and has no epochs.
pub(crate) const EPOCH: u64 = 1;
/// It lets streams go on for a while when it is told to end.
pub(crate) const GRACE: Duration = Duration::from_secs(40);

/// What is known of this host's gateway.
pub(crate) struct Gateway {
    dir: PathBuf,
    pub(crate) credentials: Credentials,
    pub(crate) running: bool,
    /// The runner is told, and has not answered yet.
    pub(crate) starting: bool,
    failures: u32,
    failed_at: Duration,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Certify,
    Start,
    WaitUntil(Duration),
    Nothing,
}

impl Gateway {
    pub(crate) fn new(home: &Home, identity: &Identity, authorities: &str) -> Self {
        let dir = home.gateway();
        let credentials = kept(&dir.join("identity"), identity, authorities);
        Self { dir, credentials, running: false, starting: false, failures: 0, failed_at: Duration::ZERO }
    }

    pub(crate) fn identity_dir(&self) -> PathBuf {
        self.dir.join("identity")
    }

    pub(crate) fn next(&self, now: Duration) -> Step {
        if self.running || self.starting {
            return Step::Nothing;
        }
        let retry = match &self.credentials {
            Credentials::Absent => return Step::Certify,
            Credentials::Requested => return Step::Nothing,
            Credentials::Failed { at, failures, .. } => at.saturating_add(restart_delay(*failures)),
            Credentials::Valid => self.failed_at.saturating_add(restart_delay(self.failures)),
        };
        match (&self.credentials, now >= retry) {
            (_, false) => Step::WaitUntil(retry),
            (Credentials::Valid, true) => Step::Start,
            (_, true) => Step::Certify,
        }
    }

    pub(crate) fn runs(&mut self) {
        (self.running, self.starting) = (true, false);
    }

    pub(crate) fn failed(&mut self, now: Duration) {
        (self.running, self.starting) = (false, false);
        (self.failures, self.failed_at) = (self.failures.saturating_add(1), now);
    }

    pub(crate) fn start(&self, settings: &Settings) -> Option<Start> {
        let gateway = settings.gateway.as_ref()?;
        let mut args = Vec::new();
        for operator in &settings.operators {
            args.extend(["--operator".to_owned(), operator.clone()]);
        }
        args.extend(["--name".to_owned(), settings.name.to_string()]);
        args.extend(["--data-dir".to_owned(), self.dir.display().to_string()]);
        args.extend(["--listen".to_owned(), gateway.listen.to_string()]);
        args.extend(["--advertise".to_owned(), gateway.advertise.clone()]);
        if let Some((certificate, key)) = &gateway.tls {
            args.extend(["--tls-cert".to_owned(), certificate.display().to_string()]);
            args.extend(["--tls-key".to_owned(), key.display().to_string()]);
        }
        if let Some(listen) = gateway.metrics {
            args.extend(["--metrics-listen".to_owned(), listen.to_string()]);
        }
        if gateway.unauthenticated {
            args.push("--unauthenticated".to_owned());
        }
        Some(Start {
            id: ID.to_owned(),
            epoch: EPOCH,
            memory_bytes: 0,
            program: gateway.program.clone(),
            args,
            env: passed_on(),
            log: self.dir.join("log"),
        })
    }
}

/// Whether a folder holds credentials of this identity that are valid still, and of one of these authorities (PEM).
pub(crate) fn kept(dir: &std::path::Path, identity: &Identity, authorities: &str) -> Credentials {
    let usable = || {
        let credentials = tandem_pki::Credentials::load(dir).ok()?;
        let (_, end) = credentials.validity().ok()?;
        credentials.issuer(authorities).ok()??;
        (credentials.identity().ok()? == *identity && end > SystemTime::now()).then_some(())
    };
    if usable().is_some() { Credentials::Valid } else { Credentials::Absent }
}
