//! Hosts that die, and what is said about them afterwards.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_e2e::{DEPLOYMENT, LONG, Layout, Programs, Scene, Site, deploy, story};

#[test]
fn two_hosts_die_one_after_another_and_the_stream_survives_twice() {
    let mut scene = Scene::with_tokens(3, 2, LONG).unwrap();
    let mut dead = Vec::new();
    let seen = scene
        .at_every_token(|site, seen| {
            // The second dies once another host has taken the stream over from the first.
            if dead.is_empty() && seen.tokens.len() >= 30 || dead.len() == 1 && seen.seams.len() == 1 {
                let host = site.serving_host(0, seen)?;
                site.hosts[host].kill()?;
                dead.push(host);
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(dead.len(), 2, "the text ended before the second host died");
    assert_ne!(dead[0], dead[1]);
    scene.assert_same(&seen);
    scene.assert_taken_over(&seen, 2);
}

/// Waits until cover was lost, and is whole again.
fn copies_are_back(cli: &tandem_e2e::Cli) -> bool {
    let mut lost = false;
    cli.watch(DEPLOYMENT, Duration::from_secs(60), |object| {
        let redundant = condition(object, "Redundant", "status");
        lost |= redundant == "False";
        lost && redundant == "True"
    })
    .is_ok()
}

fn condition<'a>(object: &'a Value, kind: &str, field: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition[field].as_str()).unwrap_or_default()
}

#[test]
fn the_only_copy_dies_and_clients_hear_of_it_in_time() {
    const WAIT: u64 = 2;
    let mut site = Site::start(Programs::find().unwrap(), Layout { hosts: 1, gateways: 0 }).unwrap();
    site.add_gateway("gateway-1", &["--wait-seconds", &WAIT.to_string()]).unwrap();
    let mut scene = Scene::on(site, 0, LONG).unwrap();
    let mut died = None;
    let broken = scene.meanwhile(30, |site, _| {
        died = Some(Instant::now());
        site.hosts[0].kill()
    });
    let said = format!("{:#}", broken.unwrap_err());
    assert!(said.contains("the stream ended with an error"), "{said}");
    assert!(said.contains("worker"), "the error names what is missing: {said}");
    // Silence would be a minute of it: the client's own bound.
    assert!(died.unwrap().elapsed() < Duration::from_secs(30), "the gateway's bound is {WAIT} s");

    // Who comes now is told to come back.
    let answer = scene.refusal(&story(8, 1)).unwrap();
    assert_eq!(answer.status, 503, "{}", answer.error);
    assert!(answer.retry_after.is_some_and(|seconds| seconds >= 1), "a 503 says when to come back");
    assert!(!answer.error["message"].as_str().unwrap_or_default().is_empty());
}

#[test]
fn a_dead_host_leaves_a_story() {
    let mut site = Site::start(Programs::find().unwrap(), Layout { hosts: 3, gateways: 0 }).unwrap();
    deploy(&site, 1).unwrap();
    let dead = site.hosts.iter().position(|host| !host.workers().is_empty()).unwrap();
    let name = site.hosts[dead].name.clone();
    let cli = site.cli();
    let watch = thread::spawn(move || copies_are_back(&cli));
    site.hosts[dead].kill().unwrap();
    assert!(watch.join().unwrap(), "another host took its copy");

    let told = |arguments: &[&str], words: &[&str]| {
        let text = site.tandem(arguments).unwrap();
        for word in words {
            assert!(text.contains(word), "`tandem {}` lacks `{word}`:\n{text}", arguments.join(" "));
        }
    };
    let host = format!("infh/{name}");
    told(&["describe", &host], &[&name, "Silent", "not heard"]);
    told(&["describe", DEPLOYMENT], &[&name, "silent"]);
    told(&["get", "events", DEPLOYMENT], &[&name, "silent"]);
    told(&["status"], &[&name]);
    // The logs of those that live: nobody waits for the dead.
    told(&["logs", DEPLOYMENT], &["phase=Ready"]);
}

#[test]
fn the_logs_of_two_copies_on_one_host_come_and_end() {
    let site = Site::start(Programs::find().unwrap(), Layout { hosts: 1, gateways: 0 }).unwrap();
    deploy(&site, 0).unwrap();
    site.tandem(&["scale", DEPLOYMENT, "--replicas", "2"]).unwrap();
    let both = |object: &Value| object["status"]["readyCopies"] == 2;
    site.watch(DEPLOYMENT, Duration::from_secs(30), both).unwrap();
    let text = site.tandem(&["logs", DEPLOYMENT]).unwrap();
    for copy in ["default-tiny-kimi-1: ", "default-tiny-kimi-2: "] {
        assert!(text.contains(copy), "{copy} is not in\n{text}");
    }
}

#[test]
fn a_host_is_drained_and_its_stream_goes_on() {
    let mut scene = Scene::with_tokens(2, 0, LONG).unwrap();
    let mut drained = None;
    let mut work = None;
    let seen = scene
        .meanwhile(30, |site, seen| {
            let host = site.serving_host(0, seen)?;
            let (cli, name) = (site.cli(), site.hosts[host].name.clone());
            drained = Some(host);
            work = Some(thread::spawn(move || cli.run(&["hosts", "drain", &name, "--timeout", "60s"])));
            Ok(())
        })
        .unwrap();
    scene.assert_same(&seen);
    assert!(seen.seams.iter().all(|seam| seam.exact));
    let said = work.unwrap().join().unwrap().unwrap();
    assert!(said.contains("drained"), "{said}");
    let host = &scene.site.hosts[drained.unwrap()];
    assert!(host.workers().is_empty(), "nothing runs on a host that was drained");
    scene.site.wait_for(DEPLOYMENT, "Ready", Duration::from_secs(30)).unwrap();
    let after = scene.meanwhile(1, |_, _| Ok(())).unwrap();
    scene.assert_same(&after);
}

#[test]
fn copies_come_and_go_as_told_and_no_stream_notices() {
    let mut scene = Scene::set(2, 0).unwrap();
    let running = |site: &Site| site.hosts.iter().map(|host| host.workers().len()).sum::<usize>();
    assert_eq!(running(&scene.site), 1);
    scene.site.tandem(&["scale", DEPLOYMENT, "--replicas", "2"]).unwrap();
    let ready = |count: u64| move |object: &Value| object["status"]["readyCopies"] == count;
    scene.site.watch(DEPLOYMENT, Duration::from_secs(60), ready(2)).unwrap();
    assert_eq!(running(&scene.site), 2);
    let seen = scene
        .meanwhile(30, |site, _| site.tandem(&["scale", DEPLOYMENT, "--replicas", "1"]).map(drop))
        .unwrap();
    scene.assert_same(&seen);
    let left = |object: &Value| object["status"]["placements"].as_array().is_some_and(|all| all.len() == 1);
    let deployment = scene.site.watch(DEPLOYMENT, Duration::from_secs(30), left).unwrap();
    let stays = deployment["status"]["placements"][0]["host"].as_str().unwrap_or_default();
    let other = if stays == "host-a" { "infh/host-b" } else { "infh/host-a" };
    let ended = |object: &Value| {
        let workloads = object["status"]["workloads"].as_array();
        workloads.is_none_or(|all| all.iter().all(|workload| workload["state"] == "Stopped"))
    };
    scene.site.watch(other, Duration::from_secs(60), ended).unwrap();
    assert_eq!(running(&scene.site), 1);
}

#[test]
fn every_gateway_tells_the_same_text_also_one_that_an_agent_runs() {
    let mut site = Site::start(Programs::find().unwrap(), Layout { hosts: 1, gateways: 2 }).unwrap();
    site.add_host_with_gateway("host-g").unwrap();
    site.wait_for("infh/host-g", "Ready", Duration::from_secs(60)).unwrap();
    let scene = Scene::on(site, 1, 200).unwrap();
    let second = scene.stream(&scene.site.client(1).unwrap(), |_| Ok(())).unwrap();
    scene.assert_same(&second);
    let own = scene.site.hosts[1].client().unwrap();
    scene.wait_until_served(&own).unwrap();
    let third = scene.stream(&own, |_| Ok(())).unwrap();
    scene.assert_same(&third);
}

#[test]
fn a_host_is_revoked_in_mid_sentence_and_joins_again_with_a_new_token() {
    let mut scene = Scene::with_tokens(3, 1, LONG).unwrap();
    let mut revoked = None;
    let seen = scene
        .meanwhile(30, |site, so_far| {
            let host = site.serving_host(0, so_far)?;
            let said = site.tandem(&["hosts", "revoke", &site.hosts[host].name])?;
            assert!(said.contains("no longer trusted") && said.contains("tandem join-token"), "{said}");
            revoked = Some(host);
            Ok(())
        })
        .unwrap();
    // Its worker runs on, and is listened to no more.
    scene.assert_same(&seen);
    scene.assert_taken_over(&seen, 1);
    let (site, host) = (&mut scene.site, revoked.unwrap());
    let name = site.hosts[host].name.clone();
    let workers = site.hosts[host].workers();
    assert!(!workers.is_empty(), "a worker is not killed for its host's certificate");
    let object = format!("inferencehost/{name}");
    site.watch(&object, Duration::from_secs(30), |host| condition(host, "Ready", "status") == "Unknown")
        .unwrap();

    site.hosts[host].kill_agent().unwrap();
    let token = site.tandem(&["join-token", "--role", "host", "--name", &name]).unwrap();
    site.start_agent_with(host, token.trim()).unwrap();
    site.watch(&object, Duration::from_secs(30), |host| condition(host, "Ready", "status") == "True")
        .unwrap();
    site.wait_for(DEPLOYMENT, "Redundant", Duration::from_secs(60)).unwrap();
}
