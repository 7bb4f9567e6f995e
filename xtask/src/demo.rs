//! `cargo xtask demo`: a host dies in mid-sentence, and the sentence goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tandem_e2e::{Client, Completion, DEPLOYMENT, Layout, MODEL, Programs, Site, deploy};

use crate::programs;

/// Tokens of the long text.
const TOKENS: u32 = 900;
/// The serving host is killed when the client has seen this many: well before the worker has made half of the text.
const KILL_AT: usize = 40;
/// The prompt leaves real choice, so that a wrong draw, a wrong prefix or a lost row shows as another text.
const PROMPT: &str = "Tell a long story about a bridge.";
const SEED: u64 = 20;
/// Below this a repeated text would prove little.
const MIN_BITS_PER_TOKEN: f64 = 0.5;
const MIN_TOKENS_AFTER_KILL: usize = 100;
/// Characters of the text shown on either side of the takeover.
const SHOWN: usize = 70;

#[derive(Args)]
pub(crate) struct Options {
    /// Print one last line of JSON with the figures.
    #[arg(long)]
    json: bool,
    /// Leave everything running, and print what to try.
    #[arg(long)]
    keep: bool,
    /// The programs are built already.
    #[arg(skip)]
    built: bool,
}

impl Options {
    pub(crate) fn for_test() -> Self {
        Self { json: true, keep: false, built: true }
    }
}

/// What the demo measured.
#[derive(Serialize)]
struct Figures {
    /// From SIGKILL to the next token at the client.
    recovery_ms: f64,
    tokens_lost: usize,
    tokens_doubled: usize,
    tokens_after_kill: usize,
    /// Ids and logprobs equal those of an undisturbed run.
    exact: bool,
    /// From SIGKILL until the deployment was Redundant again.
    redundant_again_ms: f64,
    tokens: usize,
    /// Surprise of the sampled tokens: how much choice there was.
    bits_per_token: f64,
    seams: usize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.built {
        programs::build()?;
    }
    let programs = Programs::in_dir(&programs::dir()?);
    say("Starting an operator, three hosts and two gateways on this machine, joined by token …");
    let mut site = Site::start(programs, Layout { hosts: 3, gateways: 2 })?;
    let shown = show(&mut site);
    let figures = match shown {
        Ok(figures) => figures,
        Err(error) => {
            eprintln!("{}", site.last_words(15));
            return Err(error);
        }
    };
    if options.keep {
        keep(site)?;
    } else {
        drop(site);
        say("Everything is stopped and removed.");
    }
    let verdict = verdict(&figures);
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    verdict
}

fn show(site: &mut Site) -> Result<Figures> {
    deploy(site, 1)?;
    say("Applied examples/tiny.yaml: one copy must survive the loss of any host (hostFailures: 1).");
    say("Redundant: two hosts hold a copy, the third is free.");

    let client = site.client(0)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let request = json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS, "temperature": 1.0, "seed": SEED, "ignore_eos": true,
    });
    let calm = runtime.block_on(client.chat(&request, |_| Ok(())))?;
    let bits = bits_per_token(&calm);
    say(&format!(
        "A long story, undisturbed: {} tokens at temperature 1, {bits:.2} bits of surprise a token.",
        calm.tokens.len()
    ));

    let Disturbed { completion: disturbed, killed, recovery, cut } =
        disturb(site, &runtime, &client, &request)?;
    let seam = disturbed.seams.first().context("the host died and no takeover was announced")?;
    say(&format!(
        "The stream went on after {:.0} ms at token {} on another host ({}).",
        recovery.as_secs_f64() * 1e3,
        seam.index,
        if seam.exact { "exact" } else { "not exact" },
    ));
    ensure!(
        2 * seam.index < TOKENS,
        "the worker had made {} of {TOKENS} tokens when it died: too many to prove anything",
        seam.index
    );
    eprintln!("    undisturbed  {}", around(&calm.text, cut, ""));
    eprintln!("    host killed  {}", around(&disturbed.text, cut, "✗"));

    site.watch(DEPLOYMENT, Duration::from_secs(120), |object| {
        condition(object, "Redundant") == Some("True")
    })?;
    let redundant_again = killed.elapsed();
    say(&format!(
        "Redundant again after {:.1} s: the third host holds a copy now.",
        redundant_again.as_secs_f64()
    ));

    Ok(Figures {
        recovery_ms: round(recovery),
        tokens_lost: lost(&calm, &disturbed),
        tokens_doubled: disturbed.tokens.len().saturating_sub(calm.tokens.len()),
        tokens_after_kill: disturbed.tokens.len().saturating_sub(seam.index as usize),
        exact: calm.tokens == disturbed.tokens && calm.text == disturbed.text,
        redundant_again_ms: round(redundant_again),
        tokens: disturbed.tokens.len(),
        bits_per_token: (bits * 100.0).round() / 100.0,
        seams: disturbed.seams.len(),
    })
}

/// A text whose host died on the way.
struct Disturbed {
    completion: Completion,
    killed: Instant,
    /// From SIGKILL to the next token at the client.
    recovery: Duration,
    /// How many bytes of the text came before the takeover.
    cut: usize,
}

/// The same request, with SIGKILL for the serving host's agent, runner and worker in mid-stream. Returns when Redundant
/// has been seen False, so that its return is a return.
fn disturb(
    site: &mut Site,
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    request: &Value,
) -> Result<Disturbed> {
    let mut killed: Option<Instant> = None;
    let mut recovery = None;
    let mut cut = 0;
    let completion = runtime.block_on(client.chat(request, |so_far| {
        if so_far.seams.is_empty() {
            cut = so_far.text.len();
        }
        match killed {
            None if so_far.tokens.len() >= KILL_AT => {
                let host = site.serving_host(0, so_far)?;
                let host = &mut site.hosts[host];
                killed = Some(Instant::now());
                host.kill()?;
                say(&format!(
                    "Killed {} with SIGKILL after {} tokens: agent, runner and worker.",
                    host.name,
                    so_far.tokens.len()
                ));
            }
            Some(at) if recovery.is_none() && !so_far.seams.is_empty() => recovery = Some(at.elapsed()),
            _ => {}
        }
        Ok(())
    }))?;
    let killed = killed.context("the text ended before the host was killed")?;
    site.watch(DEPLOYMENT, Duration::from_secs(60), |object| condition(object, "Redundant") == Some("False"))
        .context("the operator did not notice that a host is gone")?;
    let recovery = recovery.context("no token came after the host died")?;
    Ok(Disturbed { completion, killed, recovery, cut })
}

fn verdict(figures: &Figures) -> Result<()> {
    ensure!(figures.exact, "the text differs from that of an undisturbed run");
    ensure!(figures.tokens_lost == 0 && figures.tokens_doubled == 0, "tokens were lost or doubled");
    ensure!(
        figures.tokens_after_kill >= MIN_TOKENS_AFTER_KILL,
        "only {} tokens came after the kill",
        figures.tokens_after_kill
    );
    ensure!(
        figures.bits_per_token >= MIN_BITS_PER_TOKEN,
        "{} bits a token leave too little choice to prove anything",
        figures.bits_per_token
    );
    say("Same token ids, same log probabilities: 0 lost, 0 doubled.");
    Ok(())
}

/// Tokens of the calm run that the disturbed one lacks at their place.
fn lost(calm: &Completion, disturbed: &Completion) -> usize {
    let same = calm.tokens.iter().zip(&disturbed.tokens).filter(|(a, b)| a.id == b.id).count();
    calm.tokens.len() - same
}

fn bits_per_token(completion: &Completion) -> f64 {
    let nats: f64 = completion.tokens.iter().map(|token| -token.logprob).sum();
    nats / std::f64::consts::LN_2 / completion.tokens.len().max(1) as f64
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

fn keep(site: Site) -> Result<()> {
    let client = site.client(0)?;
    let config = site.config();
    let dir = site.keep();
    say("Left running. Try:");
    println!(
        "  export TANDEM_CONFIG={} PATH={}:$PATH\n  tandem get infd\n  tandem describe {DEPLOYMENT}\n  tandem hosts list\n  \
         curl -N {}/v1/chat/completions -d '{{\"model\":\"tiny-kimi\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\
         \"content\":\"What is Tandem?\"}}]}}' -H 'content-type: application/json'\nStop it all with:\n  pkill -f {dir}; rm -r {dir}",
        config.display(),
        programs::dir()?.display(),
        client.base(),
        dir = dir.display(),
    );
    Ok(())
}

fn say(line: &str) {
    eprintln!("▸ {line}");
}

/// What stands on either side of byte `cut`, with a mark there.
fn around(text: &str, cut: usize, mark: &str) -> String {
    let (before, after) = text.split_at_checked(cut).unwrap_or((text, ""));
    let left = before.char_indices().rev().nth(SHOWN).map_or(0, |(at, _)| at);
    let right: String = after.chars().take(SHOWN).collect();
    format!("“…{}{mark}{right}…”", &before[left..]).replace('\n', " ")
}

fn round(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}
