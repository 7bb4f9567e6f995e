//! Keys as clients meet them: a gateway's process with an operator that says whom to let in.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the support is shared by test files that each use a part of it"
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::operator::Operator;
use support::worker::{Pause, Script, Worker};
use support::{authority, soon, table};
use tandem_control_api::{ApiKey, RouteTable};
use tandem_gateway::{
    Access, Fleet, Gateway, HealthBounds, KeyGate, Operator as Link, Policy, RoutesFile, follow_routes,
};
use tandem_openai::{Bounds, Limits, router, serve};
use tandem_pki::{HOST_LIFETIME, Identity};
use tokio::net::TcpListener;

/// A gateway that wants keys, in this process, behind an operator that is one's own.
struct Site {
    url: String,
    operator: Operator,
    access: Arc<Access>,
    link: Link,
    fleet: Arc<Fleet>,
    _data: tempfile::TempDir,
    _workers: Vec<Worker>,
}

impl Site {
    async fn start(keys: Vec<ApiKey>) -> Self {
        let authority = Arc::new(authority());
        let workers = vec![Worker::start(&authority, "a", Script::pausing(Pause::Before(1_000)))];
        let operator = Operator::start(&authority, RouteTable { keys, ..table(&workers) });
        let edge = Identity::gateway("edge").unwrap();
        let credentials = authority.credentials(&edge, &[], SystemTime::now(), HOST_LIFETIME).unwrap();
        let credentials = Arc::new(tokio::sync::watch::Sender::new(credentials));
        let data = tempfile::tempdir().unwrap();
        let link = Link {
            urls: vec![operator.url()],
            credentials: credentials.clone(),
            identity: data.path().join("identity"),
            advertise: String::new(),
            issuer: Arc::default(),
        };
        let fleet = Fleet::new(credentials.subscribe(), HealthBounds::default());
        let access = Access::new(false);
        let file = RoutesFile::new(data.path());
        tokio::spawn(follow_routes(link.clone(), fleet.clone(), access.clone(), file));
        soon(fleet.serving(1)).await;
        let gateway = Arc::new(Gateway::new(fleet.clone(), Policy::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let gate = Arc::new(KeyGate(access.clone()));
        tokio::spawn(serve(
            listener,
            router(gateway, gate, Bounds::default()),
            Limits::default(),
            std::future::pending::<()>(),
        ));
        Self { url, operator, access, link, fleet, _data: data, _workers: workers }
    }

    async fn ask(&self, key: Option<&str>, model: &str, tokens: u32) -> (u16, Option<u64>, Value) {
        let body = json!({
            "model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": "hi"}],
        });
        let mut request = reqwest::Client::new().post(format!("{}/v1/chat/completions", self.url));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let answer = soon(request.body(body.to_string()).send()).await.unwrap();
        let status = answer.status().as_u16();
        let after = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
        (status, after, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    }

    async fn models(&self, key: &str) -> Vec<String> {
        let request = reqwest::Client::new().get(format!("{}/v1/models", self.url)).bearer_auth(key);
        let bytes = soon(request.send()).await.unwrap().bytes().await.unwrap();
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        let data = answer["data"].as_array().unwrap();
        data.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn key(text: &tandem_pki::ApiKey, namespace: &str) -> ApiKey {
    ApiKey {
        namespace: namespace.to_owned(),
        name: "ci".to_owned(),
        sha256: text.digest().iter().map(|byte| format!("{byte:02x}")).collect(),
        ..ApiKey::default()
    }
}

#[tokio::test]
async fn a_key_opens_its_own_namespace_and_what_it_uses_is_counted_once() {
    let (ours, others, narrow) =
        (tandem_pki::ApiKey::generate(), tandem_pki::ApiKey::generate(), tandem_pki::ApiKey::generate());
    let narrow_key =
        ApiKey { name: "narrow".to_owned(), models: vec!["kimi".to_owned()], ..key(&narrow, "llm") };
    let site = Site::start(vec![key(&ours, "llm"), key(&others, "prod"), narrow_key]).await;
    let (ours, others, narrow) = (ours.to_string(), others.to_string(), narrow.to_string());

    for (key, part) in [(None, "wants an API key"), (Some("sk-x"), "not known"), (Some("tdm-0"), "not known")]
    {
        let (status, _, answer) = site.ask(key, "tiny", 4).await;
        assert_eq!((status, answer["error"]["code"].as_str()), (401, Some("invalid_api_key")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
    assert_eq!(site.models(&ours).await, ["tiny", "llm/tiny"]);
    assert!(site.models(&others).await.is_empty() && site.models(&narrow).await.is_empty());
    assert_eq!(site.ask(Some(&others), "llm/tiny", 4).await.0, 404);
    assert_eq!(site.ask(Some(&narrow), "tiny", 4).await.0, 404);
    for model in ["tiny", "llm/tiny"] {
        let (status, _, answer) = site.ask(Some(&ours), model, 4).await;
        assert_eq!((status, answer["model"].as_str()), (200, Some(model)), "{answer}");
    }

    site.access.report(&site.link).await;
    site.access.report(&site.link).await;
    let reports = site.operator.reports.borrow().clone();
    assert_eq!(reports.len(), 1, "nothing was used since");
    let used = &reports[0].used[0];
    assert_eq!(reports[0].used.len(), 1);
    assert_eq!((used.namespace.as_str(), used.name.as_str(), used.requests), ("llm", "ci", 2));
    assert_eq!((used.prompt_tokens, used.completion_tokens), (18, 8));
}

#[tokio::test]
async fn limits_say_when_to_come_back_and_a_deleted_key_is_refused_at_once() {
    let (few, short) = (tandem_pki::ApiKey::generate(), tandem_pki::ApiKey::generate());
    let keys = vec![
        ApiKey { requests_per_minute: 2, ..key(&few, "llm") },
        ApiKey { name: "short".to_owned(), tokens_per_minute: 10, ..key(&short, "llm") },
    ];
    let site = Site::start(keys).await;
    for (key, model) in [(&few, "tiny"), (&few, "tiny"), (&short, "tiny")] {
        assert_eq!(site.ask(Some(&key.to_string()), model, 4).await.0, 200);
    }
    for (key, part) in [(&few, "2 requests"), (&short, "10 tokens")] {
        let (status, after, answer) = site.ask(Some(&key.to_string()), "tiny", 4).await;
        assert_eq!(
            (status, answer["error"]["code"].as_str()),
            (429, Some("rate_limit_exceeded")),
            "{answer}"
        );
        assert!(after.is_some_and(|after| (1..=90).contains(&after)), "{after:?}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }

    let mut table = site.operator.tables.borrow().clone();
    table.version += 1;
    table.keys.clear();
    site.operator.tables.send_replace(table);
    let gone = async {
        while site.ask(Some(&few.to_string()), "tiny", 4).await.0 != 401 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(gone).await;
    drop(site.fleet);
}
