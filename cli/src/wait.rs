//! `tandem wait`: ends when a condition holds, driven by the operator's watch.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use tandem_control_api::object_event::Type;
use tokio::time::timeout;

use crate::connection::Connection;
use crate::object::{Kind, Target, condition};

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
    #[arg(long, default_value = "60s", value_parser = duration)]
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

/// `90`, `90s`, `5m`, `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err("say a time as 30s, 5m or 2h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "say a time as 30s, 5m or 2h".to_owned())?;
    number
        .checked_mul(seconds)
        .filter(|s| *s <= 7 * 86_400)
        .map(Duration::from_secs)
        .ok_or("at most a week".to_owned())
}

pub(crate) async fn run(mut connection: Connection, options: &Options) -> Result<()> {
    let (kind, name) = options.target.one()?;
    let mut last = None;
    match timeout(options.timeout, reached(&mut connection, kind, name, &options.goal, &mut last)).await {
        Ok(result) => result?,
        Err(_) => bail!("{}", too_late(kind, name, options, last.as_ref())),
    }
    println!(
        "{}/{name} {}",
        kind.lower(),
        match &options.goal {
            Goal::Gone => "is gone".to_owned(),
            Goal::Condition { name, status } => format!("has {name}={status}"),
        }
    );
    Ok(())
}

async fn reached(
    connection: &mut Connection,
    kind: Kind,
    name: &str,
    goal: &Goal,
    last: &mut Option<Value>,
) -> Result<()> {
    let request = connection.list_request(kind, Some(name), false);
    let mut changes =
        connection.objects.watch(request).await.map_err(|status| connection.explain(status))?.into_inner();
    while let Some(event) = changes.message().await.map_err(|status| connection.explain(status))? {
        match (event.r#type(), goal) {
            (Type::Deleted, Goal::Gone) => return Ok(()),
            (Type::Deleted, Goal::Condition { .. }) => *last = None,
            // All that exists was told before the bookmark.
            (Type::Bookmark, Goal::Gone) if last.is_none() => return Ok(()),
            (Type::Bookmark, _) => {}
            (_, Goal::Gone) => *last = Some(Value::Null),
            (_, Goal::Condition { name, status }) => {
                let object: Value = serde_json::from_str(&event.json).context("the operator sent no JSON")?;
                if condition(&object, name).is_some_and(|(found, ..)| found.eq_ignore_ascii_case(status)) {
                    return Ok(());
                }
                *last = Some(object);
            }
        }
    }
    bail!("the operator ended the watch: ask again")
}

fn too_late(kind: Kind, name: &str, options: &Options, last: Option<&Value>) -> String {
    let start = format!("{}/{name} after {:?}:", kind.lower(), options.timeout);
    match (&options.goal, last) {
        (Goal::Gone, _) => format!("{start} it still exists"),
        (_, None) => format!("{start} it does not exist"),
        (Goal::Condition { name, .. }, Some(object)) => match condition(object, name) {
            Some((status, reason, message)) => format!("{start} {name} is {status} ({reason}): {message}"),
            None => format!("{start} it has no condition {name}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_read_as_kubectl_reads_them() {
        let ready = |status: &str| Goal::Condition { name: "Ready".into(), status: status.into() };
        assert_eq!("condition=Ready".parse(), Ok(ready("True")));
        assert_eq!("condition=Ready=False".parse(), Ok(ready("False")));
        assert_eq!("delete".parse(), Ok(Goal::Gone));
        for bad in ["", "Ready", "condition=", "condition=a=b=c", "delete=x"] {
            assert!(bad.parse::<Goal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_bounded() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "s", "-1s", "1d", "99999999999999999999s", "200h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
