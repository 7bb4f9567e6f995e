//! API keys, from `tandem keys` to the client: made, used, counted, kept without an operator, and taken back.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::Duration;

use serde_json::Value;
use tandem_e2e::{Client, Scene, until};

fn keys(scene: &Scene) -> Value {
    let list = scene.site.tandem(&["keys", "list", "-o", "json"]).unwrap();
    serde_json::from_str::<Value>(&list).unwrap()["items"].clone()
}

#[test]
fn a_key_lets_in_is_counted_outlives_the_operator_and_is_taken_back() {
    let mut scene = Scene::with_tokens(1, 0, 8).unwrap();
    let create = |scene: &Scene, arguments: &[&str]| {
        scene.site.tandem(&[&["keys", "create"], arguments].concat()).unwrap().trim().to_owned()
    };
    let key = create(&scene, &["ci", "--tokens-per-minute", "100000"]);
    let other = create(&scene, &["elsewhere", "-n", "prod"]);
    let client =
        |scene: &Scene, key: &str| -> Client { scene.site.client(0).unwrap().with_key(Some(key.to_owned())) };
    let listed = |scene: &Scene, key: &str| scene.lists(&client(scene, key)).unwrap();
    until(Duration::from_secs(30), || Ok(listed(&scene, &key))).unwrap();
    assert!(!listed(&scene, &other), "a key of another namespace");
    assert!(!listed(&scene, "tdm-0000000000000000000000000000000000000000"), "no key");

    let seen = scene.stream(&client(&scene, &key), |_| Ok(())).unwrap();
    scene.assert_same(&seen);
    until(Duration::from_secs(30), || Ok(keys(&scene)[0]["used"]["completionTokens"] == 8)).unwrap();
    let told = keys(&scene);
    assert_eq!(
        (told[0]["name"].as_str(), told[0]["used"]["requests"].as_u64()),
        (Some("ci"), Some(1)),
        "{told}"
    );
    assert!(!told.to_string().contains(&key));

    // Nobody is in charge, and who has a key is let in.
    scene.site.kill_operator().unwrap();
    let seen = scene.stream(&client(&scene, &key), |_| Ok(())).unwrap();
    scene.assert_same(&seen);
    scene.site.start_operator().unwrap();
    until(Duration::from_secs(60), || Ok(keys(&scene)[0]["used"]["completionTokens"] == 16)).unwrap();

    scene.site.tandem(&["keys", "delete", "ci"]).unwrap();
    until(Duration::from_secs(30), || Ok(!listed(&scene, &key))).unwrap();
    assert_eq!(keys(&scene), serde_json::json!([]));
}
