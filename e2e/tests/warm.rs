//! A copy that is kept warm takes the place of one that is lost: with real processes, from kill to cover.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tandem_e2e::{DEPLOYMENT, LONG, Scene, Site, manifest};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(120);

/// How the workers of a host were started: `replica` or `warm`.
fn commands(site: &Site, host: usize) -> Vec<String> {
    let command = |pid| {
        let output = Command::new("ps").args(["-o", "args=", "-p", &format!("{pid}")]).output().unwrap();
        let line = String::from_utf8(output.stdout).unwrap();
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    site.hosts[host].workers().into_iter().map(command).collect()
}

fn covered_by_a_warm_copy(object: &Value) -> bool {
    object["status"]["cover"]
        .as_str()
        .is_some_and(|cover| cover.starts_with("Warm ~") && cover.ends_with(" s"))
}

fn placed_on(object: &Value, state: &str) -> Vec<String> {
    let placements = object["status"]["placements"].as_array().cloned().unwrap_or_default();
    let here = placements.iter().filter(|placement| placement["state"] == state);
    here.map(|placement| placement["host"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_only_host_that_serves_dies_and_a_warm_one_goes_on_with_the_text_word_for_word() {
    // Both copies serve, until the manifest says that one is enough.
    let mut scene = Scene::with_tokens(3, 1, LONG).unwrap();
    let mut warm = manifest(&scene.site, 1).unwrap();
    warm["spec"]["redundancy"]["standby"] = "Warm".into();
    scene.site.apply(&serde_yaml::to_string(&warm).unwrap()).unwrap();
    let object = scene.site.watch(DEPLOYMENT, LIMIT, covered_by_a_warm_copy).unwrap();
    let (serving, standby) = (placed_on(&object, "Ready"), placed_on(&object, "Warm"));
    assert_eq!((serving.len(), standby.len()), (1, 1), "{object:#}");
    let index = |name: &str| scene.site.hosts.iter().position(|host| host.name == name).unwrap();
    let (first, second) = (index(&serving[0]), index(&standby[0]));
    assert_eq!(commands(&scene.site, first), ["replica"]);
    assert_eq!(commands(&scene.site, second), ["warm"], "it holds no replica's memory");

    let seen = scene
        .meanwhile(30, |site, seen| {
            assert_eq!(site.serving_host(0, seen)?, first);
            site.hosts[first].kill()
        })
        .unwrap();
    scene.assert_same(&seen);
    scene.assert_taken_over(&seen, 1);
    assert_eq!(commands(&scene.site, second), ["replica"]);

    // The third host takes the place of the warm one.
    let again = |object: &Value| {
        covered_by_a_warm_copy(object)
            && placed_on(object, "Ready") == standby
            && placed_on(object, "Warm").iter().any(|host| *host != serving[0])
    };
    scene.site.watch(DEPLOYMENT, LIMIT, again).unwrap();
    scene.site.wait_for(DEPLOYMENT, "Redundant", LIMIT).unwrap();
}
