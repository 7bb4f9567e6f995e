//! The cluster's authority is replaced while everything serves.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;
use tandem_e2e::{DEPLOYMENT, Layout, Programs, Scene, Site, deploy, until};
use tandem_pki::Credentials;

/// Shorter than in the field: there is one operator, workers look at their folders every second, and no test here shows that 15 s are
/// enough.
const SETTLE: [&str; 2] = ["--authority-settle-seconds", "3"];
/// Far more than a replacement takes, which is twice that and what its slowest party takes.
const LIMIT: Duration = Duration::from_secs(180);

fn site(gateways: usize) -> Site {
    Site::start_with(Programs::find().unwrap(), Layout { hosts: 2, gateways }, &SETTLE).unwrap()
}

fn rotate(site: &Site) -> JoinHandle<anyhow::Result<String>> {
    let cli = site.cli();
    thread::spawn(move || cli.run(&["authority", "rotate", "--wait", "--timeout", "3m"]))
}

fn status(site: &Site) -> Value {
    serde_json::from_str(&site.tandem(&["authority", "status", "-o", "json"]).unwrap()).unwrap()
}

fn wait_for(site: &Site, what: &str, so: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let reached = until(LIMIT, || {
        last = status(site);
        Ok(so(&last))
    });
    assert!(reached.is_ok(), "waited in vain: {what}; {last:#}\n{}", site.last_words(20));
    last
}

fn missing(status: &Value) -> Vec<&str> {
    let parties = status["parties"].as_array().into_iter().flatten();
    let missing = parties.filter(|party| party["waitedFor"] == true && party["lacks"] != "");
    missing.filter_map(|party| party["name"].as_str()).collect()
}

/// Every folder of credentials below.
fn credentials(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if Credentials::exist(dir) {
        found.push(dir.to_owned());
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(credentials(&entry.path()));
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn folder_of_credentials(site: &Site) -> PathBuf {
    site.config().parent().unwrap().to_owned()
}

#[test]
fn the_authority_is_replaced_under_running_streams_and_nobody_notices() {
    let mut scene = Scene::on(site(1), 1, 2000).unwrap();
    let site = &mut scene.site;
    site.add_host_with_gateway("host-g").unwrap();
    site.wait_for("infh/host-g", "Ready", Duration::from_secs(60)).unwrap();
    // Kept elsewhere, as on somebody's own machine.
    let (elsewhere, old) = (tempfile::tempdir().unwrap(), folder_of_credentials(site));
    copy(&old, elsewhere.path());
    let before = credentials(site.dir());
    assert!(before.len() >= 7, "operator's admin, three hosts, two workers, two gateways: {before:?}");

    // One stream is under way when it begins, and some are until it has ended: one or many, as fast as they are here.
    let mut work = None;
    loop {
        let seen = scene
            .meanwhile(1, |site, _| {
                work.get_or_insert_with(|| rotate(site));
                Ok(())
            })
            .unwrap();
        scene.assert_same(&seen);
        scene.assert_unnoticed(&seen);
        if work.as_ref().is_some_and(JoinHandle::is_finished) {
            break;
        }
    }
    let said = work.expect("a stream has had a token").join().unwrap();
    let said = said.unwrap_or_else(|error| panic!("{error:#}\n{}", scene.site.last_words(40)));
    assert!(said.contains("the authority is replaced"), "{said}");

    // Everything on disk is of the new one, which is the only one.
    let site = &mut scene.site;
    let now = status(site);
    let new = now["authorities"][0]["fingerprint"].as_str().unwrap();
    assert_eq!((now["phase"].as_str(), now["authorities"].as_array().unwrap().len()), (Some("Stable"), 1));
    until(Duration::from_secs(30), || {
        Ok(credentials(site.dir()).iter().all(|dir| {
            let kept = Credentials::load(dir).unwrap();
            kept.authorities().iter().map(ToString::to_string).eq([new.to_owned()])
        }))
    })
    .unwrap();
    for dir in credentials(site.dir()) {
        let kept = Credentials::load(&dir).unwrap();
        let signed = kept.issuer(&kept.ca_pem).unwrap().map(|issuer| issuer.to_string());
        assert_eq!(signed.as_deref(), Some(new), "{}", dir.display());
    }
    // What was made before is worth nothing.
    let stale = elsewhere.path().join("tandem.yaml");
    let refused = site.tandem(&["--config", stale.to_str().unwrap(), "status"]).unwrap_err().to_string();
    assert!(refused.contains("its authority was replaced since"), "{refused}");
    // Who is new gets in, serves, and streams go on.
    site.join_host_with("host-n", &[]).unwrap();
    site.wait_for("infh/host-n", "Ready", Duration::from_secs(60)).unwrap();
    site.wait_for(DEPLOYMENT, "Redundant", Duration::from_secs(60)).unwrap();
    let after = scene.meanwhile(1, |_, _| Ok(())).unwrap();
    scene.assert_same(&after);
    // Also over connections that are made now: a gateway that has just started has no others.
    scene.site.add_gateway("gateway-2", &[]).unwrap();
    let second = scene.site.client(1).unwrap();
    scene.wait_until_served(&second).unwrap();
    scene.assert_same(&scene.stream(&second, |_| Ok(())).unwrap());
}

#[test]
fn an_operator_that_is_killed_in_each_phase_goes_on_from_there() {
    let mut site = site(1);
    deploy(&site, 1).unwrap();
    let old = status(&site)["authorities"][0]["fingerprint"].clone();
    site.tandem(&["authority", "rotate"]).unwrap();
    for phase in ["Introducing", "Reissuing"] {
        wait_for(&site, phase, |status| status["phase"] == phase);
        site.kill_operator().unwrap();
        site.start_operator().unwrap();
        let after = status(&site);
        assert_eq!(after["phase"], phase, "{after:#}");
    }
    let done = wait_for(&site, "the end", |status| status["phase"] == "Stable");
    assert_ne!(done["authorities"][0]["fingerprint"], old);
    site.wait_for(DEPLOYMENT, "Redundant", Duration::from_secs(60)).unwrap();
}

#[test]
fn a_host_that_is_away_is_waited_for_until_it_is_revoked_and_joins_again() {
    let mut site = site(0);
    site.hosts[1].kill().unwrap();
    site.tandem(&["authority", "rotate"]).unwrap();
    // Everybody else has come along, and it is said who has not.
    wait_for(&site, "host-b alone is missing", |status| missing(status) == ["host/host-b"]);
    let text = site.tandem(&["authority", "status"]).unwrap();
    assert!(text.contains("waits for host/host-b") && text.contains("tandem hosts revoke"), "{text}");
    let again = site.tandem(&["authority", "rotate"]).unwrap_err().to_string();
    assert!(again.contains("is being replaced since"), "{again}");

    site.tandem(&["hosts", "revoke", "host-b"]).unwrap();
    wait_for(&site, "the end", |status| status["phase"] == "Stable");

    // It comes back, says what is wrong and what helps, and joins by token.
    site.start_agent(1).unwrap();
    let log = site.dir().join("host-b.log");
    let told = until(Duration::from_secs(30), || {
        Ok(std::fs::read_to_string(&log)?
            .contains("the cluster's authority was replaced while this host was away"))
    });
    told.unwrap_or_else(|error| panic!("{error:#}\n{}", site.last_words(20)));
    site.hosts[1].kill_agent().unwrap();
    let token = site.tandem(&["join-token", "--role", "host", "--name", "host-b"]).unwrap();
    site.start_agent_with(1, token.trim()).unwrap();
    site.wait_for("infh/host-b", "Ready", Duration::from_secs(60)).unwrap();
}
