//! Who etcd lets in: clients with certificates, users with passwords and roles, and what everybody else is told.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};
use tandem_servers::Etcd;
use tandem_store::{
    API_VERSION, ApplyOptions, EtcdOptions, EtcdStore, EtcdTls, Key, Kind, Selector, Store, StoreError,
    SystemClock,
};

const PASSWORD: &str = "a word that no log may hold";

fn with_tls(etcd: &Etcd, name: &str) -> EtcdOptions {
    let own = Some(etcd.client_certificate(name).unwrap());
    let tls = Some(EtcdTls { ca: etcd.ca().unwrap().to_owned(), own });
    EtcdOptions { endpoints: etcd.endpoints(), prefix: "/tandem".to_owned(), tls, user: None }
}

fn as_user(etcd: &Etcd, name: &str, password: &str) -> EtcdOptions {
    let user = Some((name.to_owned(), password.to_owned()));
    EtcdOptions { endpoints: etcd.endpoints(), prefix: "/tandem".to_owned(), tls: None, user }
}

async fn connect(options: EtcdOptions) -> Result<EtcdStore, StoreError> {
    EtcdStore::connect(options, Arc::new(SystemClock)).await
}

/// What somebody is told who is not let in, with all causes.
async fn refused(options: EtcdOptions) -> String {
    let error = connect(options).await.err().expect("who is not let in has no store");
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said.push_str(": ");
        said.push_str(&error.to_string());
        cause = error.source();
    }
    assert!(!said.contains(PASSWORD), "a secret: {said}");
    said
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": "InferenceDeployment",
        "metadata": {"name": name, "namespace": "llm"},
        "spec": {
            "model": {"name": name, "source": "file:///models/tiny"},
            "quant": "Q8_0",
            "context": {"tokens": 1024},
        },
    })
}

/// Writes, reads, watches and leads, as an operator does.
async fn works(store: &EtcdStore, name: &str) {
    store.apply(deployment(name), &ApplyOptions::by("ci")).await.unwrap();
    let key = Key::deployment("llm", name);
    assert!(store.get(&key).await.unwrap().is_some());
    let mut watch = store.watch(Selector::all(Kind::InferenceDeployment), None).await.unwrap();
    watch.next().await.unwrap().unwrap();
    let lease = store.acquire("leader", "a", Duration::from_secs(60), 0).await.unwrap();
    store.renew(&lease).await.unwrap();
}

#[tokio::test]
async fn clients_show_certificates() {
    let etcd = Etcd::start_with_tls(1).unwrap();
    works(&connect(with_tls(&etcd, "tandem")).await.unwrap(), "kimi").await;

    let other = Etcd::start_with_tls(1).unwrap();
    let mut stranger = with_tls(&etcd, "tandem");
    stranger.tls.as_mut().unwrap().ca = other.ca().unwrap().to_owned();
    let said = refused(stranger).await;
    assert!(said.contains("--etcd-ca"), "{said}");

    let mut nobody = with_tls(&etcd, "tandem");
    nobody.tls.as_mut().unwrap().own = None;
    let said = refused(nobody).await;
    assert!(said.contains("--etcd-cert"), "{said}");
}

#[tokio::test]
async fn users_have_passwords_and_a_role_that_ends_at_the_prefix() {
    let mut etcd = Etcd::start(1).unwrap();
    etcd.ask_for_names("tandem", PASSWORD, "/tandem/").unwrap();
    let store = connect(as_user(&etcd, "tandem", PASSWORD)).await.unwrap();
    works(&store, "kimi").await;

    let said = refused(as_user(&etcd, "tandem", "a guess")).await;
    assert!(said.contains("--etcd-password-file"), "{said}");
    let said = refused(EtcdOptions { user: None, ..as_user(&etcd, "", "") }).await;
    assert!(said.contains("--etcd-user"), "{said}");
    let beyond = EtcdOptions { prefix: "/other".to_owned(), ..as_user(&etcd, "tandem", PASSWORD) };
    let said = refused(beyond).await;
    assert!(said.contains("grant-permission") && said.contains("/other/"), "{said}");
}

#[tokio::test]
async fn a_certificate_names_the_user() {
    let mut etcd = Etcd::start_with_tls(1).unwrap();
    etcd.ask_for_names("tandem", PASSWORD, "/tandem/").unwrap();
    works(&connect(with_tls(&etcd, "tandem")).await.unwrap(), "kimi").await;
    refused(with_tls(&etcd, "somebody")).await;
}
