//! Questions about the weights that hosts keep: passed on to their agents, answered line by line, ended when nobody listens.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::collections::HashMap;

use tandem_control_api::models_reply::Said;
use tandem_control_api::models_request::Ask;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    AgentMessage, ModelsImport, ModelsList, ModelsProgress, ModelsPrune, ModelsPull, ModelsReply,
    ModelsRequest, ModelsVerify, SetSecretRequest, StoredFile, agent_message,
};
use tandem_operator::Timing;
use tonic::Code;
use world::{Host, World, impatient, within};

const VALUE: &str = "hf_s3cr3t";

fn asking(ask: Ask, hosts: &[&str]) -> ModelsRequest {
    let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
    ModelsRequest { request: String::new(), hosts, ask: Some(ask) }
}

async fn asked(host: &mut Host) -> ModelsRequest {
    within("the question", async {
        loop {
            if let Some(Down::Models(request)) = host.next().await.unwrap() {
                return request;
            }
        }
    })
    .await
}

async fn ended(host: &mut Host) -> String {
    within("the end of the question", async {
        loop {
            if let Some(Down::EndModels(request)) = host.next().await.unwrap() {
                return request;
            }
        }
    })
    .await
}

async fn reply(host: &Host, request: &str, said: Said, end: bool) {
    let reply = ModelsReply { request: request.into(), host: "somebody-else".into(), said: Some(said), end };
    host.up.send(AgentMessage { message: Some(agent_message::Message::Models(reply)) }).await.unwrap();
}

#[tokio::test]
async fn every_connected_host_is_asked_and_answers_for_itself() {
    let world = World::start().await;
    let list = || asking(Ask::List(ModelsList {}), &[]);
    let status = world.fleet().models(list()).await.unwrap_err();
    assert!(status.message().contains("no host is connected"), "{status}");
    let (mut a, mut b) = (world.host("a").await, world.host("b").await);
    let mut replies = world.fleet().models(list()).await.unwrap().into_inner();
    let (to_a, to_b) = (asked(&mut a).await, asked(&mut b).await);
    assert_eq!(to_a.request, to_b.request);
    assert_eq!((to_a.hosts.len(), to_a.ask), (0, Some(Ask::List(ModelsList {}))));
    let file = StoredFile { sha256: "0".repeat(64), bytes: 7, ..StoredFile::default() };
    reply(&a, &to_a.request, Said::File(file.clone()), true).await;
    let first = within("a reply", replies.message()).await.unwrap().unwrap();
    assert_eq!((first.host.as_str(), first.said), ("a", Some(Said::File(file))));
    // A host that goes away ends its part with a word on why.
    drop(b);
    let last = within("the end of b", replies.message()).await.unwrap().unwrap();
    assert!(last.end && last.host == "b" && matches!(last.said, Some(Said::Error(_))), "{last:?}");
    assert_eq!(within("the end", replies.message()).await.unwrap(), None);
}

#[tokio::test]
async fn a_pull_carries_files_and_secret_and_ends_when_nobody_listens() {
    let world = World::start().await;
    let mut host = world.host("a").await;
    let pull = |secret: &str, quant: &str| {
        let pull = ModelsPull {
            source: world.source(),
            quant: quant.into(),
            secret_name: secret.into(),
            secret_key: if secret.is_empty() { String::new() } else { "token".into() },
            namespace: "llm".into(),
            ..ModelsPull::default()
        };
        asking(Ask::Pull(pull), &["a"])
    };
    for (request, words) in
        [(pull("hub", "F32"), "tandem secret set hub token -n llm"), (pull("", "Q9_K"), "Q9_K")]
    {
        let mut replies = world.fleet().models(request).await.unwrap().into_inner();
        let refused = within("a refusal", replies.message()).await.unwrap().unwrap();
        let Some(Said::Error(sentence)) = &refused.said else { panic!("{refused:?}") };
        println!("{sentence}");
        assert!(refused.end && sentence.contains(words), "{sentence}");
        assert_eq!(within("the end", replies.message()).await.unwrap(), None);
    }
    let values = HashMap::from([("token".to_owned(), VALUE.to_owned())]);
    let secret = SetSecretRequest { namespace: "llm".into(), name: "hub".into(), values };
    world.secrets().set(secret).await.unwrap();
    let mut replies = world.fleet().models(pull("hub", "F32")).await.unwrap().into_inner();
    let request = asked(&mut host).await;
    let Some(Ask::Pull(told)) = request.ask else { panic!("{request:?}") };
    assert_eq!((told.secret.as_str(), told.files.len()), (VALUE, 1));
    assert_eq!((told.files[0].name.as_str(), told.files[0].sha256.len()), ("tiny-F32.gguf", 64));
    assert_eq!(told.source, world.source());
    assert!(told.files[0].bytes > 0);
    let progress = ModelsProgress { what: "tiny-F32.gguf".into(), done: 1, total: 2, bytes_per_second: 1 };
    reply(&host, &request.request, Said::Progress(progress), false).await;
    let moved = within("progress", replies.message()).await.unwrap().unwrap();
    assert!(matches!(moved.said, Some(Said::Progress(_))) && !format!("{moved:?}").contains(VALUE));
    drop(replies);
    assert_eq!(ended(&mut host).await, request.request);
    // What comes late is answered with the same.
    reply(&host, &request.request, Said::Note("still here".into()), false).await;
    assert_eq!(ended(&mut host).await, request.request);
}

#[tokio::test]
async fn hosts_that_pull_the_same_model_are_told_of_each_other() {
    let timing = Timing { silent_after: std::time::Duration::from_secs(60), ..impatient() };
    let world = World::start_with(timing).await;
    let (mut a, mut b) = (world.host("a").await, world.host("b").await);
    let mut status = world::report(1 << 30);
    status["weights"] = serde_json::json!({"port": 7600, "usedBytes": 0, "files": []});
    a.report(&status).await;
    b.report(&status).await;
    let pull = ModelsPull { source: world.source(), quant: "F32".into(), ..ModelsPull::default() };
    let replies = world.fleet().models(asking(Ask::Pull(pull), &["a", "b"])).await.unwrap().into_inner();
    for (host, other) in [(&mut a, "b"), (&mut b, "a")] {
        within("a peer", async {
            loop {
                if let Some(Down::Supply(supply)) = host.next().await.unwrap()
                    && supply.peers.iter().any(|peer| peer.host == other)
                {
                    return;
                }
            }
        })
        .await;
    }
    drop(replies);
}

#[tokio::test]
async fn what_cannot_be_asked_says_why() {
    let world = World::start().await;
    let (_a, b) = (world.host("a").await, world.host("b").await);
    let import = || Ask::Import(ModelsImport { path: "/models".into(), copy: false });
    let prune = |keep_bytes, all| Ask::Prune(ModelsPrune { keep_bytes, all, dry_run: false });
    let many = Ask::Verify(ModelsVerify { sha256: vec!["0".repeat(64); 2000] });
    for (request, code, words) in [
        (asking(import(), &[]), Code::InvalidArgument, "--host"),
        (asking(Ask::List(ModelsList {}), &["c"]), Code::NotFound, "c"),
        (asking(prune(0, false), &[]), Code::InvalidArgument, "how much"),
        (asking(prune(1, true), &[]), Code::InvalidArgument, "how much"),
        (asking(many, &[]), Code::InvalidArgument, "1024"),
        (asking(Ask::Pull(ModelsPull::default()), &[]), Code::InvalidArgument, "source"),
        (ModelsRequest::default(), Code::InvalidArgument, "asks nothing"),
    ] {
        let status = world.fleet().models(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
    drop(b);
    let credentials = world.join(tandem_control_api::Role::Gateway, "edge").await;
    let mut fleet = tandem_control_api::fleet_client::FleetClient::new(world.channel(&credentials));
    let status = fleet.models(asking(Ask::List(ModelsList {}), &[])).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}
