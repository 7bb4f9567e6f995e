//! The cluster's authority is replaced under members that are connected, away and new; admins come and go.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod world;

use std::time::Duration;

use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    AuthorityParty, AuthorityRequest, AuthorityStatus, CertifyRequest, ListAdminsRequest, RevokeRequest,
    Role, RotateAuthorityRequest, StatusRequest, Trust, TrustConfirmation,
};
use tandem_pki::{Credentials, EnrollError, Fingerprint, Identity, KeyAndRequest, is_stranger};
use tonic::{Code, Status};
use world::{Host, World, within};

async fn status(world: &World) -> AuthorityStatus {
    world.fleet().authority(AuthorityRequest {}).await.unwrap().into_inner()
}

async fn rotate(world: &World, without: &[(Role, &str)]) -> Result<AuthorityStatus, Status> {
    let without = without
        .iter()
        .map(|(role, name)| AuthorityParty {
            role: (*role).into(),
            name: (*name).into(),
            ..AuthorityParty::default()
        })
        .collect();
    Ok(world.fleet().rotate_authority(RotateAuthorityRequest { without }).await?.into_inner())
}

/// The credentials that the operator has written for its admin.
fn admin(world: &World) -> Credentials {
    Credentials::load(&world.dir.path().join("operator/admin")).unwrap()
}

/// Waits until the replacement is there, with the newest credentials of the admin.
async fn phase(world: &mut World, wanted: &str) -> AuthorityStatus {
    within(wanted, async {
        loop {
            world.admin = admin(world);
            if let Ok(status) = world.fleet().authority(AuthorityRequest {}).await
                && status.get_ref().phase == wanted
            {
                return status.into_inner();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

fn missing(status: &AuthorityStatus) -> Vec<&str> {
    let missing = status.parties.iter().filter(|party| party.waited_for && !party.lacks.is_empty());
    missing.map(|party| party.name.as_str()).collect()
}

/// The next word on whom to trust that names so many authorities, and this one as the signer.
async fn trust(host: &mut Host, authorities: usize, issuer: &str) -> Trust {
    within("word on whom to trust", async {
        loop {
            let Ok(Some(Down::Trust(trust))) = host.next().await else { continue };
            if trust.ca_pem.matches("BEGIN CERTIFICATE").count() == authorities && trust.issuer == issuer {
                return trust;
            }
        }
    })
    .await
}

/// As an agent and a gateway do once they have written down whom to trust.
async fn confirm(world: &World, own: &Credentials) -> Result<(), Status> {
    let authorities = own.authorities().iter().map(Fingerprint::to_string).collect();
    let request = TrustConfirmation { authorities, runs_gateway: false };
    AgentsClient::new(world.channel(own)).confirm_trust(request).await.map(drop)
}

/// As an agent and a gateway do when another authority signs.
async fn renew(world: &World, own: &Credentials, role: Role, name: &str) -> Credentials {
    let key = KeyAndRequest::generate().unwrap();
    let request =
        CertifyRequest { role: role.into(), name: name.into(), csr_pem: key.csr_pem, addresses: Vec::new() };
    let answer = AgentsClient::new(world.channel(own)).certify(request).await.unwrap().into_inner();
    Credentials::new(answer.certificate_pem, key.key_pem, answer.ca_pem)
}

#[tokio::test]
async fn everybody_comes_along_and_who_does_not_is_named() {
    let mut world = World::start().await;
    let before = status(&world).await;
    assert_eq!((before.phase.as_str(), before.authorities.len(), before.parties.len()), ("Stable", 1, 0));
    let old = before.authorities[0].fingerprint.clone();
    let mut host = world.host("mac-a").await;
    let mut edge = world.gateway("edge").await;
    let away = world.join(Role::Host, "mac-z").await;
    let early_token = world.token(Role::Host, "").await;

    let begun = rotate(&world, &[]).await.unwrap();
    assert_eq!((begun.phase.as_str(), missing(&begun)), ("Introducing", vec!["mac-a", "mac-z", "edge"]));
    let new = begun.authorities[1].fingerprint.clone();
    assert!(begun.authorities[0].signs && begun.authorities[0].fingerprint == old);
    let again = rotate(&world, &[]).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    assert!(again.message().contains("tandem authority status"), "{again}");

    // Everybody hears of both; the old one signs.
    let word = trust(&mut host, 2, &old).await;
    let table = edge.table("both", |table| table.ca_pem == word.ca_pem).await;
    assert_eq!(table.issuer, old);
    // A token of before and one of now let somebody in, each by the authority that it names.
    let late_token = world.token(Role::Host, "").await;
    assert!(early_token.ends_with(&old) && late_token.ends_with(&new));
    for (token, name) in [(&early_token, "mac-b"), (&late_token, "mac-c")] {
        let joined = world.join_with(token, Role::Host, name).await.unwrap();
        assert_eq!(joined.ca_pem, word.ca_pem);
        assert_eq!(joined.issuer(&joined.ca_pem).unwrap().unwrap().to_string(), old);
        world
            .fleet()
            .revoke(RevokeRequest { role: Role::Host.into(), name: name.into(), force: false })
            .await
            .unwrap();
    }
    let own = host.credentials.trusting(&word.ca_pem, []);
    confirm(&world, &own).await.unwrap();
    let gateway = edge.credentials.trusting(&word.ca_pem, []);
    confirm(&world, &gateway).await.unwrap();
    let waiting = status(&world).await;
    assert_eq!((waiting.phase.as_str(), missing(&waiting)), ("Introducing", vec!["mac-z"]));
    let said = waiting.parties.iter().find(|party| party.name == "mac-z").unwrap();
    assert!(said.lacks.contains("has not said"), "{}", said.lacks);
    // It confirms what it trusts: not enough.
    confirm(&world, &away).await.unwrap();
    let waiting = status(&world).await;
    let said = waiting.parties.iter().find(|party| party.name == "mac-z").unwrap();
    assert!(said.lacks.contains("does not trust"), "{}", said.lacks);

    // Without it, the new one signs.
    let unknown = rotate(&world, &[(Role::Host, "mac-y")]).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    rotate(&world, &[(Role::Host, "mac-z")]).await.unwrap();
    let reissuing = phase(&mut world, "Reissuing").await;
    assert_eq!(missing(&reissuing), ["mac-a", "edge"]);
    let word = trust(&mut host, 2, &new).await;
    edge.table("the new issuer", |table| table.issuer == new).await;
    // Who trusts the old one alone is led to the new one: it is heard, and told.
    let mut back = Host::connect(&world.url, "mac-z", away.clone(), 0).await.unwrap();
    trust(&mut back, 2, &new).await;
    // A token of before the replacement is good as long as its authority is: this one is spent, and the operator says so.
    let spent = world.join_with(&early_token, Role::Host, "mac-q").await;
    assert!(matches!(spent, Err(EnrollError::Refused(_))), "{spent:?}");

    // A renewal is of the new one, and counts once it is shown.
    let renewed = renew(&world, &own, Role::Host, "mac-a").await;
    assert_eq!(renewed.issuer(&word.ca_pem).unwrap().unwrap().to_string(), new);
    assert_eq!(missing(&status(&world).await), ["mac-a", "edge"]);
    confirm(&world, &renewed).await.unwrap();
    assert_eq!(missing(&status(&world).await), ["edge"]);
    let edge_renewed = renew(&world, &gateway, Role::Gateway, "edge").await;
    confirm(&world, &edge_renewed).await.unwrap();

    let done = phase(&mut world, "Stable").await;
    assert_eq!((done.authorities.len(), &done.authorities[0].fingerprint), (1, &new));
    let word = trust(&mut host, 1, &new).await;
    edge.table("the new one alone", |table| table.ca_pem == word.ca_pem).await;
    assert_eq!(world.admin.ca_pem, word.ca_pem);
    // The old one is worth nothing: neither to those who show it, nor to those who trust it alone.
    let refused = Host::connect(&world.url, "mac-a", own.trusting(&word.ca_pem, []), 0).await.err().unwrap();
    assert!(is_stranger(&refused), "{refused:?}");
    let refused = Host::connect(&world.url, "mac-z", away, 0).await.err().unwrap();
    assert!(is_stranger(&refused), "{refused:?}");
    drop(Host::connect(&world.url, "mac-a", renewed, 0).await.unwrap());
    let late = world.join_with(&early_token, Role::Host, "mac-d").await;
    assert!(matches!(late, Err(EnrollError::WrongAuthority(_))), "{late:?}");
    // Whoever was left behind joins again, and anybody new does.
    world.join(Role::Host, "mac-z").await;
    world.host("mac-d").await;
}

#[tokio::test]
async fn an_operator_that_is_restarted_in_any_phase_goes_on_from_there() {
    let mut world = World::start().await;
    let host = world.host("mac-a").await;
    rotate(&world, &[]).await.unwrap();
    world.stop().await;
    world.start_again().await;
    let begun = phase(&mut world, "Introducing").await;
    assert_eq!(missing(&begun), ["mac-a"]);
    let both = world.admin.ca_pem.clone();
    let own = host.credentials.trusting(&both, []);
    confirm(&world, &own).await.unwrap();
    // What was confirmed is not forgotten.
    world.stop().await;
    world.start_again().await;
    phase(&mut world, "Reissuing").await;
    world.stop().await;
    world.start_again().await;
    let renewed = renew(&world, &own, Role::Host, "mac-a").await;
    confirm(&world, &renewed).await.unwrap();
    let done = phase(&mut world, "Stable").await;
    world.stop().await;
    world.start_again().await;
    assert_eq!(phase(&mut world, "Stable").await.authorities, done.authorities);
    drop(Host::connect(&world.url, "mac-a", renewed.trusting(&world.admin.ca_pem, []), 0).await.unwrap());
    // And the next one is as good as the first.
    let again = rotate(&world, &[]).await.unwrap();
    assert_eq!(again.authorities[0], done.authorities[0]);
}

#[tokio::test]
async fn only_admins_replace_the_authority_and_only_members_confirm() {
    let world = World::start().await;
    let host = world.join(Role::Host, "mac-a").await;
    let mut fleet = tandem_control_api::fleet_client::FleetClient::new(world.channel(&host));
    let refused = fleet.rotate_authority(RotateAuthorityRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = fleet.authority(AuthorityRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert_eq!(confirm(&world, &world.admin).await.unwrap_err().code(), Code::PermissionDenied);
    let mut agents = AgentsClient::new(world.channel(&host));
    let mut say = async |authorities: Vec<String>| {
        let said = TrustConfirmation { authorities, runs_gateway: false };
        agents.confirm_trust(said).await.unwrap_err().code()
    };
    assert_eq!(say(vec!["x".to_owned()]).await, Code::InvalidArgument);
    assert_eq!(say(vec!["0".repeat(64); 9]).await, Code::InvalidArgument);
}

async fn certify_admin(world: &World, by: &Credentials, name: &str) -> Result<Credentials, Status> {
    let key = KeyAndRequest::generate().unwrap();
    let role = Role::Admin.into();
    let request = CertifyRequest { role, name: name.into(), csr_pem: key.csr_pem, addresses: Vec::new() };
    let mut fleet = tandem_control_api::fleet_client::FleetClient::new(world.channel(by));
    let answer = fleet.certify_admin(request).await?.into_inner();
    Ok(Credentials::new(answer.certificate_pem, key.key_pem, answer.ca_pem))
}

#[tokio::test]
async fn admins_are_made_listed_and_revoked_and_the_last_one_only_by_force() {
    let mut world = World::start().await;
    let revoke = |name: &str, force| RevokeRequest { role: Role::Admin.into(), name: name.into(), force };
    let names = async |world: &World| {
        let admins = world.fleet().list_admins(ListAdminsRequest {}).await.unwrap().into_inner().admins;
        admins.into_iter().map(|one| (one.name, one.certificates, one.caller)).collect::<Vec<_>>()
    };
    assert_eq!(names(&world).await, [("admin".to_owned(), 1, true)]);
    let ada = certify_admin(&world, &world.admin, "ada").await.unwrap();
    assert_eq!(ada.identity().unwrap(), Identity::admin("ada").unwrap());
    let taken = certify_admin(&world, &world.admin, "ada").await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
    // Her own she renews.
    let renewed = certify_admin(&world, &ada, "ada").await.unwrap();
    assert_eq!(names(&world).await, [("ada".to_owned(), 2, false), ("admin".to_owned(), 1, true)]);
    assert_eq!(world.fleet().revoke(revoke("eve", false)).await.unwrap_err().code(), Code::NotFound);

    let own = world.fleet().revoke(revoke("admin", false)).await.unwrap_err();
    assert!(own.message().contains("your own") && own.message().contains("--force"), "{own}");
    assert_eq!(world.fleet().revoke(revoke("ada", false)).await.unwrap().into_inner().serials.len(), 2);
    for gone in [&ada, &renewed] {
        let mut fleet = tandem_control_api::fleet_client::FleetClient::new(world.channel(gone));
        let refused = fleet.status(StatusRequest {}).await.unwrap_err();
        assert_eq!((refused.code(), refused.message().contains("revoked")), (Code::Unauthenticated, true));
    }
    // The name is free for new credentials.
    let ada = certify_admin(&world, &world.admin, "ada").await.unwrap();
    world.admin = ada;
    world.fleet().revoke(revoke("admin", false)).await.unwrap();
    let last = world.fleet().revoke(revoke("ada", false)).await.unwrap_err();
    assert!(last.message().contains("DATA-DIR/admin"), "{last}");
    world.fleet().revoke(revoke("ada", true)).await.unwrap();
    assert!(world.fleet().status(StatusRequest {}).await.is_err(), "nobody is left");

    // The way back is the operator's own folder.
    world.stop().await;
    world.start_again().await;
    world.admin = admin(&world);
    world.fleet().status(StatusRequest {}).await.unwrap();
    assert_eq!(names(&world).await.len(), 2);
}
