//! Pods of a real API server join by their projected tokens, and nobody else does.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::time::Duration;

use tandem_control_api::fleet_client::FleetClient;
use tandem_control_api::{AuthorityRequest, Role, RotateAuthorityRequest};
use tandem_pki::{Credentials, EnrollError, Enrollment, Identity, PodFiles, Proof};
use world::kubernetes::{AGENTS, AUDIENCE, SYSTEM, Site};
use world::within;

fn refusal(result: Result<Credentials, EnrollError>) -> String {
    match result {
        Err(EnrollError::Refused(sentence)) => sentence,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_pod_joins_as_its_node_and_as_nothing_else() {
    let site = Site::start().await;
    site.node("n1");
    site.node("n2.example");
    site.pod(AGENTS, "tandem-agent", "agent-1", "n1");
    site.pod(AGENTS, "tandem-agent", "agent-2", "n2.example");
    site.pod(AGENTS, "other", "other-1", "n1");
    site.pod(SYSTEM, "tandem-gateway", "gateway-1", "n1");

    let token = site.token(AGENTS, "tandem-agent", Some("agent-1"), AUDIENCE);
    let first = site.join(Role::Host, "n1", &token).await.unwrap();
    assert_eq!(first.identity().unwrap(), Identity::host("n1").unwrap());
    assert!(refusal(site.join(Role::Host, "n2-example", &token).await).contains("node n1"));
    assert!(refusal(site.join(Role::Gateway, "n1", &token).await).contains("tandem-gateway"));
    let dotted = site.token(AGENTS, "tandem-agent", Some("agent-2"), AUDIENCE);
    site.join(Role::Host, "n2-example", &dotted).await.unwrap();

    let unbound = site.token(AGENTS, "tandem-agent", None, AUDIENCE);
    assert!(refusal(site.join(Role::Host, "n1", &unbound).await).contains("bound to no pod"));
    let elsewhere = site.token(AGENTS, "tandem-agent", Some("agent-1"), "vault");
    assert!(refusal(site.join(Role::Host, "n1", &elsewhere).await).contains("audience"));
    let foreign = site.token(AGENTS, "other", Some("other-1"), AUDIENCE);
    assert!(refusal(site.join(Role::Host, "n1", &foreign).await).contains("tandem-agents/other"));
    let gateway = site.token(SYSTEM, "tandem-gateway", Some("gateway-1"), AUDIENCE);
    site.join(Role::Gateway, "gateway-1", &gateway).await.unwrap();
    assert!(refusal(site.join(Role::Gateway, "gateway-2", &gateway).await).contains("gateway-1"));

    // The same node comes again, as when its folder was lost: both certificates are good. A node that was deleted and made
    // again is another: the old certificate is no longer taken.
    let again = site.token(AGENTS, "tandem-agent", Some("agent-1"), AUDIENCE);
    let second = site.join(Role::Host, "n1", &again).await.unwrap();
    for credentials in [&first, &second] {
        drop(world::Host::connect(&site.world.url, "n1", credentials.clone(), 0).await.unwrap());
    }
    site.plane.kubectl(&["delete", "pod", "agent-1", "-n", AGENTS, "--force", "--grace-period=0"]).unwrap();
    site.plane.kubectl(&["delete", "node", "n1"]).unwrap();
    // The API server believes a token that it has seen for some ten seconds more: the node is gone at once.
    within("the token's end", async {
        loop {
            let refusal = refusal(site.join(Role::Host, "n1", &again).await);
            if refusal.contains("does not know this token") {
                return;
            }
            assert!(refusal.contains("node n1, which is gone"), "{refusal}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    site.node("n1");
    site.pod(AGENTS, "tandem-agent", "agent-3", "n1");
    let reborn = site.token(AGENTS, "tandem-agent", Some("agent-3"), AUDIENCE);
    let third = site.join(Role::Host, "n1", &reborn).await.unwrap();
    let refused = world::Host::connect(&site.world.url, "n1", second, 0).await.err().unwrap();
    assert!(refused.message().contains("revoked"), "{refused}");
    drop(world::Host::connect(&site.world.url, "n1", third, 0).await.unwrap());
}

#[tokio::test]
async fn pods_and_people_find_the_authorities_of_each_phase() {
    let site = Site::start().await;
    site.node("n1");
    site.pod(AGENTS, "tandem-agent", "agent-1", "n1");
    let (old, _) = site.published().unwrap();
    let mounted = site.ca(AGENTS);
    let mounted_before = std::fs::read_to_string(&mounted).unwrap();
    let fleet = |own: &Credentials| FleetClient::new(world::channel(&site.world.url, own));
    fleet(&old).rotate_authority(RotateAuthorityRequest::default()).await.unwrap();
    let authorities = || {
        let text = std::fs::read_to_string(site.ca(AGENTS)).unwrap();
        (text.matches("BEGIN CERTIFICATE").count(), text)
    };
    assert_eq!(authorities().0, 2, "pods that start now are told of both");
    let phase = async |wanted: &str| {
        within(wanted, async {
            loop {
                let (own, _) = site.published().unwrap();
                if let Ok(status) = fleet(&own).authority(AuthorityRequest {}).await
                    && status.get_ref().phase == wanted
                {
                    return own;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
    };
    let admin = phase("Reissuing").await;
    // A pod whose mount is old joins, since the new authority is vouched for by the old one. It is revoked again: nobody is there who
    // would confirm what it trusts.
    let token = site.token(AGENTS, "tandem-agent", Some("agent-1"), AUDIENCE);
    let files = PodFiles { token, ca: mounted };
    std::fs::write(&files.ca, &mounted_before).unwrap();
    let enrollment = Enrollment {
        operator: site.world.url.clone(),
        proof: Proof::Pod(files),
        role: Role::Host,
        name: "n1".to_owned(),
        addresses: Vec::new(),
    };
    let joined = within("an answer", tandem_pki::join(&enrollment)).await.unwrap();
    assert_eq!(joined.authorities().len(), 2);
    let revoke =
        tandem_control_api::RevokeRequest { role: Role::Host.into(), name: "n1".into(), force: false };
    fleet(&admin).revoke(revoke).await.unwrap();

    phase("Stable").await;
    // It is published once it is so, one after the other.
    let (admin, newest) = within("what is published of the new one", async {
        loop {
            let ((count, newest), (admin, _)) = (authorities(), site.published().unwrap());
            if count == 1 && admin.ca_pem == newest {
                return (admin, newest);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert_ne!(newest, mounted_before);
    assert!(admin.issuer(&newest).unwrap().is_some() && old.issuer(&newest).unwrap().is_none());
    // The pod comes again by itself.
    let token = site.token(AGENTS, "tandem-agent", Some("agent-1"), AUDIENCE);
    site.join(Role::Host, "n1", &token).await.unwrap();
}
