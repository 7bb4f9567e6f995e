//! Figures as Prometheus reads them, while workers stall and die.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the support is shared by test files that each use a part of it"
)]

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use support::client::{ask, body};
use support::worker::{Pause, Script};
use support::{Site, soon};
use tandem_gateway::{Access, serve_metrics};

/// What a scrape says, by series.
async fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let answer = soon(reqwest::get(format!("http://{address}/metrics"))).await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.text().await.unwrap();
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

const OF: &str = r#"namespace="llm",name="tiny""#;

#[tokio::test]
async fn a_stream_is_counted_while_it_waits_runs_is_taken_over_and_ends() {
    let scripts = [Script::pausing(Pause::BeforeStarted), Script::default()];
    let mut site = Site::start(scripts).await;
    let address = serve_metrics("127.0.0.1:0".parse().unwrap(), site.gateway.clone(), Access::new(true));
    let address = address.await.unwrap();
    let at_rest = scrape(address).await;
    for name in ["streams_waiting", "streams_running", "attempts_total"] {
        let series = format!("tandem_gateway_{name}{{{OF}}}");
        assert_eq!(at_rest.get(&series), Some(&0.0), "{series} of {at_rest:?}");
    }
    assert_eq!(at_rest[&format!("tandem_gateway_workers{{{OF},standing=\"well\"}}")], 2.0);
    assert_eq!(at_rest["tandem_gateway_operator_up"], 0.0);

    let asked = ask(&site.url, body(20));
    let reading = tokio::spawn(asked);
    site.workers[0].reached(1).await;
    let waiting = scrape(address).await;
    assert_eq!(waiting[&format!("tandem_gateway_streams_waiting{{{OF}}}")], 1.0);
    assert_eq!(waiting[&format!("tandem_gateway_streams_running{{{OF}}}")], 0.0);

    // Its worker dies before the first token: another attempt, and no takeover in mid-sentence.
    site.workers[0].kill();
    soon(reading).await.unwrap().end().await.assert_undisturbed(20);
    let ended = async {
        loop {
            let seen = scrape(address).await;
            if seen.get(&format!("tandem_gateway_streams_total{{{OF},result=\"length\"}}")) == Some(&1.0) {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = soon(ended).await;
    let of = |name: &str| seen[&format!("tandem_gateway_{name}{{{OF}}}")];
    assert_eq!((of("streams_waiting"), of("streams_running")), (0.0, 0.0));
    assert_eq!(of("attempts_total"), 2.0);
    assert_eq!(of("time_to_first_token_seconds_count"), 1.0);
    assert_eq!(of("inter_token_seconds_count"), 19.0);
    assert_eq!(seen[&format!("tandem_gateway_takeovers_total{{{OF},exact=\"true\"}}")], 0.0);
    assert_eq!(seen[&format!("tandem_gateway_tokens_total{{{OF},kind=\"prompt\"}}")], 9.0);
    assert_eq!(seen[&format!("tandem_gateway_tokens_total{{{OF},kind=\"completion\"}}")], 20.0);
    site.finish().await;
}

#[tokio::test]
async fn a_takeover_and_a_client_that_leaves_are_told_apart() {
    let mut site = Site::start([Script::pausing(Pause::Before(5)), Script::pausing(Pause::Before(10))]).await;
    let address = serve_metrics("127.0.0.1:0".parse().unwrap(), site.gateway.clone(), Access::new(true));
    let address = address.await.unwrap();
    let mut reading = soon(ask(&site.url, body(20))).await;
    reading.tokens(5).await;
    site.workers[0].kill();
    reading.tokens(10).await;
    let seen = scrape(address).await;
    assert_eq!(seen[&format!("tandem_gateway_takeovers_total{{{OF},exact=\"true\"}}")], 1.0);
    assert_eq!(seen[&format!("tandem_gateway_recovery_seconds_count{{{OF}}}")], 1.0);
    assert_eq!(seen[&format!("tandem_gateway_streams_running{{{OF}}}")], 1.0);
    drop(reading);
    let left = async {
        loop {
            let seen = scrape(address).await;
            if seen.get(&format!("tandem_gateway_streams_total{{{OF},result=\"client_gone\"}}")) == Some(&1.0)
            {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = soon(left).await;
    assert_eq!(seen[&format!("tandem_gateway_streams_running{{{OF}}}")], 0.0);
    site.finish().await;
}

#[tokio::test]
async fn probes_tell_a_gateway_without_routes_from_one_that_serves() {
    let site = Site::start([Script::default()]).await;
    let address = serve_metrics("127.0.0.1:0".parse().unwrap(), site.gateway.clone(), Access::new(true));
    let address = address.await.unwrap();
    for path in ["livez", "readyz"] {
        assert_eq!(soon(reqwest::get(format!("http://{address}/{path}"))).await.unwrap().status(), 200);
    }
    site.finish().await;
    let credentials = support::authority().credentials(
        &tandem_pki::Identity::gateway("edge").unwrap(),
        &[],
        std::time::SystemTime::now(),
        tandem_pki::HOST_LIFETIME,
    );
    let credentials = tokio::sync::watch::Sender::new(credentials.unwrap()).subscribe();
    let fleet = tandem_gateway::Fleet::new(credentials, tandem_gateway::HealthBounds::default());
    let gateway = tandem_gateway::Gateway::new(fleet, tandem_gateway::Policy::default());
    let address = serve_metrics("127.0.0.1:0".parse().unwrap(), gateway.into(), Access::new(true));
    let address = address.await.unwrap();
    for (path, status) in [("livez", 200), ("readyz", 503)] {
        assert_eq!(soon(reqwest::get(format!("http://{address}/{path}"))).await.unwrap().status(), status);
    }
}
