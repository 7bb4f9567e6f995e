//! A control plane comes up in seconds, with users, our resources and an audit log, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use tandem_servers::{ControlPlane, Etcd, User};

#[tokio::test]
async fn an_api_server_knows_our_resources_and_our_users_and_ends_with_its_test() {
    let plane = ControlPlane::start().await.unwrap();
    let kinds = plane.kubectl(&["api-resources", "--categories=tandem", "-o", "name"]).unwrap();
    assert!(kinds.contains("inferencedeployments"), "{kinds}");
    let spaces: Api<Namespace> = Api::all(plane.client(User::ADMIN).await.unwrap());
    assert!(spaces.list(&Default::default()).await.unwrap().items.len() >= 4);
    let stranger = User { name: "stranger", groups: &[] };
    let refused = plane.kubectl_as(stranger, &["get", "infd"]).unwrap_err().to_string();
    assert!(refused.contains("stranger") && refused.contains("forbidden"), "{refused}");
    let seen = plane.audit().unwrap();
    let by_stranger = |event: &&tandem_servers::AuditEvent| event.user.username == "stranger";
    assert!(seen.iter().filter(by_stranger).all(|event| !event.is_write()));
    let dir: PathBuf = plane.dir().to_owned();
    drop(plane);
    assert!(!dir.exists());
}

#[tokio::test]
async fn three_members_of_etcd_survive_the_loss_of_one() {
    let mut etcd = Etcd::start(3).unwrap();
    etcd.ctl(&["put", "key", "value"]).unwrap();
    etcd.member(0).kill();
    assert!(etcd.ctl(&["get", "key"]).unwrap().contains("value"));
    etcd.member(0).restart().unwrap();
    etcd.wait(0).unwrap();
}
