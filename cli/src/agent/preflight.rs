//! Whether this machine is fit for an agent: facts in, a list of checks out, each with its mend.

use std::fmt;
use std::path::PathBuf;

/// Weights come to this disk; less than this holds no useful model.
const USEFUL_DISK: u64 = 8 << 30;

/// What was seen of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Answers,
    /// And why not, as a sentence.
    Refused(String),
}

/// What was seen of the machine.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) root: bool,
    pub(super) service_manager: bool,
    /// systemd or launchd.
    pub(super) manager: &'static str,
    pub(super) program: PathBuf,
    pub(super) program_found: bool,
    pub(super) worker: PathBuf,
    pub(super) worker_found: bool,
    pub(super) data_dir: PathBuf,
    /// Of the disk that will hold the data folder; `None` when the system doesn't say.
    pub(super) free_bytes: Option<u64>,
    /// Absent, well-formed, or why not.
    pub(super) token: Option<Result<(), String>>,
    /// Whether the data folder holds credentials from an earlier join.
    pub(super) joined: bool,
    pub(super) operator: Operator,
    /// Of the gateway that was asked for, and why it can't run.
    pub(super) gateway: Option<Result<(), String>>,
}

/// One thing that must be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) holds: bool,
    pub(super) what: String,
    /// What to do where it doesn't hold.
    pub(super) mend: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.holds {
            write!(f, "✓ {}", self.what)
        } else {
            write!(f, "✗ {}: {}", self.what, self.mend)
        }
    }
}

/// Every check, in the order in which a person would mend them.
pub(super) fn check(facts: &Facts) -> Vec<Check> {
    let of = |holds, what: &str, mend: &str| Check { holds, what: what.to_owned(), mend: mend.to_owned() };
    let mut checks = vec![
        of(facts.root, "run as root", "run it again with sudo"),
        of(
            facts.service_manager,
            &format!("{} runs this machine", facts.manager),
            "run `tandem-agent run` under what does, or use --print and adapt the service",
        ),
        of(
            facts.program_found,
            &format!("the agent is at {}", facts.program.display()),
            "install tandem-agent there, or say where it is with --program",
        ),
        of(
            facts.worker_found,
            &format!("the worker is at {}", facts.worker.display()),
            "install inference-worker beside the agent",
        ),
    ];
    let free = facts.free_bytes.unwrap_or(u64::MAX);
    checks.push(Check {
        holds: free >= USEFUL_DISK,
        what: format!("the disk under {} has room", facts.data_dir.display()),
        mend: format!(
            "{:.1} GiB are free, weights need more: use another --data-dir",
            free as f64 / f64::from(1 << 30)
        ),
    });
    checks.push(match &facts.token {
        Some(Ok(())) => of(true, "the join token is well-formed", ""),
        Some(Err(sentence)) => of(false, "the join token is well-formed", sentence),
        None => of(
            facts.joined,
            "this host has joined before, or has a token to join with",
            "make a token with `tandem join-token` and set TANDEM_JOIN_TOKEN",
        ),
    });
    checks.push(match &facts.operator {
        Operator::Answers if facts.token.is_some() => {
            of(true, "the operator answers, and is of the token's cluster", "")
        }
        Operator::Answers => of(true, "the operator answers", ""),
        Operator::Refused(sentence) => of(false, "the operator answers", sentence),
    });
    checks.extend(facts.gateway.as_ref().map(|gateway| {
        let sentence = gateway.as_ref().err().map(String::as_str);
        of(sentence.is_none(), "a gateway can run here", sentence.unwrap_or_default())
    }));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> Facts {
        Facts {
            root: true,
            service_manager: true,
            manager: "systemd",
            program: "/usr/local/bin/tandem-agent".into(),
            program_found: true,
            worker: "/usr/local/bin/inference-worker".into(),
            worker_found: true,
            data_dir: "/var/lib/tandem".into(),
            free_bytes: Some(1 << 40),
            token: Some(Ok(())),
            joined: false,
            operator: Operator::Answers,
            gateway: Some(Ok(())),
        }
    }

    #[test]
    fn a_fit_machine_passes_and_each_fault_is_named_with_its_mend() {
        assert!(check(&fit()).iter().all(|check| check.holds));
        type Fault = fn(&mut Facts);
        let faults: [(&str, Fault); 8] = [
            ("sudo", |f| f.root = false),
            ("--print", |f| f.service_manager = false),
            ("--program", |f| f.program_found = false),
            ("beside the agent", |f| f.worker_found = false),
            ("--data-dir", |f| f.free_bytes = Some(1 << 30)),
            ("tandem join-token", |f| f.token = None),
            ("another port", |f| f.gateway = Some(Err("taken: name another port".into()))),
            ("firewall", |f| f.operator = Operator::Refused("is a firewall between?".into())),
        ];
        for (mend, fault) in faults {
            let mut facts = fit();
            fault(&mut facts);
            let failed: Vec<String> =
                check(&facts).iter().filter(|check| !check.holds).map(ToString::to_string).collect();
            assert_eq!(failed.len(), 1, "{mend}: {failed:?}");
            assert!(failed[0].starts_with('✗') && failed[0].contains(mend), "{}", failed[0]);
        }
    }

    #[test]
    fn who_has_joined_needs_no_token() {
        let facts = Facts { token: None, joined: true, ..fit() };
        assert!(check(&facts).iter().all(|check| check.holds));
    }
}
