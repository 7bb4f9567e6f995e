//! The scripted worker notices what a takeover test must turn red for.

use std::process::Command;

use tandem_worker_api::finished::Reason;
use tandem_worker_api::{GenerateRequest, LogitBias, PrefixDigest, Resume, Sampling, WorkerExit};

use crate::support::{Cluster, Replica, attempt, exit, generate, read, request};

async fn start(cluster: &Cluster, name: &str, arguments: &[&str]) -> Replica {
    let (spec, endpoint_file) = cluster.spec(name);
    let program = Command::new(env!("CARGO_BIN_EXE_scripted-worker"));
    let mut child = cluster.spawn_program(program, name, &spec, arguments);
    let mut log = child.stderr.take().unwrap();
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    Replica::announced(child, name, &endpoint_file).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_equal_worker_with_all_its_rows_goes_on_equally() {
    let cluster = Cluster::new();
    let whole = start(&cluster, "w-1", &["--token-ms", "1", "--prefill-tokens-per-s", "20000"]).await;
    let whole = generate(&mut cluster.gateway(&whole).await, request("a", "hello", 40)).await;
    assert_eq!(whole.frames.len(), 40);
    let ids = whole.ids()[..20].to_vec();
    let digest = PrefixDigest::of_prompt(&b"hello".map(u32::from)).then_all(&ids).to_bytes();
    let resumed = GenerateRequest {
        id: Some(attempt("a", 1)),
        resume: Some(Resume { ids, digest }),
        ..request("a", "hello", 40)
    };
    for (name, arguments, equal) in [
        ("w-2", &[][..], true),
        ("w-3", &["--divergence", "1"], false),
        ("w-4", &["--zeroed-row", "0"], false),
        ("w-5", &["--zeroed-row", "23"], false),
    ] {
        let other = start(&cluster, name, arguments).await;
        let rest = generate(&mut cluster.gateway(&other).await, resumed.clone()).await;
        assert_eq!(rest.ids() == whole.ids()[20..], equal, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_ends_every_stream_and_the_process_with_its_own_code() {
    let cluster = Cluster::new();
    // 64 is `@`.
    let mut replica = start(&cluster, "w-1", &["--crash", "64", "--token-ms", "10"]).await;
    let mut client = cluster.gateway(&replica).await;
    let mut healthy = request("a", "hello", 400);
    healthy.sampling =
        Some(Sampling { logit_bias: vec![LogitBias { id: 64, bias: -100.0 }], ..Default::default() });
    let mut healthy = client.generate(healthy).await.unwrap().into_inner();
    read(&mut healthy, 2).await;
    let crashed = generate(&mut client, request("b", "hello@", 10)).await;
    for said in [crashed, read(&mut healthy, usize::MAX).await] {
        let finished = said.finished.unwrap();
        assert_eq!(finished.reason(), Reason::Failed);
        assert!(finished.message.contains("panicked"), "{}", finished.message);
    }
    assert_eq!(exit(&mut replica.child).await.code(), Some(WorkerExit::Crashed.code().into()));
}
