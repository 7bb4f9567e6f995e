//! Which host a gateway has asked for a stream, read off the gateway's log: lines for people or JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Completion;
use crate::site::until;

/// The host that serves a stream. While two are asked at once, which a busy machine makes a gateway do, nobody knows whose text it
/// will be: that is waited for.
///
/// # Errors
/// When the log can't be read, or does not name one host within 10 s.
pub fn serving_host(log: impl Fn() -> Result<String>, seen: &Completion) -> Result<String> {
    let stream =
        seen.about["stream"].as_str().and_then(|id| id.get(..8)).context("a stream without an id")?;
    let mut asked = Vec::new();
    let one = until(Duration::from_secs(10), || {
        asked = hosts_asked(&log()?, stream);
        Ok(asked.len() == 1)
    });
    one.with_context(|| format!("by its gateway's log, {asked:?} serve the stream, and not one host"))?;
    Ok(asked.remove(0))
}

/// Hosts whose attempts at a stream have begun and were neither lost nor cancelled.
fn hosts_asked(log: &str, stream: &str) -> Vec<String> {
    let mut asked = BTreeMap::new();
    for line in log.lines().map(Line::read).filter(|line| line.field("stream").as_deref() == Some(stream)) {
        let (Some(attempt), replica) = (line.field("attempt"), line.field("replica")) else { continue };
        if line.says("an attempt is lost") || line.says("an attempt is cancelled") {
            asked.remove(&attempt);
        } else if let Some((host, _)) = replica.as_deref().and_then(|name| name.split_once('/')) {
            asked.insert(attempt, host.to_owned());
        }
    }
    asked.into_values().collect()
}

enum Line<'a> {
    Text(&'a str),
    Json(Value),
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Self {
        serde_json::from_str(line).map_or(Self::Text(line), Self::Json)
    }

    fn says(&self, message: &str) -> bool {
        match self {
            Self::Text(line) => line.contains(message),
            Self::Json(line) => line["fields"]["message"] == message,
        }
    }

    fn field(&self, name: &str) -> Option<String> {
        match self {
            Self::Text(line) => {
                let (_, rest) = line.split_once(&format!(" {name}="))?;
                rest.split_whitespace().next().map(str::to_owned)
            }
            Self::Json(line) => match &line["fields"][name] {
                Value::Null => None,
                Value::String(value) => Some(value.clone()),
                value => Some(value.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_host_that_was_asked_in_vain_serves_nothing() {
        let mut log = "INFO choice: attempt stream=0a1b2c3d attempt=1 replica=host-a/w resumed=0\n\
                       INFO choice: attempt stream=ffffffff attempt=1 replica=host-c/w resumed=0\n"
            .to_owned();
        assert_eq!(hosts_asked(&log, "0a1b2c3d"), ["host-a"]);
        log += "INFO choice: attempt stream=0a1b2c3d attempt=2 replica=host-b/w resumed=31\n";
        assert_eq!(hosts_asked(&log, "0a1b2c3d"), ["host-a", "host-b"]);
        let outrun =
            format!("{log}INFO choice: an attempt is cancelled stream=0a1b2c3d attempt=2 why=Outrun\n");
        assert_eq!(hosts_asked(&outrun, "0a1b2c3d"), ["host-a"]);
        log += "INFO attempt: an attempt is lost stream=0a1b2c3d attempt=1 replica=host-a/w loss=Broken why=\"\"\n";
        assert_eq!(hosts_asked(&log, "0a1b2c3d"), ["host-b"]);
    }

    #[test]
    fn json_says_the_same() {
        let line = |fields: Value| format!("{}\n", json!({ "level": "INFO", "fields": fields }));
        let attempt = |number: u32, replica: &str| {
            line(json!({
                "message": "attempt", "stream": "0a1b2c3d", "attempt": number, "replica": replica, "resumed": 0,
            }))
        };
        let mut log = attempt(1, "n1/w") + &attempt(2, "n2/w");
        assert_eq!(hosts_asked(&log, "0a1b2c3d"), ["n1", "n2"]);
        log += &line(json!({ "message": "an attempt is cancelled", "stream": "0a1b2c3d", "attempt": 1 }));
        assert_eq!(hosts_asked(&log, "0a1b2c3d"), ["n2"]);
    }
}
