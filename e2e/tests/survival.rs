//! What must be survived, with real processes: each test reads like an incident report.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tandem_e2e::{DEPLOYMENT, LONG, Scene, Site};

#[test]
fn the_host_that_serves_dies_and_the_text_goes_on_word_for_word() {
    let mut scene = Scene::with_tokens(2, 1, LONG).unwrap();
    let seen = scene
        .meanwhile(30, |site, seen| {
            let host = site.serving_host(0, seen)?;
            site.hosts[host].kill()
        })
        .unwrap();
    scene.assert_same(&seen);
    scene.assert_taken_over(&seen, 1);
    scene.site.wait_for(DEPLOYMENT, "Ready", Duration::from_secs(5)).unwrap();
}

#[test]
fn the_worker_alone_is_killed_and_comes_back() {
    let mut scene = Scene::with_tokens(2, 1, LONG).unwrap();
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
    let mut scene = Scene::with_tokens(2, 1, LONG).unwrap();
    scene.site.kill_operator().unwrap();
    let seen = scene
        .meanwhile(30, |site, seen| {
            let host = site.serving_host(0, seen)?;
            site.hosts[host].kill()
        })
        .unwrap();
    scene.assert_same(&seen);
    scene.assert_taken_over(&seen, 1);
}

#[test]
fn an_older_backup_is_restored_and_what_runs_runs_on() {
    let mut scene = Scene::set(3, 0).unwrap();
    let file = scene.site.dir().join("monday.backup");
    let file = file.to_str().unwrap().to_owned();
    let said = scene.site.tandem(&["backup", &file]).unwrap();
    assert!(said.contains("written") && said.contains("can be anybody"), "{said}");
    assert!(scene.site.tandem(&["backup", &file]).is_err(), "a backup overwrites nothing");
    // What the backup does not know: a second copy, and terms that hosts have obeyed since.
    scene.site.tandem(&["scale", DEPLOYMENT, "--replicas", "2"]).unwrap();
    let two = |site: &Site, seconds| {
        site.watch(DEPLOYMENT, Duration::from_secs(seconds), |object| object["status"]["readyCopies"] == 2)
    };
    two(&scene.site, 60).unwrap();
    for _ in 0..3 {
        scene.site.kill_operator().unwrap();
        scene.site.start_operator().unwrap();
    }

    let data = scene.site.dir().join("operator");
    let seen = scene
        .meanwhile(30, |site, _| {
            site.kill_operator()?;
            let flags = ["restore", &file, "--data-dir", data.to_str().unwrap_or_default()];
            let refused = format!("{:#}", site.tandem(&flags).unwrap_err());
            anyhow::ensure!(refused.contains("the store is not empty"), "{refused}");
            std::fs::remove_dir_all(&data)?;
            let said = site.tandem(&flags)?;
            anyhow::ensure!(said.contains("restored"), "{said}");
            site.start_operator()
        })
        .unwrap();
    scene.assert_unnoticed(&seen);
    // The count of then, certificates of always: hosts are in session without joining again.
    let site = &scene.site;
    site.watch(DEPLOYMENT, Duration::from_secs(60), |object| {
        object["spec"]["replicas"] != 2 && object["status"]["readyCopies"] == 1
    })
    .unwrap();
    let hosts = site.tandem(&["get", "infh", "-o", "json"]).unwrap();
    assert_eq!(hosts.matches("\"reason\": \"Reporting\"").count(), 3, "{hosts}");
    // And it is changed like any other.
    site.tandem(&["scale", DEPLOYMENT, "--replicas", "2"]).unwrap();
    two(site, 60).unwrap();
    let again = scene.ask(&tandem_e2e::story(40, 5)).unwrap();
    assert!(!again.tokens.is_empty());
}
