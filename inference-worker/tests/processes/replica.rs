//! Worker processes with the real engine, as agents start them and gateways dial them.

use std::io::Read;

use crate::support::{Cluster, PATIENCE, Replica, attempt, exit, generate, read, request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tandem_pki::Identity;
use tandem_worker_api::{
    AttachRequest, CancelRequest, ChatPrompt, FileStamp, Frame, GenerateRequest, HealthRequest, PrefixDigest,
    Resume, Sampling, Sha256Hex, WorkerExit, finished::Reason, generate_event::Event,
    generate_request::Prompt, health_report::State, rejected::Code,
};
use tonic::Code as Grpc;

const PROMPT: &str = "Count on from forty-two:";

fn resumed(base: &GenerateRequest, number: u32, ids: &[u32]) -> GenerateRequest {
    let prompt: Vec<u32> = byte_ids(PROMPT);
    let digest = PrefixDigest::of_prompt(&prompt).then_all(ids).to_bytes();
    GenerateRequest {
        id: Some(attempt("a", number)),
        resume: Some(Resume { ids: ids.to_vec(), digest }),
        ..base.clone()
    }
}

/// The ids of visible ASCII in the model's vocabulary, in which `!` is the first byte, and a space is the 33rd of those
/// that can't be shown.
fn byte_ids(text: &str) -> Vec<u32> {
    let hidden_before_space = 32;
    let visible = 94 + 12 + 82;
    text.bytes()
        .map(|byte| match byte {
            b' ' => visible + hidden_before_space,
            byte => u32::from(byte - b'!'),
        })
        .collect()
}

/// What must be equal, whoever speaks.
fn plain(frames: &[Frame]) -> Vec<Frame> {
    frames.iter().map(|frame| Frame { attempt: None, ..frame.clone() }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_continues_a_killed_ones_stream_bit_for_bit() {
    let cluster = Cluster::new();
    let (mut first, second) = (cluster.replica("w-1").await, cluster.replica("w-2").await);
    let mut base = request("a", PROMPT, 60);
    base.sampling = Some(Sampling {
        temperature: Some(1.0),
        top_p: Some(0.97),
        repetition_penalty: Some(1.1),
        frequency_penalty: Some(0.2),
        ..Default::default()
    });
    let mut survivor = cluster.gateway(&second).await;
    let whole =
        generate(&mut survivor, GenerateRequest { id: Some(attempt("whole", 0)), ..base.clone() }).await;
    let started = whole.started.as_ref().unwrap();
    assert_eq!(started.prompt_digest, PrefixDigest::of_prompt(&byte_ids(PROMPT)).to_bytes());
    assert_eq!(whole.frames.len(), 60);

    let mut stream = cluster.gateway(&first).await.generate(base.clone()).await.unwrap().into_inner();
    let heard = read(&mut stream, 10).await;
    assert_eq!(heard.started.as_ref().unwrap().numerics_id, started.numerics_id);
    first.child.kill().unwrap();
    first.child.wait().unwrap();

    for (number, index) in [(1, heard.frames.len()), (2, 0), (3, 1), (4, 33), (5, 59), (6, 60)] {
        let ids = &whole.ids()[..index];
        let rest = generate(&mut survivor, resumed(&base, number, ids)).await;
        assert_eq!(plain(&rest.frames), plain(&whole.frames[index..]), "resumed at {index}");
        assert_eq!(rest.finished.unwrap().tokens, 60);
    }
    assert_eq!(plain(&heard.frames), plain(&whole.frames[..10]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_cancel_and_roles() {
    let cluster = Cluster::new();
    let replica = cluster.replica("w-1").await;
    let whole = generate(&mut cluster.gateway(&replica).await, request("whole", PROMPT, 100)).await;

    let mut stream =
        cluster.gateway(&replica).await.generate(request("a", PROMPT, 100)).await.unwrap().into_inner();
    let heard = read(&mut stream, 5).await;
    drop(stream);
    let mut client = cluster.gateway(&replica).await;
    let again = AttachRequest { id: Some(attempt("a", 0)), from_index: 5 };
    let mut stream = client.attach(again).await.unwrap().into_inner();
    let rest = read(&mut stream, usize::MAX).await;
    assert_eq!([heard.ids(), rest.ids()].concat(), whole.ids());

    let mut stream = client.generate(request("b", PROMPT, 0)).await.unwrap().into_inner();
    client.cancel(CancelRequest { id: Some(attempt("b", 0)) }).await.unwrap();
    let finished = read(&mut stream, usize::MAX).await.finished.unwrap();
    assert!(matches!(finished.reason(), Reason::Cancelled | Reason::Context));

    let mut host = cluster.dial(&replica, &Identity::host("mac-a").unwrap()).await;
    assert_eq!(host.generate(request("c", PROMPT, 1)).await.unwrap_err().code(), Grpc::PermissionDenied);

    let mut stream = client.generate(request("d", PROMPT, 600)).await.unwrap().into_inner();
    let Some(Event::Rejected(rejected)) = stream.message().await.unwrap().unwrap().event else {
        panic!("600 tokens have room in a context of 512");
    };
    assert_eq!(rejected.code(), Code::ContextLengthExceeded);
    assert!(rejected.message.contains("max_tokens is 600"), "{}", rejected.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_and_the_end_of_stdin_drain_and_exit_0() {
    let cluster = Cluster::new();
    let mut by_signal = cluster.replica("w-1").await;
    let said = generate(&mut cluster.gateway(&by_signal).await, request("a", PROMPT, 5)).await;
    assert_eq!(said.frames.len(), 5);
    kill(Pid::from_raw(by_signal.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(exit(&mut by_signal.child).await.code(), Some(0));

    let mut by_stdin = cluster.replica("w-2").await;
    let mut stream =
        cluster.gateway(&by_stdin).await.generate(request("b", PROMPT, 0)).await.unwrap().into_inner();
    read(&mut stream, 1).await;
    drop(by_stdin.child.stdin.take());
    let finished = read(&mut stream, usize::MAX).await.finished.unwrap();
    assert!(matches!(finished.reason(), Reason::Drained | Reason::Context), "{finished:?}");
    assert_eq!(exit(&mut by_stdin.child).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_specs_and_bad_weights_end_with_their_own_codes() {
    let cluster = Cluster::new();
    let (good, _) = cluster.spec("w-1");
    let with = |path: &str, value: serde_json::Value| {
        let mut spec = good.clone();
        *spec.pointer_mut(path).unwrap() = value;
        spec
    };
    let poem = cluster.folder.path().join("poem.gguf");
    std::fs::write(&poem, "Two roads diverged in a yellow wood").unwrap();
    let poem_digest = {
        use sha2::{Digest, Sha256};
        tandem_worker_api::Sha256Hex::from(<[u8; 32]>::from(Sha256::digest(std::fs::read(&poem).unwrap())))
    };
    // Longer than what the model was made for.
    let mut too_long = with("/context_tokens", 1_000_000.into());
    too_long["pool_tokens"] = 1_000_000.into();
    let mut unknown = good.clone();
    unknown["shard"] = 1.into();
    for (spec, code, words) in [
        (unknown, WorkerExit::BadSpec, "unknown field `shard`"),
        (with("/pool_tokens", 10.into()), WorkerExit::BadSpec, "raise the pool"),
        (with("/files/0/sha256", poem_digest.to_string().into()), WorkerExit::BadWeights, "has sha256"),
        (with("/files/0/path", "/nowhere/x.gguf".into()), WorkerExit::BadWeights, "/nowhere/x.gguf"),
        (
            with("/files/0", serde_json::json!({"path": poem, "sha256": poem_digest})),
            WorkerExit::BadWeights,
            "not a model",
        ),
        (with("/credentials_dir", "/nowhere".into()), WorkerExit::Failed, "credentials"),
        (too_long, WorkerExit::BadSpec, "context_tokens"),
    ] {
        let mut child = cluster.spawn("w-1", &spec, &[]);
        let mut log = child.stderr.take().unwrap();
        let status = exit(&mut child).await;
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        assert_eq!(status.code(), Some(code.code().into()), "{text}");
        assert!(text.contains(words), "`{words}` is not in: {text}");
    }
}

/// A copy that has computed nothing yet pays for its first token with page faults: whoever asks first would wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_ready_only_after_a_token_of_its_own() {
    let cluster = Cluster::new();
    let replica = cluster.replica("w-1").await;
    let mut client = cluster.dial(&replica, &Identity::gateway("edge").unwrap()).await;
    let mut health = client.health(HealthRequest { interval_ms: 10 }).await.unwrap().into_inner();
    let ready = async {
        loop {
            let report = health.message().await.unwrap().unwrap();
            match report.state() {
                State::Ready => return report,
                State::Loading => {}
                other => panic!("{other:?}: {}", report.message),
            }
        }
    };
    let report = tokio::time::timeout(PATIENCE, ready).await.expect("the worker does not get ready");
    assert!(report.ticks > 0, "it was asked for nothing, and no layer was computed before it said so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_hashed_unless_they_are_untouched_since_they_were() {
    let cluster = Cluster::new();
    let (mut spec, endpoint_file) = cluster.spec("w-1");
    // Only who does not look can believe it.
    spec["files"][0]["sha256"] = Sha256Hex::from([7; 32]).to_string().into();
    let stamp = FileStamp::read(&cluster.model).unwrap();
    spec["files"][0]["verified"] = serde_json::to_value(stamp).unwrap();
    let replica = cluster.replica_of("w-1", &spec, &endpoint_file).await;
    cluster.gateway(&replica).await;

    let earlier = FileStamp { modified: stamp.modified - 1, ..stamp };
    spec["files"][0]["verified"] = serde_json::to_value(earlier).unwrap();
    let mut child = cluster.spawn("w-1", &spec, &[]);
    assert_eq!(exit(&mut child).await.code(), Some(WorkerExit::BadWeights.code().into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_are_not_logged() {
    let cluster = Cluster::new();
    let (spec, endpoint_file) = cluster.spec("w-1");
    let mut child = cluster.spawn("w-1", &spec, &["--exit-with-stdin", "--log-format", "json"]);
    let mut log = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).map(|_| text)
    });
    let mut replica = Replica::announced(child, "w-1", &endpoint_file).await;
    let mut client = cluster.gateway(&replica).await;
    generate(&mut client, request("a", "my secret is plum", 5)).await;
    let mut bad = request("b", "my secret is plum", 5);
    bad.max_tokens = 5000;
    client.generate(bad).await.unwrap().into_inner().message().await.unwrap();
    drop(replica.child.stdin.take());
    exit(&mut replica.child).await;
    let text = reader.join().unwrap().unwrap();
    assert!(text.contains("listening"), "{text}");
    assert!(!text.contains("plum"), "{text}");
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

/// The pool has room for one longest sequence, so that some of these wait, and some yield in mid-stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_says_what_each_says_alone() {
    let cluster = Cluster::new();
    let (mut spec, endpoint_file) = cluster.spec("crowded");
    spec["pool_tokens"] = 512.into();
    let (crowded, roomy) =
        (cluster.replica_of("crowded", &spec, &endpoint_file).await, cluster.replica("w-2").await);
    let (client, mut alone) = (cluster.gateway(&crowded).await, cluster.gateway(&roomy).await);
    let of = |number: u64| GenerateRequest {
        seed: number,
        ..request(&format!("s-{number}"), &PROMPT[number as usize % 20..], 60 + 30 * (number as u32 % 5))
    };
    let together = futures::future::join_all((0..12).map(|number| {
        let mut client = client.clone();
        async move { generate(&mut client, of(number)).await }
    }));
    for (number, said) in together.await.into_iter().enumerate() {
        let expected = generate(&mut alone, of(number as u64)).await;
        assert_eq!(plain(&said.frames), plain(&expected.frames), "stream {number}");
    }
    let report = client
        .clone()
        .health(HealthRequest::default())
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(report.kv_pages_free, report.kv_pages_total, "pages leaked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poisonous_conversations_are_refused_with_a_sentence() {
    let cluster = Cluster::new();
    let replica = cluster.replica("w-1").await;
    let mut client = cluster.gateway(&replica).await;
    let deep = format!("[{}{}]", "[".repeat(10_000), "]".repeat(10_000));
    let image = r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]"#;
    let poisons = [
        ("{}", "", "", "messages"),
        ("[1]", "", "", "messages"),
        ("not json", "", "", "messages"),
        (deep.as_str(), "", "", "messages"),
        (image, "", "", "messages"),
        (r#"[{"role": "pirate", "content": "ahoy"}]"#, "", "", "messages"),
        (r#"[{"role": "user", "content": "x"}]"#, r#"[{"type": "function"}]"#, "", "tools"),
        (r#"[{"role": "user", "content": "x"}]"#, "", r#"{"messages": 1}"#, "chat_template_kwargs"),
        (r#"[{"role": "user", "content": "x"}]"#, "", "[]", "chat_template_kwargs"),
    ];
    for (number, (messages, tools, kwargs, param)) in poisons.into_iter().enumerate() {
        let chat = ChatPrompt {
            messages_json: messages.into(),
            tools_json: tools.into(),
            template_kwargs_json: kwargs.into(),
        };
        let asked = GenerateRequest {
            id: Some(attempt("a", number as u32)),
            prompt: Some(Prompt::Chat(chat)),
            ..request("a", "", 5)
        };
        let event =
            client.generate(asked).await.unwrap().into_inner().message().await.unwrap().unwrap().event;
        let Some(Event::Rejected(rejected)) = event else { panic!("poison {number} was taken") };
        assert_eq!(rejected.code(), Code::InvalidRequest);
        assert_eq!(rejected.param, param, "{}", rejected.message);
    }
    assert_eq!(generate(&mut client, request("b", PROMPT, 5)).await.frames.len(), 5, "it still serves");
}
