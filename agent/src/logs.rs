//! A worker's log on its way to a person.

use std::io::SeekFrom;
use std::path::Path;
use std::time::Duration;

use tandem_control_api::agent_message::Message as Up;
use tandem_control_api::{AgentMessage, LogChunk, LogsRequest};
use tandem_pki::Name;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::home::Home;

/// How far back a tail can reach, in bytes.
const FARTHEST: u64 = 512 * 1024;
/// Longest text of a message, in bytes.
const CHUNK: usize = 32 * 1024;
/// Lines when nobody says how many.
const LINES: usize = 100;
/// How often a followed log is looked at: a file gives no event.
const LOOK: Duration = Duration::from_millis(250);

/// Sends the last lines of a workload's log, and what is added, until nobody listens.
pub(crate) async fn show(home: &Home, request: &LogsRequest, up: &mpsc::Sender<AgentMessage>) {
    let reader = Reader { request, up };
    // A name is a path below the data folder, so that it must be nothing but a name.
    let text = match request.workload.parse::<Name>() {
        Ok(name) => reader.show(&home.workload(name.as_str()).log()).await,
        Err(error) => Some(format!("[{error}]\n")),
    };
    if let Some(last) = text {
        reader.say(&last, true).await;
    }
}

struct Reader<'a> {
    request: &'a LogsRequest,
    up: &'a mpsc::Sender<AgentMessage>,
}

impl Reader<'_> {
    /// Returns the last words when it has come to an end by itself.
    async fn show(&self, path: &Path) -> Option<String> {
        let mut tail = Tail::default();
        let mut text = match tail.read_new(path).await {
            Ok(text) => text,
            Err(_) if self.request.follow => String::new(),
            Err(_) => return Some("[there is no log of this workload here]\n".to_owned()),
        };
        let lines = usize::try_from(self.request.tail_lines).ok().filter(|lines| *lines > 0).unwrap_or(LINES);
        text = last_lines(&text, lines).to_owned();
        loop {
            if !text.is_empty() && !self.say(&text, false).await {
                return None;
            }
            if !self.request.follow {
                return Some(String::new());
            }
            sleep(LOOK).await;
            text = tail.read_new(path).await.unwrap_or_default();
        }
    }

    async fn say(&self, text: &str, end: bool) -> bool {
        let mut rest = text;
        loop {
            let at = rest.floor_char_boundary(CHUNK.min(rest.len()));
            let (now, later) = rest.split_at(at);
            let chunk = LogChunk {
                request: self.request.request.clone(),
                host: String::new(),
                workload: self.request.workload.clone(),
                text: now.to_owned(),
                end: end && later.is_empty(),
            };
            if self.up.send(Up::Log(chunk).into()).await.is_err() {
                return false;
            }
            rest = later;
            if rest.is_empty() {
                return true;
            }
        }
    }
}

/// How far a file has been read.
#[derive(Default)]
struct Tail {
    position: u64,
}

impl Tail {
    /// What was added since the last time; at most the last half mebibyte of it. A file that has become shorter is a new one.
    async fn read_new(&mut self, path: &Path) -> std::io::Result<String> {
        let mut file = File::open(path).await?;
        let length = file.metadata().await?.len();
        if length < self.position {
            self.position = 0;
        }
        self.position = self.position.max(length.saturating_sub(FARTHEST));
        file.seek(SeekFrom::Start(self.position)).await?;
        let mut bytes = Vec::new();
        self.position +=
            u64::try_from(file.take(FARTHEST).read_to_end(&mut bytes).await?).unwrap_or(FARTHEST);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn last_lines(text: &str, lines: usize) -> &str {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let start = body.rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_whole_lines() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a\n", 5), "a\n");
        assert_eq!(last_lines("", 5), "");
    }

    async fn shown(request: LogsRequest, home: &Home) -> (String, bool) {
        let (up, mut down) = mpsc::channel(64);
        show(home, &request, &up).await;
        drop(up);
        let (mut text, mut ended) = (String::new(), false);
        while let Some(AgentMessage { message: Some(Up::Log(chunk)) }) = down.recv().await {
            text.push_str(&chunk.text);
            ended = chunk.end;
        }
        (text, ended)
    }

    #[tokio::test]
    async fn only_logs_of_workloads_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("secret"), "key").unwrap();
        let ask = |workload: &str| LogsRequest { workload: workload.to_owned(), ..LogsRequest::default() };
        for bad in ["../secret", "/etc/passwd", "", "a/b"] {
            let (text, ended) = shown(ask(bad), &home).await;
            assert!(ended && text.contains("is not a name"), "{text}");
        }
        let (text, ended) = shown(ask("w"), &home).await;
        assert!(ended && text.contains("no log"), "{text}");
        std::fs::create_dir_all(home.workload("w").root()).unwrap();
        let long: String = (0..20_000).map(|line| format!("zeile {line} ä\n")).collect();
        std::fs::write(home.workload("w").log(), &long).unwrap();
        let (text, ended) = shown(LogsRequest { tail_lines: 9000, ..ask("w") }, &home).await;
        assert!(ended && long.ends_with(&text) && text.lines().count() == 9000);
    }
}
