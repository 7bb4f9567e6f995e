//! `tandem wait`: ends when a condition holds, driven by the operator's watch.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::time::timeout;

use crate::connection::Connection;
use crate::object::{Kind, Target, condition, items};
use crate::output::write;
use crate::span;
use crate::watch::{Change, Watch};

/// What to wait for.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem wait infd/tiny-kimi --for condition=Redundant --timeout 2m\n  \
                        tandem wait infh/mac-a --for condition=Ready\n  tandem wait infd/tiny-kimi --for delete")]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// condition=NAME, condition=NAME=False, or delete.
    #[arg(long = "for", value_name = "WHAT")]
    goal: Goal,
    /// How long, as 30s or 5m.
    #[arg(long, default_value = "60s", value_parser = span::parse)]
    timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
enum Goal {
    Condition { name: String, status: String },
    Gone,
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('=');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("delete"), None, None, None) => Ok(Self::Gone),
            (Some("condition"), Some(name), status, None) if !name.is_empty() => {
                Ok(Self::Condition { name: name.to_owned(), status: status.unwrap_or("True").to_owned() })
            }
            _ => Err("say condition=NAME, condition=NAME=False, or delete".to_owned()),
        }
    }
}

pub(crate) async fn run(connection: Connection, options: &Options) -> Result<()> {
    let (kind, name) = options.target.one()?;
    let label = format!("{}/{name}", kind.lower());
    let mut last = None;
    let bar = spinner()?;
    bar.set_message(label.clone());
    let waiting = reached(&connection, kind, name, &options.goal, &mut last, &bar);
    let ended = timeout(options.timeout, waiting).await;
    bar.finish_and_clear();
    match ended {
        Ok(result) => result?,
        Err(_) => {
            bail!("{label} after {}: {}", span::text(options.timeout), standing(&options.goal, last.as_ref()))
        }
    }
    match &options.goal {
        Goal::Gone => write(&format!("{label} is gone\n")),
        Goal::Condition { name, status } => write(&format!("{label} has {name}={status}\n")),
    }
}

/// Shows on a terminal that something is waited for, and nothing elsewhere.
pub(crate) fn spinner() -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
    let bar = ProgressBar::new_spinner().with_style(style.context("the template is constant")?);
    bar.enable_steady_tick(Duration::from_millis(120));
    Ok(bar)
}

async fn reached(
    connection: &Connection,
    kind: Kind,
    name: &str,
    goal: &Goal,
    last: &mut Option<Value>,
    bar: &ProgressBar,
) -> Result<()> {
    let request = connection.list_request(kind, Some(name), false);
    let mut watch = Watch::open(connection, request).await?;
    loop {
        match watch.next().await? {
            Change::Seen(object) if holds(goal, &object) => return Ok(()),
            Change::Seen(object) => {
                bar.set_message(format!("{}/{name}: {}", kind.lower(), standing(goal, Some(&object))));
                *last = Some(object);
            }
            Change::Gone(_) if *goal == Goal::Gone => return Ok(()),
            Change::Complete if *goal == Goal::Gone && last.is_none() => return Ok(()),
            Change::Gone(_) | Change::Again => *last = None,
            Change::Complete => {}
        }
    }
}

fn holds(goal: &Goal, object: &Value) -> bool {
    match goal {
        Goal::Gone => false,
        Goal::Condition { name, status } => {
            condition(object, name).is_some_and(|(found, ..)| found.eq_ignore_ascii_case(status))
                && !outdated(object, name)
        }
    }
}

/// Whether a condition speaks of what the manifest said before its last change.
fn outdated(object: &Value, name: &str) -> bool {
    let conditions = items(&object["status"], "conditions");
    let found = conditions.iter().find(|c| c["type"].as_str().is_some_and(|t| t.eq_ignore_ascii_case(name)));
    let about = found.and_then(|condition| condition["observedGeneration"].as_i64());
    matches!((about, object["metadata"]["generation"].as_i64()), (Some(about), Some(now)) if about < now)
}

/// How far it is from the goal, as the end of a sentence.
fn standing(goal: &Goal, object: Option<&Value>) -> String {
    match (goal, object) {
        (_, None) => "it does not exist".to_owned(),
        (Goal::Gone, Some(_)) => "it still exists".to_owned(),
        (Goal::Condition { name, .. }, Some(object)) => match condition(object, name) {
            None => format!("it has no condition {name}"),
            Some((status, ..)) if outdated(object, name) => {
                format!(
                    "{name} is {status} for the manifest before the last change; the new one is not looked at yet"
                )
            }
            Some((status, reason, message)) => format!("{name} is {status} ({reason}): {message}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ready(status: &str) -> Goal {
        Goal::Condition { name: "Ready".into(), status: status.into() }
    }

    #[test]
    fn goals_read_as_kubectl_reads_them() {
        assert_eq!("condition=Ready".parse(), Ok(ready("True")));
        assert_eq!("condition=Ready=False".parse(), Ok(ready("False")));
        assert_eq!("delete".parse(), Ok(Goal::Gone));
        for bad in ["", "Ready", "condition=", "condition=a=b=c", "delete=x"] {
            assert!(bad.parse::<Goal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_condition_of_an_older_generation_does_not_count() {
        let object = |about: i64| {
            json!({"metadata": {"generation": 4}, "status": {"conditions": [
                {"type": "Ready", "status": "True", "reason": "Serving", "observedGeneration": about}]}})
        };
        assert!(holds(&ready("true"), &object(4)));
        assert!(!holds(&ready("True"), &object(3)));
        assert!(standing(&ready("True"), Some(&object(3))).contains("before the last change"));
    }
}
