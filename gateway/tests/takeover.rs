//! Streams survive their workers: every fault at every place, over real sockets.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the support is shared by test files that each use a part of it"
)]

mod support;

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use support::client::{MESSAGES, ask, body};
use support::worker::{Pause, Script, continued};
use support::{Site, soon};
use tandem_gateway::Policy;
use tandem_worker_api::rejected;

const TOKENS: usize = 12;

fn pausing(pause: Pause) -> Script {
    Script::pausing(pause)
}

#[tokio::test]
async fn an_undisturbed_stream_is_one_attempt_with_the_deployments_defaults() {
    let site = Site::start([Script::default(), Script::default()]).await;
    let answer = ask(&site.url, body(TOKENS)).await.end().await;
    answer.assert_undisturbed(TOKENS);
    assert_eq!(answer.seams, [] as [serde_json::Value; 0]);
    assert_eq!((site.workers[0].served(), site.workers[1].served()), (1, 0));
    let request = site.workers[0].last_request();
    assert_eq!(request.sampling.unwrap().temperature, Some(0.5));
    assert_eq!(request.model, "tiny");
    site.finish().await;
}

#[tokio::test]
async fn a_worker_killed_at_each_token_loses_and_doubles_nothing() {
    let places = [Pause::BeforeStarted].into_iter().chain((0..TOKENS as u32).map(Pause::Before));
    for place in places {
        let mut site = Site::start([pausing(place), Script::default()]).await;
        let request = tokio::spawn(ask(&site.url, body(TOKENS)));
        soon(site.workers[0].reached(1)).await;
        let answer = if let Pause::Before(index @ 1..) = place {
            let mut reading = request.await.unwrap();
            // What is still in the worker's buffers dies with it.
            reading.tokens(index as usize).await;
            site.workers[0].kill();
            reading.end().await
        } else {
            site.workers[0].kill();
            request.await.unwrap().end().await
        };
        answer.assert_undisturbed(TOKENS);
        match place {
            Pause::Before(index) if index > 0 => {
                assert_eq!(answer.seams.len(), 1, "{place:?}");
                assert_eq!(
                    (&answer.seams[0]["index"], &answer.seams[0]["exact"]),
                    (&json!(index), &json!(true))
                );
            }
            _ => assert_eq!(answer.seams.len(), 0, "nobody had spoken: {place:?}"),
        }
        site.finish().await;
    }
}

#[tokio::test]
async fn a_worker_killed_between_the_last_token_and_its_last_word_needs_nobody() {
    let mut site = Site::start([pausing(Pause::BeforeFinished), Script::default()]).await;
    let answer = ask(&site.url, body(TOKENS)).await.end().await;
    answer.assert_undisturbed(TOKENS);
    site.workers[0].kill();
    assert_eq!(site.workers[1].served(), 0);
    site.finish().await;
}

#[tokio::test]
async fn a_frozen_worker_is_overtaken_and_its_late_words_change_nothing() {
    let site = Site::start([pausing(Pause::Before(5)), pausing(Pause::Before(9))]).await;
    let mut reading = ask(&site.url, body(TOKENS)).await;
    reading.tokens(5).await;
    site.workers[0].freeze();
    reading.tokens(9).await;
    // The zombie speaks while the stream is still open, all the way to its end.
    site.workers[0].release();
    site.workers[0].thaw();
    soon(site.workers[0].idle()).await;
    site.workers[1].release();
    let answer = reading.end().await;
    answer.assert_undisturbed(TOKENS);
    assert_eq!((answer.seams.len(), &answer.seams[0]["index"]), (1, &json!(5)));
    site.finish().await;
}

#[tokio::test]
async fn a_draining_worker_hands_its_streams_over_and_gets_no_new_ones() {
    let site = Site::start([pausing(Pause::Before(5)), Script::default()]).await;
    let mut reading = ask(&site.url, body(TOKENS)).await;
    reading.tokens(5).await;
    site.workers[0].drain();
    let answer = reading.end().await;
    answer.assert_undisturbed(TOKENS);
    assert_eq!(answer.seams.len(), 1);
    ask(&site.url, body(TOKENS)).await.end().await.assert_undisturbed(TOKENS);
    assert_eq!(site.workers[1].served(), 2);
    site.finish().await;
}

#[tokio::test]
async fn a_request_whose_workers_die_at_one_place_ends_with_an_error_and_spares_the_third() {
    let dying = pausing(Pause::Before(5));
    // On a busy machine one that is silent would be suspected, and the third asked beside it.
    let policy = Policy { parallel: 1, ..Policy::default() };
    let mut site = Site::with([dying, dying, Script::default()], policy).await;
    let mut reading = ask(&site.url, body(TOKENS)).await;
    reading.tokens(5).await;
    site.workers[0].kill();
    soon(site.workers[1].reached(1)).await;
    site.workers[1].kill();
    let answer = reading.end().await;
    assert_eq!(answer.error.as_ref().unwrap()["error"]["code"], "workers_died");
    assert!(!answer.done);
    assert_eq!(answer.ids, continued(MESSAGES, 0, 0, Vec::new(), 5), "what was said stays said");
    assert_eq!(
        ask(&site.url, body(TOKENS)).await.status,
        500,
        "a client's retry does not come through either"
    );
    assert_eq!(site.workers[2].served(), 0);
    ask(&site.url, body(TOKENS + 1)).await.end().await.assert_undisturbed(TOKENS + 1);
    site.finish().await;
}

#[tokio::test]
async fn with_nobody_left_the_client_is_told_when_to_come_back() {
    let policy = Policy { replica: Duration::from_millis(300), ..Policy::default() };
    let mut site = Site::with([Script::default()], policy).await;
    site.workers[0].kill();
    let reading = ask(&site.url, body(TOKENS)).await;
    assert_eq!(reading.status, 503);
    let error = reading.end().await.error.unwrap();
    assert_eq!(error["error"]["code"], "unavailable");
    site.finish().await;
}

#[tokio::test]
async fn a_stream_waits_for_a_worker_that_comes_in_time() {
    let policy = Policy { replica: Duration::from_secs(20), ..Policy::default() };
    let mut site = Site::with([pausing(Pause::Before(3)), Script::default()], policy).await;
    // Only the first is known yet.
    site.fleet.apply(tandem_gateway::Table::parse(support::table(&site.workers[..1])));
    let mut reading = ask(&site.url, body(TOKENS)).await;
    reading.tokens(3).await;
    site.workers[0].kill();
    site.fleet.apply(tandem_gateway::Table::parse(support::table(&site.workers[1..])));
    reading.end().await.assert_undisturbed(TOKENS);
    site.finish().await;
}

#[tokio::test]
async fn a_worker_that_left_the_table_is_still_watched_while_a_stream_runs_on_it() {
    let mut site = Site::start([pausing(Pause::Before(3)), Script::default()]).await;
    let mut reading = ask(&site.url, body(TOKENS)).await;
    reading.tokens(3).await;
    site.fleet.apply(tandem_gateway::Table::parse(support::table(&site.workers[1..])));
    ask(&site.url, body(TOKENS)).await.end().await.assert_undisturbed(TOKENS);
    assert_eq!(site.workers[0].served(), 1, "it gets nothing new");
    site.workers[0].freeze();
    reading.end().await.assert_undisturbed(TOKENS);
    site.workers[0].kill();
    site.finish().await;
}

#[tokio::test]
async fn a_standby_of_other_numerics_continues_from_the_same_tokens_and_says_so() {
    let other = Script { numerics_id: "y", salt: 99, ..Script::default() };
    let mut site = Site::start([pausing(Pause::Before(5)), other]).await;
    let mut reading = ask(&site.url, body(TOKENS)).await;
    reading.tokens(5).await;
    site.workers[0].kill();
    let answer = reading.end().await;
    let before = continued(MESSAGES, 0, 0, Vec::new(), 5);
    answer.assert_tokens(&continued(MESSAGES, 0, 99, before, TOKENS));
    assert_eq!((&answer.seams[0]["index"], &answer.seams[0]["exact"]), (&json!(5), &json!(false)));
    site.finish().await;
}

#[tokio::test]
async fn equal_numerics_are_preferred_even_if_busier() {
    let other = Script { numerics_id: "y", salt: 99, ..Script::default() };
    let mut site = Site::start([pausing(Pause::Before(5)), other, Script::default()]).await;
    let mut reading = ask(&site.url, body(TOKENS)).await;
    reading.tokens(5).await;
    site.workers[0].kill();
    let answer = reading.end().await;
    answer.assert_undisturbed(TOKENS);
    assert_eq!(answer.seams[0]["exact"], true);
    site.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_running() {
    for place in [Pause::BeforeStarted, Pause::Before(0), Pause::Before(5)] {
        let site = Site::start([pausing(place), Script::default()]).await;
        let request = tokio::spawn(ask(&site.url, body(TOKENS)));
        soon(site.workers[0].reached(1)).await;
        if place == Pause::Before(5) {
            let mut reading = request.await.unwrap();
            reading.tokens(5).await;
        } else {
            request.abort();
        }
        soon(site.workers[0].idle()).await;
        site.finish().await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_during_a_takeover_leaves_nothing_running() {
    let mut site = Site::start([pausing(Pause::Before(5)), pausing(Pause::Before(5))]).await;
    let mut reading = ask(&site.url, body(TOKENS)).await;
    reading.tokens(5).await;
    site.workers[0].kill();
    soon(site.workers[1].reached(1)).await;
    drop(reading);
    soon(site.workers[1].idle()).await;
    site.finish().await;
}

#[tokio::test]
async fn a_stop_string_across_the_seam_cuts_as_it_would_have() {
    let ids = continued(MESSAGES, 0, 0, Vec::new(), 40);
    let bytes: Vec<u8> = ids.iter().flat_map(|id| support::worker::piece(*id)).copied().collect();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // Three characters from the middle, the first occurrence of which is what cuts.
    let stop: String = text.chars().skip(10).take(3).collect();
    let cut = text.find(&stop).unwrap();
    for index in 1..30u32 {
        let mut site = Site::start([pausing(Pause::Before(index)), Script::default()]).await;
        let mut request = body(40);
        request["stop"] = json!([stop]);
        let request = tokio::spawn(ask(&site.url, request));
        tokio::select! {
            () = soon(site.workers[0].reached(1)) => site.workers[0].kill(),
            // The stop came before the pause.
            () = async { soon(site.workers[0].has_served(1)).await; soon(site.workers[0].idle()).await } => {}
        }
        let answer = request.await.unwrap().end().await;
        assert_eq!(
            (answer.text.as_str(), answer.finish.as_deref()),
            (&text[..cut], Some("stop")),
            "at {index}"
        );
        site.finish().await;
    }
}

#[tokio::test]
async fn choices_of_one_request_move_each_for_itself() {
    let mut site = Site::start([pausing(Pause::Before(5)), pausing(Pause::Before(5))]).await;
    let mut request = body(TOKENS);
    request["n"] = json!(2);
    request["stream"] = json!(false);
    request.as_object_mut().unwrap().remove("stream_options");
    let url = site.url.clone();
    let whole = tokio::spawn(async move { ask(&url, request).await.end().await });
    soon(site.workers[0].reached(1)).await;
    soon(site.workers[1].reached(1)).await;
    site.workers[0].kill();
    soon(site.workers[1].reached(2)).await;
    site.workers[1].release();
    let body = whole.await.unwrap().error.unwrap();
    for choice in 0..2u32 {
        let entries = body["choices"][choice as usize]["logprobs"]["content"].as_array().unwrap();
        let ids: Vec<u32> = entries.iter().map(|entry| entry["token_id"].as_u64().unwrap() as u32).collect();
        assert_eq!(ids, continued(MESSAGES, choice, 0, Vec::new(), TOKENS));
    }
    assert_eq!((site.workers[0].served(), site.workers[1].served()), (1, 2));
    site.finish().await;
}

#[tokio::test]
async fn refusals_of_workers_become_the_clients_or_another_workers() {
    for (code, status) in [
        (rejected::Code::InvalidRequest, 400),
        (rejected::Code::ContextLengthExceeded, 400),
        (rejected::Code::Overloaded, 200),
        (rejected::Code::Draining, 200),
        (rejected::Code::Loading, 200),
    ] {
        let refusing = Script { refuses: Some(code), ..Script::default() };
        let site = Site::start([refusing, Script::default()]).await;
        let reading = ask(&site.url, body(TOKENS)).await;
        assert_eq!(reading.status, status, "{code:?}");
        let answer = reading.end().await;
        if status == 200 {
            answer.assert_undisturbed(TOKENS);
        } else {
            assert_eq!(site.workers[1].served(), 0, "a client's mistake is not tried twice");
        }
        site.finish().await;
    }
    let full = Script { refuses: Some(rejected::Code::Overloaded), ..Script::default() };
    let site = Site::start([full, full]).await;
    assert_eq!(ask(&site.url, body(TOKENS)).await.status, 429);
    site.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_its_own_stream_only() {
    let site = Site::start([Script::default()]).await;
    let mut slow = ask(&site.url, body(1_000_000)).await;
    slow.tokens(1).await;
    // From here on it reads nothing, and its worker comes to a halt.
    let mut spoken = site.workers[0].spoken();
    loop {
        ask(&site.url, body(TOKENS)).await.end().await.assert_undisturbed(TOKENS);
        let now = site.workers[0].spoken();
        if now == spoken + TOKENS as u64 {
            break;
        }
        spoken = now;
    }
    assert!(spoken < 500_000, "{spoken} tokens were made for somebody who does not read");
    drop(slow);
    site.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_streams_survive_a_kill_with_nothing_lost_or_doubled() {
    let mut site = Site::start([pausing(Pause::Before(20)); 3]).await;
    let streams: Vec<_> = (0..64).map(|_| tokio::spawn(ask(&site.url, body(40)))).collect();
    for worker in &site.workers {
        // The least busy is asked, so that each has a third.
        soon(worker.reached(21)).await;
    }
    site.workers[0].kill();
    site.workers[1].release();
    site.workers[2].release();
    let answers =
        join_all(streams.into_iter().map(|stream| async { stream.await.unwrap().end().await })).await;
    for answer in &answers {
        answer.assert_undisturbed(40);
    }
    let moved = answers.iter().filter(|answer| !answer.seams.is_empty()).count();
    assert!((21..=22).contains(&moved), "{moved} streams moved");
    site.finish().await;
}
