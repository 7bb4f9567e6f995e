//! What the hub sends, counts and holds back, seen by a plain client.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode, header};
use tandem_hub::{Chaos, Content, Count, Door, Fault, Hub, Options};

const NAME: &str = "a-Q8_0.gguf";

fn client() -> Client {
    drop(tokio_rustls::rustls::crypto::ring::default_provider().install_default());
    Client::builder().no_proxy().tls_certs_only([]).build().unwrap()
}

async fn hub(options: Options) -> Hub {
    let hub = Hub::start(options).await.unwrap();
    hub.publish("owner/a", [(NAME, Content::of(vec![5; 1 << 20]))]);
    hub
}

fn url(hub: &Hub) -> String {
    format!("{}owner/a/{NAME}", hub.url(Door::Web))
}

#[tokio::test]
async fn ranges_are_exact_and_counted() {
    let hub = hub(Options::default()).await;
    for (range, expected) in [
        ("bytes=0-9", Some(("bytes 0-9/1048576", 10))),
        ("bytes=1048570-", Some(("bytes 1048570-1048575/1048576", 6))),
        ("bytes=1048570-9999999", Some(("bytes 1048570-1048575/1048576", 6))),
        ("bytes=1048576-", None),
    ] {
        let response = client().get(url(&hub)).header(header::RANGE, range).send().await.unwrap();
        let status = response.status();
        let said = response.headers()[header::CONTENT_RANGE].to_str().unwrap().to_owned();
        let length = response.bytes().await.unwrap().len();
        match expected {
            Some(expected) => {
                assert_eq!(
                    (status, said.as_str(), length),
                    (StatusCode::PARTIAL_CONTENT, expected.0, expected.1)
                );
            }
            None => {
                assert_eq!((status, said.as_str()), (StatusCode::RANGE_NOT_SATISFIABLE, "bytes */1048576"))
            }
        }
    }
    assert_eq!(hub.count(Door::Web, NAME), Count { requests: 4, bytes: 22 });
    assert_eq!(hub.bytes_sent(), 22);
    hub.reset_counts();
    assert_eq!(hub.count(Door::Web, ""), Count::default());
}

#[tokio::test]
async fn a_file_on_disk_is_sent_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
    let path = dir.path().join("x");
    std::fs::write(&path, &bytes).unwrap();
    let content = Content::file(&path).unwrap();
    assert_eq!(content.sha256(), Content::of(bytes.clone()).sha256());
    let hub = hub(Options::default()).await;
    hub.publish("owner/b", [("x", content)]);
    let response = client().get(format!("{}owner/b/x", hub.url(Door::Web))).send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap(), bytes);
    let sums = client().get(format!("{}owner/b/SHA256SUMS", hub.url(Door::Web))).send().await.unwrap();
    assert_eq!(sums.text().await.unwrap(), format!("{}  x\n", Content::of(bytes).sha256()));
}

#[tokio::test]
async fn a_cap_holds_for_all_connections_together() {
    let hub = hub(Options { bytes_per_second: Some(8 << 20), ..Options::default() }).await;
    let began = Instant::now();
    let get = || async { client().get(url(&hub)).send().await.unwrap().bytes().await.unwrap().len() };
    let lengths = futures::join!(get(), get(), get());
    assert_eq!(lengths, (1 << 20, 1 << 20, 1 << 20));
    // Three mebibytes at eight a second. A busy machine makes it longer, nothing makes it shorter.
    assert!(began.elapsed() >= Duration::from_millis(370), "{:?}", began.elapsed());
}

#[tokio::test]
async fn scripts_run_in_order_and_chaos_has_a_seed() {
    let hub = hub(Options::default()).await;
    hub.misbehave(
        Door::Web,
        NAME,
        [Fault::None, Fault::Status(500), Fault::Redirect("/elsewhere".to_owned())],
    );
    let status = || async { client().get(url(&hub)).send().await.unwrap().status().as_u16() };
    assert_eq!([status().await, status().await, status().await, status().await], [200, 500, 404, 200]);
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        hub.chaos(Some(Chaos { seed, percent: 50 }));
        let mut seen = Vec::new();
        for _ in 0..30 {
            // A cut at the first bytes takes the head of the answer with it.
            let sent = client().get(url(&hub)).header(header::RANGE, "bytes=0-99").send().await;
            let Ok(response) = sent else {
                seen.push((0, None));
                continue;
            };
            let status = response.status().as_u16();
            // Endless ones are not waited for.
            let endless = status == 206 && response.content_length().is_none();
            seen.push((status, if endless { None } else { response.bytes().await.ok() }));
        }
        runs.push(seen);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}
