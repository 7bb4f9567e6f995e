//! A question to hosts and their answers as they come: lines for files, bars for what is on its way.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tandem_control_api::models_reply::Said;
use tandem_control_api::{ModelsProgress, ModelsRequest, StoredFile};
use tokio::time::timeout;
use tonic::Code;

use crate::connection::Connection;
use crate::object::Kind;
use crate::output::write;
use crate::progress::pace;
use crate::span;

/// What a host says, with its name.
pub(super) enum Answer {
    File(String, StoredFile),
    Progress(String, ModelsProgress),
    Note(String, String),
    /// Its part has failed; a sentence.
    Failed(String, String),
    /// Its part is over.
    Ended(String),
}

/// Asks, and takes every answer until the last host has ended its part; whether a host's part has failed.
pub(super) async fn talk(
    mut connection: Connection,
    request: ModelsRequest,
    patience: Duration,
    mut take: impl FnMut(Answer) -> Result<()>,
) -> Result<bool> {
    let named = request.hosts.clone();
    let mut replies = match connection.fleet.models(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::NotFound && named.len() == 1 => {
            let reference = connection.reference(Kind::Host, &named[0]);
            return Err(connection.explain_about(&reference, &status).await);
        }
        Err(status) => return Err(connection.explain(&status)),
    };
    let mut failed = false;
    loop {
        let Ok(next) = timeout(patience, replies.message()).await else {
            bail!(
                "no host has said anything for {}: `tandem hosts list` shows which are there, and their agents' logs why",
                span::text(patience)
            );
        };
        let Some(reply) = next.map_err(|status| connection.explain(&status))? else { return Ok(failed) };
        let host = reply.host;
        match reply.said {
            Some(Said::File(file)) => take(Answer::File(host.clone(), file))?,
            Some(Said::Progress(progress)) => take(Answer::Progress(host.clone(), progress))?,
            Some(Said::Note(note)) => take(Answer::Note(host.clone(), note))?,
            Some(Said::Error(sentence)) => {
                failed = true;
                take(Answer::Failed(host.clone(), sentence))?;
            }
            None => {}
        }
        if reply.end {
            take(Answer::Ended(host))?;
        }
    }
}

/// Prints what hosts do: files on standard output, the rest on standard error.
pub(super) struct Listener {
    style: ProgressStyle,
    bars: MultiProgress,
    of_host: BTreeMap<String, ProgressBar>,
    nothing: bool,
}

impl Listener {
    pub(super) fn new() -> Result<Self> {
        let style = ProgressStyle::with_template(
            "{prefix} {percent:>3}% {bar:24} {binary_bytes}/{binary_total_bytes} {wide_msg}",
        );
        let style = style.context("the template is constant")?.progress_chars("█░");
        Ok(Self { style, bars: MultiProgress::new(), of_host: BTreeMap::new(), nothing: true })
    }

    pub(super) fn take(&mut self, answer: Answer, line: fn(&str, &StoredFile) -> String) -> Result<()> {
        match answer {
            Answer::File(host, file) => {
                self.nothing = false;
                return self.bars.suspend(|| write(&line(&host, &file)));
            }
            Answer::Progress(host, progress) => self.show(&host, &progress),
            Answer::Note(host, note) => {
                self.nothing = false;
                self.bars.suspend(|| eprintln!("{host}: {note}"));
            }
            Answer::Failed(host, sentence) => {
                self.bars.suspend(|| eprintln!("error: host {host}: {sentence}"))
            }
            Answer::Ended(host) => {
                if let Some(bar) = self.of_host.remove(&host) {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
            }
        }
        Ok(())
    }

    fn show(&mut self, host: &str, progress: &ModelsProgress) {
        let bar = self.of_host.entry(host.to_owned()).or_insert_with(|| {
            let bar = ProgressBar::new(progress.total).with_style(self.style.clone());
            self.bars.add(bar.with_prefix(host.to_owned()))
        });
        bar.set_length(progress.total);
        bar.set_position(progress.done.min(progress.total));
        let left = progress.total.saturating_sub(progress.done);
        let pace = pace(progress.bytes_per_second, left.checked_div(progress.bytes_per_second));
        bar.set_message(format!("{pace} {}", progress.what));
    }

    /// Takes all bars away; whether no host had anything to say.
    pub(super) fn finish(&mut self) -> bool {
        for bar in std::mem::take(&mut self.of_host).into_values() {
            bar.finish_and_clear();
        }
        self.nothing
    }
}
