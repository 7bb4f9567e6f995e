//! A Kimi of true shape behind a hub: an operator sizes its 375 GB from headers, to the byte, and refuses by name what no worker
//! of this release computes.
#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::time::Instant;

use serde_json::{Value, json};
use tandem_crds::{Context, KvCache};
use tandem_gguf::{Header, ShardSet};
use tandem_hub::{Content, Door, Hub, Options};
use tandem_operator::SourceSettings;
use tandem_plan::sizing;
use tandem_reference::true_shape::{UD_Q2_K_XL_BYTES, kimi_shards, write_sparse};
use world::{World, condition, impatient, workloads};

const REPOSITORY: &str = "unsloth/Kimi-K2.5-GGUF";

#[tokio::test]
async fn kimi_is_sized_to_the_byte_and_refused_for_its_types() {
    let folder = tempfile::tempdir().unwrap();
    let shards = kimi_shards(8);
    let paths = write_sparse(folder.path(), &shards).unwrap();
    let hub = Hub::start(Options::default()).await.unwrap();
    let files = shards.iter().zip(&paths).enumerate().map(|(index, (shard, path))| {
        let content = Content::declared(path, &format!("{index:064x}")).unwrap();
        (format!("UD-Q2_K_XL/{}", shard.name), content)
    });
    hub.publish(REPOSITORY, files);
    let sources = SourceSettings {
        mirrors: vec![format!("hf://={}", hub.url(Door::Hub))],
        ..SourceSettings::default()
    };
    let world = World::start_reading(impatient(), sources).await;
    let mut mac = world.machine("mac-a", 496 << 30).await;

    let start = Instant::now();
    let context = Context { tokens: 98_304, pool_tokens: Some(196_608), kv_cache: KvCache::F16 };
    let manifest = json!({
        "apiVersion": "inference.tandem.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "kimi", "namespace": "llm"},
        "spec": {
            "model": {"name": "kimi-k2.5", "source": format!("hf://{REPOSITORY}@main")},
            "quant": "UD-Q2_K_XL",
            "context": context,
        },
    });
    world.apply(manifest).await.unwrap();
    let stalled = |o: &Value| condition(o, "Stalled")["status"] == "True";
    let object = world.until("InferenceDeployment", "kimi", "a word on its types", stalled).await;
    println!("headed, sized and refused in {:.1?}; the hub sent {} bytes", start.elapsed(), hub.bytes_sent());

    let stalled = condition(&object, "Stalled");
    assert_eq!(stalled["reason"], "TypeNotSupported");
    let message = stalled["message"].as_str().unwrap();
    assert!(message.contains("this release's kernels lack Q2_K, Q3_K, Q5_K"), "{message}");
    let parsed = shards.iter().map(|shard| Header::parse(&shard.header, shard.bytes).unwrap());
    let headers = ShardSet::assemble(parsed.collect()).unwrap();
    let sizing = sizing::size(&headers, &context).unwrap();
    assert_eq!(object["status"]["sizing"], serde_json::to_value(sizing).unwrap());
    assert_eq!(sizing.kv_bytes, 196_608 * 70_272);
    let bytes = |file: &Value| file["bytes"].as_u64().unwrap();
    let listed = object["status"]["model"]["files"].as_array().unwrap();
    assert_eq!(listed.iter().map(bytes).sum::<u64>(), UD_Q2_K_XL_BYTES);
    assert!(hub.bytes_sent() < 32 << 20, "headers are all that was read");
    let spec = mac.spec("nothing to run", |_| true).await;
    assert!(workloads(&spec).is_empty());
}
