//! A stream that is disturbed: a site with the tiny model, the text of a calm run, and the same text while things happen.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::site::until;
use crate::{Client, Completion, Failure, Layout, MODEL, Programs, Site, deploy};

/// Tokens of a text in which a busy machine finds out who serves, and another host takes over, with much of it to come.
pub const LONG: usize = 2000;

/// A site that serves, and the text of an undisturbed run on it.
pub struct Scene {
    /// The site.
    pub site: Site,
    /// What the client saw while nothing happened.
    pub calm: Completion,
    request: Value,
    runtime: Runtime,
}

impl Scene {
    /// Starts a site with one gateway, deploys the tiny model on it and streams a text of 900 tokens: enough for
    /// what begins in mid-stream. What ends there too wants [`LONG`].
    ///
    /// # Errors
    /// When the model is not ready within two minutes, or the calm run fails.
    pub fn set(hosts: usize, host_failures: u64) -> Result<Self> {
        Self::with_tokens(hosts, host_failures, 900)
    }

    /// The same with a text of so many tokens.
    ///
    /// # Errors
    /// As [`Scene::set`].
    pub fn with_tokens(hosts: usize, host_failures: u64, tokens: usize) -> Result<Self> {
        let site = Site::start(Programs::find()?, Layout { hosts, gateways: 1 })?;
        Self::on(site, host_failures, tokens)
    }

    /// On a site that runs already and has a gateway.
    ///
    /// # Errors
    /// As [`Scene::set`].
    pub fn on(site: Site, host_failures: u64, tokens: usize) -> Result<Self> {
        let runtime = Runtime::new().context("no runtime for the client")?;
        let request = story(tokens, 11);
        let mut scene = Self { site, calm: Completion::default(), request, runtime };
        scene.calm = scene.ready(host_failures).with_context(|| scene.site.last_words(20))?;
        ensure!(scene.calm.tokens.len() == tokens, "the calm run has {} tokens", scene.calm.tokens.len());
        Ok(scene)
    }

    fn ready(&self, host_failures: u64) -> Result<Completion> {
        deploy(&self.site, host_failures)?;
        self.stream(&self.site.client(0)?, |_| Ok(()))
    }

    /// Streams another text, undisturbed.
    ///
    /// # Errors
    /// When the request fails.
    pub fn ask(&self, request: &Value) -> Result<Completion> {
        self.runtime.block_on(self.site.client(0)?.chat(request, |_| Ok(())))
    }

    /// Asks for what can't be given.
    ///
    /// # Errors
    /// When it is given, or nobody answers.
    pub fn refusal(&self, request: &Value) -> Result<Failure> {
        self.runtime.block_on(self.site.client(0)?.refusal("/v1/chat/completions", request))
    }

    /// Waits until a gateway that was just started knows the model.
    ///
    /// # Errors
    /// When it does not within 30 s.
    pub fn wait_until_served(&self, client: &Client) -> Result<()> {
        until(Duration::from_secs(30), || self.runtime.block_on(client.lists(MODEL)))
    }

    /// Whether a client is told of the model.
    ///
    /// # Errors
    /// When the gateway's answer can't be understood.
    pub fn lists(&self, client: &Client) -> Result<bool> {
        self.runtime.block_on(client.lists(MODEL))
    }

    /// Streams the text through a client, and calls `seen` after every token.
    ///
    /// # Errors
    /// When the request fails, or `seen` does.
    pub fn stream(&self, client: &Client, seen: impl FnMut(&Completion) -> Result<()>) -> Result<Completion> {
        self.runtime.block_on(client.chat(&self.request, seen))
    }

    /// Streams the same text, calls `happens` once after `after` tokens, and returns what the client saw.
    ///
    /// # Errors
    /// When the stream fails, with the end of every log, or ends before anything happened.
    pub fn meanwhile(
        &mut self,
        after: usize,
        mut happens: impl FnMut(&mut Site, &Completion) -> Result<()>,
    ) -> Result<Completion> {
        let mut happened = false;
        let seen = self.at_every_token(|site, so_far| {
            if !happened && so_far.tokens.len() >= after {
                happened = true;
                happens(site, so_far)?;
            }
            Ok(())
        })?;
        ensure!(happened, "the text ended before anything happened");
        Ok(seen)
    }

    /// Streams the same text, and calls `happens` after every token.
    ///
    /// # Errors
    /// When the stream fails, with the end of every log.
    pub fn at_every_token(
        &mut self,
        mut happens: impl FnMut(&mut Site, &Completion) -> Result<()>,
    ) -> Result<Completion> {
        let client = self.site.client(0)?;
        let site = &mut self.site;
        let result = self.runtime.block_on(client.chat(&self.request, |so_far| happens(site, so_far)));
        result.with_context(|| self.site.last_words(30))
    }

    /// Many streams at once, each with a text of its own; `happens` is called once, when every one has 20 tokens. Returns
    /// what each client saw.
    ///
    /// # Errors
    /// When one fails, with the end of every log.
    pub fn crowd(
        &mut self,
        streams: u64,
        tokens: usize,
        mut happens: impl FnMut(&mut Site, &Completion) -> Result<()>,
    ) -> Result<Vec<Completion>> {
        let client = self.site.client(0)?;
        let site = &mut self.site;
        let begun = std::cell::Cell::new(0);
        let happens = std::cell::RefCell::new(|so_far: &Completion| happens(site, so_far));
        let all = (0..streams).map(|seed| {
            let (client, begun, happens) = (&client, &begun, &happens);
            async move {
                client
                    .chat(&story(tokens, seed), |so_far| {
                        if so_far.tokens.len() == 20 {
                            begun.set(begun.get() + 1);
                            if begun.get() == streams {
                                (happens.borrow_mut())(so_far)?;
                            }
                        }
                        Ok(())
                    })
                    .await
            }
        });
        let result = self.runtime.block_on(futures::future::try_join_all(all));
        result.with_context(|| self.site.last_words(30))
    }

    /// That a client saw the calm run's text: ids, log probabilities and words.
    ///
    /// # Panics
    /// When it did not.
    pub fn assert_same(&self, seen: &Completion) {
        assert_eq!(
            seen.tokens, self.calm.tokens,
            "ids or log probabilities differ from those of the calm run"
        );
        assert_eq!(seen.text, self.calm.text);
    }

    /// So many takeovers, each bit for bit; if there were others, the logs say why.
    ///
    /// # Panics
    /// When there were.
    pub fn assert_taken_over(&self, seen: &Completion, times: usize) {
        let exact = seen.seams.iter().filter(|seam| seam.exact).count();
        assert_eq!(
            (seen.seams.len(), exact),
            (times, times),
            "takeovers, and exact ones: {:?}\n{}",
            seen.seams,
            self.site.last_words(40)
        );
    }

    /// No takeover; if there was one, the logs say why.
    ///
    /// # Panics
    /// When there was one.
    pub fn assert_unnoticed(&self, seen: &Completion) {
        assert!(seen.seams.is_empty(), "the stream noticed: {:?}\n{}", seen.seams, self.site.last_words(30));
    }
}

/// A request for a text of so many tokens with real choice at each.
#[must_use]
pub fn story(tokens: usize, seed: u64) -> Value {
    json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Tell a long story about a bridge."}],
        "max_tokens": tokens, "temperature": 1.0, "seed": seed, "ignore_eos": true,
    })
}
