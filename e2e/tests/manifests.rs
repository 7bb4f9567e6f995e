//! Bad manifests: each gets a sentence that says what to change.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::Duration;

use serde_json::Value as Json;
use serde_yaml::Value;
use tandem_e2e::{DEPLOYMENT, Layout, Programs, Site, deploy, manifest};

/// Waits until the condition's message has all these words, and prints it.
fn says_in_time(site: &Site, object: &str, kind: &str, words: &[&str]) {
    let message = |object: &Json| {
        let conditions = object["status"]["conditions"].as_array()?;
        let condition = conditions.iter().find(|c| c["type"] == kind)?;
        Some(condition["message"].as_str()?.to_owned())
    };
    let mut last = String::new();
    let found = site.watch(object, Duration::from_secs(30), |object| {
        last = message(object).unwrap_or_default();
        words.iter().all(|word| last.contains(word))
    });
    println!("{last}");
    assert!(found.is_ok(), "{kind} of {object} says `{last}`, and not {words:?}");
}

fn applied(site: &Site, change: impl FnOnce(&mut Value)) -> anyhow::Result<String> {
    let mut manifest = manifest(site, 0).unwrap();
    change(&mut manifest);
    site.apply(&serde_yaml::to_string(&manifest).unwrap())
}

fn says(text: &str, words: &[&str]) {
    println!("{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn every_mistake_is_answered_with_what_to_change() {
    let site = Site::start(Programs::find().unwrap(), Layout { hosts: 1, gateways: 0 }).unwrap();

    let refused = applied(&site, |m| m["spec"]["redundancy"]["hostFailures"] = 9.into()).unwrap_err();
    says(&refused.to_string(), &["hostFailures", "8"]);

    let refused = applied(&site, |m| {
        m["spec"]["model"].as_mapping_mut().unwrap().remove("source");
    });
    says(&refused.unwrap_err().to_string(), &["source"]);

    let refused = applied(&site, |m| m["spec"]["placement"]["sharding"] = "Auto".into()).unwrap_err();
    says(&refused.to_string(), &["sharding", "not supported yet"]);

    let refused = applied(&site, |m| m["spec"]["contxt"] = "Auto".into()).unwrap_err();
    says(&refused.to_string(), &["contxt"]);

    applied(&site, |m| m["spec"]["quant"] = "Q9_Z".into()).unwrap();
    says_in_time(&site, DEPLOYMENT, "Stalled", &["Q9_Z", "Q4_K_M"]);

    applied(&site, |m| m["spec"]["model"]["source"] = "file:///no/such/folder".into()).unwrap();
    says_in_time(&site, DEPLOYMENT, "Stalled", &["/no/such/folder"]);
}

#[test]
fn of_two_that_do_not_fit_together_the_older_stays_and_the_younger_says_why() {
    let site = Site::start(Programs::find().unwrap(), Layout { hosts: 1, gateways: 0 }).unwrap();
    deploy(&site, 0).unwrap();
    // A KV pool of 2²⁶ tokens of 1,728 bytes: 108 GiB.
    applied(&site, |m| {
        m["metadata"]["name"] = "greedy".into();
        m["spec"]["context"]["poolTokens"] = 67_108_864.into();
    })
    .unwrap();
    says_in_time(&site, "infd/greedy", "Ready", &["GiB", "poolTokens"]);
    site.wait_for(DEPLOYMENT, "Ready", Duration::from_secs(5)).unwrap();
}
