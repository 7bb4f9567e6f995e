//! `tandem authority`: what everybody in the cluster trusts, and its replacement.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde_json::{Value, json};
use tandem_control_api::{AuthorityParty, AuthorityRequest, AuthorityStatus, Role, RotateAuthorityRequest};
use tokio::time::{sleep, timeout};

use crate::admins;
use crate::connection::Connection;
use crate::output::{Format, for_programs, write};
use crate::span::{self, since};
use crate::table::plain;
use crate::wait::spinner;

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_secs(1);
const STABLE: &str = "Stable";
const REISSUING: &str = "Reissuing";

/// What to do with the authority.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Say which authority there is, until when, and how far its replacement is.
    #[command(after_help = "Examples:\n  tandem authority status\n  tandem authority status -o json")]
    Status {
        /// Form of output.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Replace the authority by a new one, while everything serves.
    ///
    /// First everybody learns to trust both, then everybody gets a certificate of the new one, then the old one is forgotten. Each
    /// step waits for all hosts and gateways whose certificates last, also for those that are away.
    Rotate(RotateOptions),
}

/// How to replace it.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tandem authority rotate --wait\n  tandem authority rotate --without mac-c\n  \
                  tandem authority rotate --without gateway/edge-1"
)]
pub(crate) struct RotateOptions {
    /// A host, or gateway/NAME, not to wait for, also of a replacement under way; repeat it for several. It has to join again by
    /// token if it does not come back in time.
    #[arg(long, value_name = "HOST")]
    without: Vec<String>,
    /// Wait until the new authority is the only one.
    #[arg(long)]
    wait: bool,
    /// How long to wait, as 30s, 5m or 2h.
    #[arg(long, default_value = "15m", value_parser = span::parse)]
    timeout: Duration,
}

pub(crate) async fn run(
    config: Option<&Path>,
    connect: &impl Fn() -> Result<Connection>,
    command: &Command,
) -> Result<()> {
    match command {
        Command::Status { output } => {
            let status = ask(connect()?).await?;
            if output.is_table() {
                return write(&screen(&status, Timestamp::now()));
            }
            let label = |_: &Value| "authority".to_owned();
            write(&for_programs(&[object(&status)], true, *output, label)?)
        }
        Command::Rotate(options) => rotate(config, connect, options).await,
    }
}

async fn ask(mut connection: Connection) -> Result<AuthorityStatus> {
    let answer = connection.fleet.authority(AuthorityRequest {}).await;
    Ok(answer.map_err(|status| connection.explain(&status))?.into_inner())
}

async fn rotate(
    config: Option<&Path>,
    connect: &impl Fn() -> Result<Connection>,
    options: &RotateOptions,
) -> Result<()> {
    let mut connection = connect()?;
    let without = options.without.iter().map(|named| party(named)).collect();
    let asked = connection.fleet.rotate_authority(RotateAuthorityRequest { without }).await;
    let status = asked.map_err(|status| connection.explain(&status))?.into_inner();
    if !options.wait {
        return write(&format!(
            "{}\n`tandem authority status` says how far it is.\n",
            standing(&status, Timestamp::now())
        ));
    }
    let bar = spinner()?;
    let mut last = status;
    let ended = timeout(options.timeout, finished(config, connect, &mut last, &bar)).await;
    bar.finish_and_clear();
    match ended {
        Ok(result) => result?,
        Err(_) => bail!(
            "{} after {}. It goes on by itself: `tandem authority status` says how far it is, `tandem authority rotate \
             --without NAME` goes on without somebody",
            standing(&last, Timestamp::now()),
            span::text(options.timeout)
        ),
    }
    let new = last.authorities.first().map(|authority| authority.fingerprint.clone()).unwrap_or_default();
    write(&format!("the authority is replaced: {new}\n"))
}

/// Looks until nothing is being replaced any more. Each look is a connection of its own, with the newest credentials: those that
/// this began with are worth nothing in the end.
async fn finished(
    config: Option<&Path>,
    connect: &impl Fn() -> Result<Connection>,
    last: &mut AuthorityStatus,
    bar: &ProgressBar,
) -> Result<()> {
    let mut outdated = 0;
    while last.phase != STABLE {
        bar.set_message(standing(last, Timestamp::now()));
        sleep(LOOK).await;
        match ask(connect()?).await {
            Ok(status) => *last = status,
            // An operator may be restarted on the way; whoever waits has said for how long.
            Err(error) => {
                bar.set_message(format!("{error:#}"));
                continue;
            }
        }
        // The operator's own folder is written by the operator, at once.
        let signs = last.authorities.iter().find(|authority| authority.signs);
        let due =
            last.phase == REISSUING && signs.is_some_and(|signs| !admins::is_of(config, &signs.fingerprint));
        outdated = if due { outdated + 1 } else { 0 };
        if outdated > 1 {
            let name = admins::renew(connect()?, config).await?;
            above(bar, &format!("the credentials of admin {name} are renewed"));
        }
    }
    Ok(())
}

/// A line that stays, above the one that moves.
fn above(bar: &ProgressBar, text: &str) {
    bar.suspend(|| eprintln!("{text}"));
}

/// `mac-c` and `host/mac-c` are a host, `gateway/edge` is a gateway.
fn party(named: &str) -> AuthorityParty {
    let (role, name) = match named.split_once('/') {
        Some(("gateway", name)) => (Role::Gateway, name),
        Some(("host", name)) => (Role::Host, name),
        _ => (Role::Host, named),
    };
    AuthorityParty { role: role.into(), name: name.to_owned(), ..AuthorityParty::default() }
}

fn label(party: &AuthorityParty) -> String {
    let role = match party.role() {
        Role::Gateway => "gateway",
        Role::Admin => "admin",
        _ => "host",
    };
    format!("{role}/{}", party.name)
}

/// Those that the next step waits for.
fn missing(status: &AuthorityStatus) -> Vec<String> {
    status.parties.iter().filter(|party| is_missing(party)).map(label).collect()
}

fn is_missing(party: &AuthorityParty) -> bool {
    party.waited_for && !party.lacks.is_empty()
}

/// How it is, as the start of a sentence.
fn standing(status: &AuthorityStatus, now: Timestamp) -> String {
    let phase = match status.phase.as_str() {
        STABLE => return "the authority is stable".to_owned(),
        REISSUING => "the new authority signs",
        _ => "the new authority is introduced",
    };
    let ago = Timestamp::from_second(status.since).map_or_else(|_| "-".to_owned(), |then| since(then, now));
    let missing = missing(status);
    let waits = if missing.is_empty() {
        "waits for nobody".to_owned()
    } else {
        format!("waits for {}", missing.join(", "))
    };
    format!("{phase} since {ago} and {waits}")
}

fn screen(status: &AuthorityStatus, now: Timestamp) -> String {
    let day = |seconds: i64| {
        Timestamp::from_second(seconds).map_or_else(|_| "-".to_owned(), |at| at.strftime("%F").to_string())
    };
    let row = |authority: &tandem_control_api::AuthoritySummary| {
        vec![
            authority.fingerprint.clone(),
            authority.subject.clone(),
            if authority.signs { "yes" } else { "no" }.to_owned(),
            day(authority.not_after),
        ]
    };
    let mut out =
        plain(&["FINGERPRINT", "SUBJECT", "SIGNS", "NOT AFTER"], status.authorities.iter().map(row));
    out += &format!("\nPhase: {}. {}.\n", status.phase, capital(&standing(status, now)));
    if !status.parties.is_empty() {
        let row = |party: &AuthorityParty| {
            let heard = match Timestamp::from_second(party.last_heard) {
                Ok(then) if party.last_heard > 0 => format!("{} ago", since(then, now)),
                _ => "-".to_owned(),
            };
            let standing = if party.lacks.is_empty() { "has come along" } else { party.lacks.as_str() };
            let waited_for = if party.waited_for { "yes" } else { "no" };
            vec![label(party), waited_for.to_owned(), heard, standing.to_owned()]
        };
        out += "\n";
        out += &plain(&["NAME", "WAITED FOR", "HEARD", "STANDING"], status.parties.iter().map(row));
    }
    if !missing(status).is_empty() {
        out += "\nNext: see to those that are missing, or go on without: `tandem authority rotate --without NAME`, or \
                `tandem hosts revoke NAME`";
        let gateway = |party: &AuthorityParty| party.role() == Role::Gateway && is_missing(party);
        if let Some(gateway) = status.parties.iter().find(|party| gateway(party)) {
            let name = &gateway.name;
            out += &format!(
                "; for a gateway `--without gateway/{name}` and `tandem hosts revoke {name} --gateway`"
            );
        }
        out += ".\n";
    }
    out
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn object(status: &AuthorityStatus) -> Value {
    let time = |seconds: i64| {
        (seconds > 0).then(|| Timestamp::from_second(seconds).ok()).flatten().map(|at| at.to_string())
    };
    let authorities = status.authorities.iter().map(|authority| {
        json!({
            "fingerprint": authority.fingerprint, "subject": authority.subject, "signs": authority.signs,
            "notAfter": time(authority.not_after),
        })
    });
    let parties = status.parties.iter().map(|party| {
        json!({
            "name": label(party), "waitedFor": party.waited_for, "lacks": party.lacks,
            "lastHeard": time(party.last_heard),
        })
    });
    json!({
        "phase": status.phase, "since": time(status.since),
        "authorities": authorities.collect::<Vec<_>>(), "parties": parties.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use tandem_control_api::AuthoritySummary;

    use super::*;

    #[test]
    fn who_is_missing_is_named_with_what_helps() {
        let authority = |subject: &str, signs| AuthoritySummary {
            fingerprint: "ab".repeat(32),
            subject: subject.into(),
            not_after: 2_000_000_000,
            signs,
        };
        let one = |named: &str, lacks: &str, waited_for| AuthorityParty {
            lacks: lacks.into(),
            waited_for,
            last_heard: 1_000,
            ..party(named)
        };
        let status = AuthorityStatus {
            phase: "Introducing".into(),
            since: 1_000,
            authorities: vec![authority("first", true), authority("second", false)],
            parties: vec![
                one("mac-a", "", true),
                one("mac-c", "does not trust the new authority yet", true),
                one("gateway/edge", "does not trust the new authority yet", false),
            ],
        };
        let text = screen(&status, Timestamp::from_second(1_090).unwrap());
        assert!(
            text.contains("The new authority is introduced since 90s and waits for host/mac-c."),
            "{text}"
        );
        for part in
            ["host/mac-a", "has come along", "gateway/edge", "90s ago", "2033-05-18", "--without NAME"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("--gateway"), "nobody waits for a gateway:\n{text}");
        // One that joined by token may come back, and is waited for like a host.
        let left =
            one("gateway/edge-1", "has not said whom it trusts: it is away, or of an older release", true);
        let status = AuthorityStatus { parties: vec![left], ..status };
        let text = screen(&status, Timestamp::from_second(1_090).unwrap());
        for part in [
            "waits for gateway/edge-1",
            "has not said whom it trusts",
            "--without gateway/edge-1",
            "tandem hosts revoke edge-1 --gateway",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let stable = AuthorityStatus { phase: STABLE.into(), parties: Vec::new(), since: 0, ..status };
        let text = screen(&stable, Timestamp::UNIX_EPOCH);
        assert!(text.contains("Phase: Stable. The authority is stable.") && !text.contains("Next"), "{text}");
    }
}
