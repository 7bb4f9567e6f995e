//! What happens to workers and their parents while they serve, with real processes.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tandem_e2e::{DEPLOYMENT, LONG, Scene, story};

#[test]
fn a_worker_freezes_in_mid_stream_and_its_late_words_change_nothing() {
    let mut scene = Scene::with_tokens(2, 1, LONG).unwrap();
    let mut frozen = None;
    let mut woken = None;
    let seen = scene
        .at_every_token(|site, seen| {
            match (frozen, seen.seams.first()) {
                (None, _) if seen.tokens.len() >= 30 => {
                    let host = site.serving_host(0, seen)?;
                    let worker = site.hosts[host].workers()[0];
                    kill(worker, Signal::SIGSTOP)?;
                    frozen = Some(worker);
                }
                // It wakes while the other host is in the middle of its text.
                (Some(worker), Some(seam))
                    if woken.is_none() && seen.tokens.len() >= seam.index as usize + 20 =>
                {
                    kill(worker, Signal::SIGCONT)?;
                    woken = Some(seen.tokens.len());
                }
                _ => {}
            }
            Ok(())
        })
        .unwrap();
    scene.assert_same(&seen);
    // And none back.
    scene.assert_taken_over(&seen, 1);
    assert!(woken.is_some_and(|at| at < seen.tokens.len()), "the zombie had time to speak");
    // Who was frozen serves again, whoever is asked.
    scene.site.wait_for(DEPLOYMENT, "Redundant", Duration::from_secs(60)).unwrap();
    let again = scene.meanwhile(1, |_, _| Ok(())).unwrap();
    scene.assert_same(&again);
}

#[test]
fn the_runner_is_killed_and_its_workers_end_and_come_back() {
    let mut scene = Scene::with_tokens(2, 1, LONG).unwrap();
    let mut killed = None;
    let seen = scene
        .meanwhile(30, |site, seen| {
            let host = site.serving_host(0, seen)?;
            let runner = site.hosts[host].runner().unwrap();
            killed = Some((host, runner, site.hosts[host].workers()[0]));
            Ok(kill(runner, Signal::SIGKILL)?)
        })
        .unwrap();
    scene.assert_same(&seen);
    let (host, runner, worker) = killed.unwrap();
    let name = format!("infh/{}", scene.site.hosts[host].name);
    let restarted = |object: &Value| {
        let workloads = object["status"]["workloads"].as_array().cloned().unwrap_or_default();
        workloads.iter().any(|w| w["state"] == "Ready" && w["restarts"].as_u64().unwrap_or(0) >= 1)
    };
    let host_object = scene.site.watch(&name, Duration::from_secs(60), restarted).unwrap();
    let cause = host_object["status"]["workloads"][0]["lastExit"]["cause"].as_str().unwrap_or_default();
    assert!(cause.contains("runner"), "the end of the worker is put down to its runner: `{cause}`");
    let host = &scene.site.hosts[host];
    assert!(host.runner().is_some_and(|new| new != runner), "a new runner");
    assert!(!host.workers().contains(&worker), "a new worker");
}

#[test]
fn sixteen_streams_lose_their_host_and_none_loses_a_token() {
    const TOKENS: usize = 400;
    let mut scene = Scene::set(2, 1).unwrap();
    let calm: Vec<_> = (0..16).map(|seed| scene.ask(&story(TOKENS, seed)).unwrap()).collect();
    let disturbed = scene
        .crowd(16, TOKENS, |site, seen| {
            let host = site.serving_host(0, seen)?;
            site.hosts[host].kill()
        })
        .unwrap();
    for (seed, (calm, disturbed)) in calm.iter().zip(&disturbed).enumerate() {
        assert_eq!(calm.tokens, disturbed.tokens, "the text of seed {seed}");
    }
    let seams: usize = disturbed.iter().map(|seen| seen.seams.len()).sum();
    assert!(seams > 0, "a host died and no stream moved");
    assert!(disturbed.iter().flat_map(|seen| &seen.seams).all(|seam| seam.exact));
}
