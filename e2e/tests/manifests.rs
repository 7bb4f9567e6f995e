//! Bad manifests: each gets a sentence that says what to change.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::Duration;

use serde_json::Value as Json;
use serde_yaml::Value;
use tandem_e2e::{DEPLOYMENT, Layout, Programs, Site, deploy, manifest};

fn message_of(site: &Site, object: &str, kind: &str) -> String {
    let found = |object: &Json| {
        let conditions = object["status"]["conditions"].as_array()?;
        let condition = conditions.iter().find(|c| c["type"] == kind)?;
        Some((condition["status"].as_str()?.to_owned(), condition["message"].as_str()?.to_owned()))
    };
    let bad = |object: &Json| {
        found(object).is_some_and(|(status, _)| status == if kind == "Stalled" { "True" } else { "False" })
    };
    let object = site.watch(object, Duration::from_secs(60), bad).unwrap();
    found(&object).unwrap().1
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
    says(&message_of(&site, DEPLOYMENT, "Stalled"), &["Q9_Z", "Q4_K_M"]);

    applied(&site, |m| m["spec"]["model"]["source"] = "file:///no/such/folder".into()).unwrap();
    says(&message_of(&site, DEPLOYMENT, "Stalled"), &["/no/such/folder"]);
}

#[test]
fn of_two_that_do_not_fit_together_the_older_stays_and_the_younger_says_why() {
    let site = Site::start(Programs::find().unwrap(), Layout { hosts: 1, gateways: 0 }).unwrap();
    deploy(&site, 0).unwrap();
    // A KV pool of more than this machine's memory: 2³⁰ tokens.
    applied(&site, |m| {
        m["metadata"]["name"] = "greedy".into();
        m["spec"]["context"]["poolTokens"] = 1_073_741_824.into();
    })
    .unwrap();
    says(&message_of(&site, "infd/greedy", "Ready"), &["GiB", "poolTokens"]);
    site.wait_for(DEPLOYMENT, "Ready", Duration::from_secs(5)).unwrap();
}
