//! What must be survived, with real processes: each test reads like an incident report.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tandem_e2e::{DEPLOYMENT, Scene};

#[test]
fn the_host_that_serves_dies_and_the_text_goes_on_word_for_word() {
    let mut scene = Scene::set(2, 1).unwrap();
    let seen = scene
        .meanwhile(30, |site, seen| {
            let host = site.serving_host(0, seen)?;
            site.hosts[host].kill()
        })
        .unwrap();
    scene.assert_same(&seen);
    assert_eq!(seen.seams.len(), 1, "one takeover");
    assert!(seen.seams[0].exact);
    scene.site.wait_for(DEPLOYMENT, "Ready", Duration::from_secs(5)).unwrap();
}

#[test]
fn the_worker_alone_is_killed_and_comes_back() {
    let mut scene = Scene::set(2, 1).unwrap();
    let mut killed = None;
    let seen = scene
        .meanwhile(30, |site, seen| {
            let host = site.serving_host(0, seen)?;
            let worker = site.hosts[host].workers()[0];
            killed = Some((host, worker));
            Ok(kill(worker, Signal::SIGKILL)?)
        })
        .unwrap();
    scene.assert_same(&seen);
    let (host, old) = killed.unwrap();
    let restarted = |object: &Value| {
        let workloads = object["status"]["workloads"].as_array().cloned().unwrap_or_default();
        workloads.iter().any(|w| w["state"] == "Ready" && w["restarts"].as_u64().unwrap_or(0) >= 1)
    };
    let name = format!("infh/{}", scene.site.hosts[host].name);
    scene.site.watch(&name, Duration::from_secs(30), restarted).unwrap();
    assert!(!scene.site.hosts[host].workers().contains(&old));
}

#[test]
fn the_operator_dies_and_comes_back_and_no_stream_notices() {
    let mut scene = Scene::set(2, 1).unwrap();
    let before = scene.site.hosts.iter().flat_map(|host| host.workers()).collect::<Vec<_>>();
    let seen = scene
        .meanwhile(20, |site, _| {
            site.kill_operator()?;
            site.start_operator()
        })
        .unwrap();
    scene.assert_same(&seen);
    scene.assert_unnoticed(&seen);
    for host in ["infh/host-a", "infh/host-b"] {
        scene.site.wait_for(host, "Ready", Duration::from_secs(30)).unwrap();
    }
    scene.site.wait_for(DEPLOYMENT, "Redundant", Duration::from_secs(30)).unwrap();
    let after = scene.site.hosts.iter().flat_map(|host| host.workers()).collect::<Vec<_>>();
    assert_eq!(before, after, "the same workers, not new ones");
}

#[test]
fn the_agent_dies_alone_and_finds_its_workers_again() {
    let mut scene = Scene::set(1, 0).unwrap();
    let before = scene.site.hosts[0].workers();
    assert_eq!(before.len(), 1);
    let seen = scene
        .meanwhile(20, |site, _| {
            site.hosts[0].kill_agent()?;
            site.start_agent(0)
        })
        .unwrap();
    scene.assert_same(&seen);
    scene.assert_unnoticed(&seen);
    scene.site.wait_for("infh/host-a", "Ready", Duration::from_secs(30)).unwrap();
    scene.site.wait_for(DEPLOYMENT, "Ready", Duration::from_secs(30)).unwrap();
    assert_eq!(scene.site.hosts[0].workers(), before, "the same worker, not a new one");
}

#[test]
fn the_control_plane_is_gone_and_the_model_answers() {
    let mut scene = Scene::set(2, 1).unwrap();
    scene.site.kill_operator().unwrap();
    let seen = scene
        .meanwhile(30, |site, seen| {
            let host = site.serving_host(0, seen)?;
            site.hosts[host].kill()
        })
        .unwrap();
    scene.assert_same(&seen);
    assert_eq!(seen.seams.len(), 1, "a host died with nobody in charge, and the stream went on");
}
