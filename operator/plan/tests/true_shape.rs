//! Kimi K2.5 at its true shape, 375 GB without a weight: headed, sized and planned in seconds.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::Instant;

use tandem_crds::{Context, DeviceKind, InferenceDeploymentSpec, InferenceHost, KvCache};
use tandem_gguf::{GgmlType, Header, ShardSet};
use tandem_plan::capacity::{Exactness, Fleet, LimitKind, ModelFacts, OfferKind, Question, Report, capacity};
use tandem_plan::sizing;
use tandem_reference::Reference;
use tandem_reference::true_shape::{UD_Q2_K_XL_BYTES, kimi_k2_5, kimi_shards, ud_q2_k_xl};

/// As many as the publisher's files of this size.
const FILES: usize = 8;

fn headers() -> ShardSet {
    let shards = kimi_shards(FILES);
    assert_eq!(shards.iter().map(|shard| shard.bytes).sum::<u64>(), UD_Q2_K_XL_BYTES);
    let parsed = shards.iter().map(|shard| Header::parse(&shard.header, shard.bytes).unwrap());
    ShardSet::assemble(parsed.collect()).unwrap()
}

fn context(tokens: u32, kv_cache: KvCache) -> Context {
    Context { tokens, pool_tokens: None, kv_cache }
}

#[test]
fn kimi_is_headed_and_sized_in_seconds() {
    let start = Instant::now();
    let headers = headers();
    let headed = start.elapsed();
    assert_eq!(headers.tensors().count(), 1096);
    assert_eq!(headers.metadata().get::<u32>("deepseek2.context_length"), Ok(262_144));

    // By hand: rows of whole blocks, tensor by tensor.
    let by_hand: u64 = kimi_k2_5()
        .shapes()
        .iter()
        .map(|(name, dims)| {
            let ty = ud_q2_k_xl(name, dims);
            let elements: u64 = dims.iter().map(|&dim| dim as u64).product();
            elements / ty.block_len() * ty.block_bytes()
        })
        .sum();
    let start = Instant::now();
    let sizing = sizing::size(&headers, &context(98_304, KvCache::F16)).unwrap();
    println!(
        "{} files headed in {headed:.1?}, sized in {:.1?}: weights {by_hand}, files {UD_Q2_K_XL_BYTES}, headers and filling {}",
        FILES,
        start.elapsed(),
        UD_Q2_K_XL_BYTES - by_hand
    );
    assert_eq!(sizing.weights_bytes, by_hand);
    assert!(UD_Q2_K_XL_BYTES - by_hand < 8 << 20, "all but the headers is tensors");
    assert_eq!(sizing.total_bytes, sizing.weights_bytes + sizing.kv_bytes + sizing.arena_bytes);

    println!("context  cache      bytes        known of it");
    for (tokens, kv_cache, known) in [
        (32_768, KvCache::F16, "2.1"),
        (98_304, KvCache::F16, "6.4"),
        (131_072, KvCache::F16, "8.6"),
        (262_144, KvCache::F16, "17.2"),
        (262_144, KvCache::F32, "34.3"),
    ] {
        let sizing = sizing::size(&headers, &context(tokens, kv_cache)).unwrap();
        // 512 of the latent and 64 of the turned key, in each of 61 layers.
        let per_token = (512 + 64) * 61 * if kv_cache == KvCache::F16 { 2_u64 } else { 4 };
        assert_eq!(sizing.kv_bytes, per_token * u64::from(tokens), "{tokens} {kv_cache:?}");
        let gib = sizing.kv_bytes as f64 / (1_u64 << 30) as f64;
        println!("{tokens:>7}  {kv_cache:?}  {:>12}  {gib:.1} GiB", sizing.kv_bytes);
        assert_eq!(format!("{gib:.1}"), known, "{tokens} {kv_cache:?}");
    }
    assert_eq!((512 + 64) * 61 * 2, 70_272, "what is known of one token in f16");
}

#[test]
fn what_the_kernels_lack_is_sized_and_not_run() {
    let headers = headers();
    let context = context(32_768, KvCache::F16);
    let lacking = sizing::lacking(&headers, &context).unwrap();
    assert_eq!(lacking, ["Q2_K", "Q3_K", "Q5_K"]);
    let refusal = tandem_engine::plan(&headers, &sizing::deployed(&context)).unwrap_err().to_string();
    assert!(refusal.contains("can't be multiplied with"), "a worker still refuses: {refusal}");
    assert!(GgmlType::ALL.iter().any(|ty| ty.name() == lacking[0]));
}

fn host(name: &str, kind: DeviceKind, gib: u64, free_disk: u64) -> InferenceHost {
    let mut host = InferenceHost::new(name, Default::default());
    let bytes = gib << 30;
    let device = serde_json::json!({
        "id": "device", "kind": kind, "name": "Apple M3 Ultra", "memoryBytes": bytes, "availableBytes": bytes,
    });
    let status = serde_json::json!({
        "devices": [device], "disk": {"totalBytes": free_disk, "freeBytes": free_disk},
    });
    host.status = Some(serde_json::from_value(status).unwrap());
    host
}

fn spec(tokens: u32, host_failures: u32) -> InferenceDeploymentSpec {
    let spec = serde_json::json!({
        "model": {"name": "kimi", "source": "hf://unsloth/Kimi-K2.5-GGUF"}, "quant": "UD-Q2_K_XL",
        "context": {"tokens": tokens}, "redundancy": {"hostFailures": host_failures},
    });
    serde_json::from_value(spec).unwrap()
}

fn asked(facts: &ModelFacts, spec: &InferenceDeploymentSpec, hosts: Vec<InferenceHost>) -> Report {
    let question =
        Question { deployment: "llm/kimi", spec, kinds: &[], download_bytes_per_second: 125_000_000 };
    capacity(facts, &question, &[Fleet { name: "fleet".to_owned(), hosts }])
}

fn facts() -> ModelFacts {
    ModelFacts::from_headers("hf://unsloth/Kimi-K2.5-GGUF", "UD-Q2_K_XL", headers(), Vec::new())
}

#[test]
fn each_limit_is_named_with_what_is_missing() {
    const TB: u64 = 1_000_000_000_000;
    let start = Instant::now();
    let facts = facts();
    let limits = |report: &Report| -> Vec<(LimitKind, Option<u64>)> {
        let option = &report.fleets[0].options[0];
        option.limits.iter().map(|limit| (limit.limit, limit.missing_bytes)).collect()
    };
    let lacks = (LimitKind::TypeNotSupported, None);

    let fits = asked(&facts, &spec(98_304, 0), vec![host("a", DeviceKind::Cpu, 496, 4 * TB)]);
    let need = fits.need.unwrap();
    assert_eq!((need.exactness, need.file_bytes), (Exactness::Exact, UD_Q2_K_XL_BYTES));
    assert_eq!(limits(&fits), [lacks]);
    assert!(fits.fleets[0].options[0].fits && !fits.fleets[0].options[0].runs);

    let disk = asked(&facts, &spec(98_304, 0), vec![host("a", DeviceKind::Cpu, 496, TB / 10)]);
    assert_eq!(limits(&disk), [lacks, (LimitKind::Disk, Some(UD_Q2_K_XL_BYTES - TB / 10))]);

    let memory = asked(&facts, &spec(98_304, 0), vec![host("a", DeviceKind::Cpu, 300, 4 * TB)]);
    let room = (300_u64 << 30) / 16 * 15;
    assert_eq!(limits(&memory), [lacks, (LimitKind::DeviceMemory, Some(need.total_bytes - room))]);

    let gpu = asked(&facts, &spec(98_304, 0), vec![host("a", DeviceKind::Metal, 496, 4 * TB)]);
    assert_eq!(limits(&gpu), [lacks, (LimitKind::NoBackEnd, None)]);
    assert_eq!(gpu.fleets[0].options[0].exactness, Exactness::Estimated);

    let long = asked(&facts, &spec(262_145, 0), vec![host("a", DeviceKind::Cpu, 496, 4 * TB)]);
    assert_eq!((long.need, long.limits[0].limit), (None, LimitKind::ContextTooLong));
    assert!(long.limits[0].sentence.contains("262144"), "{:?}", long.limits);
    println!("five reports from headers in {:.1?}", start.elapsed());
}

/// An offer is true: with it, the copy fits, and with one step more it would not.
#[test]
fn what_is_offered_would_fit() {
    let facts = facts();
    let hosts = || vec![host("a", DeviceKind::Cpu, 384, 4_000_000_000_000)];
    let mut wanted = spec(98_304, 0);
    wanted.context.pool_tokens = Some(196_608);
    let option =
        |wanted: &InferenceDeploymentSpec| asked(&facts, wanted, hosts()).fleets[0].options[0].clone();
    let refused = option(&wanted);
    let offer = refused.offers.iter().find(|offer| offer.offer == OfferKind::SmallerPool).unwrap();
    let pool = u32::try_from(offer.number.unwrap()).unwrap();
    wanted.context.pool_tokens = Some(pool);
    assert!(option(&wanted).fits, "{pool} was offered");
    wanted.context.pool_tokens = Some(pool + 1024);
    assert!(!option(&wanted).fits, "{pool} is the most");
    let other = refused.offers.iter().find(|offer| offer.offer == OfferKind::SmallerQuant).unwrap();
    assert_eq!(other.quant.as_deref(), Some("UD-TQ1_0"));
}

#[test]
fn cover_counts_hosts_and_says_how_many_are_missing() {
    let facts = facts();
    let mac = |name| host(name, DeviceKind::Cpu, 496, 4_000_000_000_000);
    let option =
        |spec: &InferenceDeploymentSpec, hosts| asked(&facts, spec, hosts).fleets[0].options[0].clone();
    let one = option(&spec(8192, 1), vec![mac("a")]);
    assert_eq!((one.cover.as_str(), one.hosts_missing), ("None", 1));
    assert_eq!(one.offers[0].offer, OfferKind::MoreHosts);
    let two = option(&spec(8192, 1), vec![mac("a"), mac("b")]);
    assert_eq!((two.cover.as_str(), two.hosts_missing, two.hosts_that_fit), ("Hot", 0, 2));
    let mut warm = spec(8192, 1);
    warm.redundancy.standby = tandem_crds::Standby::Warm;
    let warm = option(&warm, vec![mac("a"), mac("b")]);
    assert_eq!(warm.cover, format!("Warm ~{} s", warm.ready.unwrap().load_seconds));
}
