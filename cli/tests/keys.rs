//! API keys, as people make, list and delete them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use serde_json::Value;
use support::Site;
/// What the fake operator makes.
const KEY: &str = "tdm-0123456789";

#[tokio::test]
async fn a_key_is_printed_alone_once_and_listed_without_its_text() {
    let site = Site::start().await;
    site.tandem(&["keys", "list"])
        .await
        .refused(0, &["no API key in namespace default", "tandem keys create"]);
    let limits =
        ["--model", "kimi", "--requests-per-minute", "60", "--tokens-per-minute", "9000", "--expires", "90d"];
    let made = site.tandem(&[&["keys", "create", "ci", "-n", "llm"][..], &limits].concat()).await.ok();
    assert_eq!(made, format!("{KEY}\n"), "nothing else, so that a shell can take it");

    let table = site.tandem(&["keys", "list", "-n", "llm"]).await.ok();
    assert!(table.starts_with("NAME  MODELS  REQUESTS/MIN  TOKENS/MIN") && table.contains("kimi"), "{table}");
    let json = site.tandem(&["keys", "list", "-A", "-o", "json"]).await.ok();
    let list: Value = serde_json::from_str(&json).unwrap();
    let key = &list["items"][0];
    assert_eq!((key["requestsPerMinute"].as_u64(), key["tokensPerMinute"].as_u64()), (Some(60), Some(9000)));
    assert!(key["expiresAt"].is_string() && key["lastUsedAt"].is_null(), "{key}");
    assert!(!format!("{table}{json}").contains(KEY));

    assert_eq!(site.tandem(&["keys", "delete", "ci", "-n", "llm"]).await.ok(), "key/ci deleted\n");
    site.tandem(&["keys", "delete", "ci", "-n", "llm"]).await.refused(1, &["there is no key llm/ci"]);
    for (arguments, words) in [
        (["keys", "create", "ci", "--expires", "90"], "12h or 90d"),
        (["keys", "create", "ci", "--requests-per-minute", "0"], "0 is not in"),
    ] {
        site.tandem(&arguments).await.refused(2, &[words]);
    }
}
