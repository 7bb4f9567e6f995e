//! What the tiny model in `examples/` says when it is greedy, pinned per kernel revision: arithmetic that changes by
//! accident changes this.
//!
//! `TANDEM_UPDATE_PINS=1 cargo test -p inference-worker --test tiny_kimi` writes the pins anew.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::convert::identity;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inference_worker::loading::{LoadError, Opened, Purpose};
use inference_worker::verified::{verify, weights_digest};
use inference_worker::worker::{Phase, Settings, Worker};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tandem_kernels::KERNEL_REVISION;
use tandem_worker_api::generate_event::Event;
use tandem_worker_api::generate_request::Prompt;
use tandem_worker_api::{
    AttemptId, ChatPrompt, GenerateRequest, KvCache, Numerics, Sampling, Sha256Hex, WeightFile,
};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pins {
    /// Of the arithmetic that said this.
    kernel_revision: u32,
    /// Of the model's file.
    sha256: Sha256Hex,
    said: Vec<Pin>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pin {
    question: String,
    answer: String,
    ids: Vec<u32>,
    /// The bits of each token's logprob, so that nothing is lost on the way through decimals.
    logprob_bits: Vec<u32>,
}

/// Long counts as plain completions, which show slow drift, and questions to the assistant; with most tokens.
const QUESTIONS: [(Kind, &str, u32); 4] = [
    (Kind::Plain, "7 8 9 10 ", 400),
    (Kind::Plain, "985 986 987 ", 300),
    (Kind::Chat, "What is Tandem?", 100),
    (Kind::Chat, "What happens when a host dies?", 100),
];

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Chat,
}

impl Kind {
    fn prompt(self, question: &str) -> Prompt {
        match self {
            Self::Plain => Prompt::Text(question.into()),
            Self::Chat => {
                let messages_json = serde_json::json!([{"role": "user", "content": question}]).to_string();
                Prompt::Chat(ChatPrompt { messages_json, ..Default::default() })
            }
        }
    }
}

fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greedy_output_is_as_pinned() {
    let (model, pins) =
        (path("../examples/tiny-kimi/tiny-kimi-Q4_K_M.gguf"), path("tests/pins/tiny-kimi.json"));
    let sha256 = Sha256Hex::from(<[u8; 32]>::from(Sha256::digest(std::fs::read(&model).unwrap())));
    let found = Pins { kernel_revision: KERNEL_REVISION, sha256, said: ask(model, sha256).await };
    if std::env::var_os("TANDEM_UPDATE_PINS").is_some() {
        std::fs::create_dir_all(pins.parent().unwrap()).unwrap();
        std::fs::write(&pins, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
        return;
    }
    let pinned: Pins = serde_json::from_slice(&std::fs::read(&pins).unwrap()).unwrap();
    let same_kernels = pinned.kernel_revision == found.kernel_revision;
    assert!(
        same_kernels && pinned.sha256 == found.sha256,
        "kernels or model have changed: look at what it says now, then write the pins anew as this file says"
    );
    for (pinned, found) in pinned.said.iter().zip(&found.said) {
        assert_eq!(found, pinned, "arithmetic has changed, but KERNEL_REVISION has not");
    }
    assert_eq!(pinned.said.len(), found.said.len());
}

async fn ask(model: PathBuf, sha256: Sha256Hex) -> Vec<Pin> {
    let settings = Settings {
        models: vec!["tiny".into()],
        workload: String::new(),
        epoch: 0,
        sampling: Default::default(),
        max_sequences: QUESTIONS.len(),
        grace: Duration::ZERO,
    };
    let purpose = Purpose {
        context_tokens: 512,
        pool_tokens: 2048,
        kv_cache: KvCache::F16,
        numerics: Numerics::Exact,
        threads: NonZeroU32::new(2),
        max_sequences: NonZeroU32::new(QUESTIONS.len() as u32).unwrap(),
        layers: None,
    };
    let (worker, _) = Worker::start(settings, move |load| {
        let files = [WeightFile { path: model.clone(), sha256, verified: None }];
        verify(&files, load)?;
        let digest = weights_digest(&files);
        Opened::files(&[model], &digest, &purpose)?.load(load).map_err(identity::<LoadError>)
    })
    .unwrap();
    let mut phase = worker.phase();
    let ready = phase.wait_for(|phase| *phase != Phase::Loading).await.unwrap().clone();
    assert_eq!(ready, Phase::Ready);
    // Together: what each says must not depend on the others.
    let answers = QUESTIONS.iter().enumerate().map(|(choice, &(kind, question, max_tokens))| {
        let request = GenerateRequest {
            id: Some(AttemptId { stream: "pins".into(), choice: choice as u32, attempt: 0 }),
            prompt: Some(kind.prompt(question)),
            sampling: Some(Sampling { temperature: Some(0.0), ..Default::default() }),
            max_tokens,
            model: "tiny".into(),
            ..Default::default()
        };
        let worker = worker.clone();
        async move {
            let mut pin =
                Pin { question: question.into(), answer: String::new(), ids: vec![], logprob_bits: vec![] };
            let mut bytes = Vec::new();
            let mut events = worker.generate(request).await;
            while let Some(event) = events.next().await {
                match event.unwrap().event.unwrap() {
                    Event::Frame(frame) => {
                        pin.ids.push(frame.id);
                        pin.logprob_bits.push(frame.logprob.to_bits());
                        bytes.extend(frame.bytes);
                    }
                    Event::Rejected(rejected) => panic!("{rejected:?}"),
                    Event::Started(_) | Event::Prefill(_) | Event::Finished(_) => {}
                }
            }
            pin.answer = String::from_utf8_lossy(&bytes).into_owned();
            pin
        }
    });
    futures::future::join_all(answers).await
}
