//! Who gets in, under which name, and who does not.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod world;

use std::collections::BTreeSet;
use std::time::SystemTime;

use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::enrollment_client::EnrollmentClient;
use tandem_control_api::gateways_client::GatewaysClient;
use tandem_control_api::objects_client::ObjectsClient;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    AgentHello, AgentMessage, CertifyRequest, DeleteRequest, JoinRequest, JoinTokenRequest, ListRequest,
    ObjectRef, Protocol, RevokeRequest, Role, RoutesRequest, StatusRequest, agent_message,
};
use tandem_pki::{
    CertificateAuthority, Credentials, EnrollError, HOST_LIFETIME, Identity, JoinToken, KeyAndRequest,
    serial_of_certificate,
};
use tonic::Code;
use world::{Host, World, report, within};

fn refused(result: Result<tandem_pki::Credentials, EnrollError>) -> String {
    match result {
        Err(EnrollError::Refused(sentence)) => sentence,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_token_buys_a_certificate_once() {
    let world = World::start().await;
    let token = world.token(Role::Host, "").await;
    let credentials = world.join_with(&token, Role::Host, "mac-a").await.unwrap();
    assert_eq!(credentials.identity().unwrap(), Identity::host("mac-a").unwrap());
    let sentence = refused(world.join_with(&token, Role::Host, "mac-b").await);
    assert!(sentence.contains("used already"), "{sentence}");
}

#[tokio::test]
async fn two_that_spend_one_token_at_once_get_one_certificate() {
    let world = World::start().await;
    let token = world.token(Role::Host, "").await;
    let (one, two) = tokio::join!(
        world.join_with(&token, Role::Host, "mac-a"),
        world.join_with(&token, Role::Host, "mac-b")
    );
    assert_ne!(one.is_ok(), two.is_ok());
}

#[tokio::test]
async fn an_expired_token_buys_nothing() {
    let world = World::start().await;
    let request = JoinTokenRequest { role: Role::Host.into(), name: String::new(), ttl_seconds: 1 };
    let token = world.fleet().create_join_token(request).await.unwrap().into_inner();
    // Tokens end by the wall clock.
    within("the token's end", async {
        while jiff::Timestamp::now().as_second() <= token.expires_at + 1 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    })
    .await;
    let sentence = refused(world.join_with(&token.token, Role::Host, "mac-a").await);
    assert!(sentence.contains("expired"), "{sentence}");
}

#[tokio::test]
async fn a_token_is_bound_to_its_role_and_name() {
    let world = World::start().await;
    let token = world.token(Role::Host, "mac-a").await;
    let sentence = refused(world.join_with(&token, Role::Gateway, "mac-a").await);
    assert!(sentence.contains("a host join, not a gateway"), "{sentence}");
    let sentence = refused(world.join_with(&token, Role::Host, "mac-b").await);
    assert!(sentence.contains("is for mac-a, not for mac-b"), "{sentence}");
    // What was refused has not spent it.
    world.join_with(&token, Role::Host, "mac-a").await.unwrap();
}

#[tokio::test]
async fn a_taken_name_needs_a_token_of_its_own_and_revokes_the_former_holder() {
    let world = World::start().await;
    let mut gateway = world.gateway("edge").await;
    let any = world.token(Role::Host, "").await;
    let former = world.join(Role::Host, "mac-a").await;
    let sentence = refused(world.join_with(&any, Role::Host, "mac-a").await);
    assert!(sentence.contains("has joined already"), "{sentence}");
    world.join(Role::Host, "mac-a").await;
    gateway.table("a revoked serial", |table| table.revoked.len() == 1).await;
    let status = Host::connect(&world.url, "mac-a", former, 0).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("revoked"), "{status}");
}

/// A key and a certificate, asked for with `by`.
async fn certified(world: &World, by: &Credentials, role: Role, name: &str) -> Result<String, tonic::Status> {
    let own = KeyAndRequest::generate().unwrap();
    let request =
        CertifyRequest { role: role.into(), name: name.into(), csr_pem: own.csr_pem, addresses: Vec::new() };
    let answer = AgentsClient::new(world.channel(by)).certify(request).await?.into_inner();
    Ok(answer.certificate_pem)
}

fn serial(certificate_pem: &str) -> String {
    serial_of_certificate(&pem::parse(certificate_pem).unwrap().into_contents()).unwrap()
}

#[tokio::test]
async fn who_is_revoked_loses_session_certificates_and_what_it_runs() {
    let world = World::start().await;
    let mut edge = world.gateway("edge").await;
    let mut host = world.host("mac-a").await;
    let mut other = world.host("mac-b").await;
    let worker = certified(&world, &host.credentials, Role::Worker, "kimi-1").await.unwrap();
    let gateway = certified(&world, &host.credentials, Role::Gateway, "mac-a").await.unwrap();
    let renewed = certified(&world, &host.credentials, Role::Host, "mac-a").await.unwrap();

    let revoke =
        |role: Role, name: &str| RevokeRequest { role: role.into(), name: name.into(), force: false };
    let status = world.fleet().revoke(revoke(Role::Gateway, "mac-a")).await.unwrap_err();
    assert!(status.message().contains("revoked with its host"), "{status}");
    let answer = world.fleet().revoke(revoke(Role::Host, "mac-a")).await.unwrap().into_inner();
    let all = [&host.credentials.certificate_pem, &worker, &gateway, &renewed].map(|pem| serial(pem));
    assert_eq!(BTreeSet::from_iter(answer.serials), BTreeSet::from_iter(all.clone()));

    // Its session ends, and tells it why; another host is told whom not to trust.
    let ended = within("the end of the session", async {
        loop {
            match host.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("nobody says why"),
                Err(status) => return status,
            }
        }
    });
    let ended = ended.await;
    assert_eq!((ended.code(), ended.message().contains("revoked")), (Code::Unauthenticated, true));
    within("word to another host", async {
        loop {
            let Ok(Some(Down::Trust(trust))) = other.next().await else { continue };
            if all.iter().all(|serial| trust.revoked.contains(serial)) {
                assert!(trust.ca_pem.contains("BEGIN CERTIFICATE"));
                return;
            }
        }
    })
    .await;
    edge.table("what is revoked", |table| all.iter().all(|serial| table.revoked.contains(serial))).await;
    let status = certified(&world, &host.credentials, Role::Host, "mac-a").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");

    // A gateway's route table ends with it.
    world.fleet().revoke(revoke(Role::Gateway, "edge")).await.unwrap();
    within("the end of the table", async { while let Ok(Some(_)) = edge.tables.message().await {} }).await;
    assert!(certified(&world, &edge.credentials, Role::Gateway, "edge").await.is_err());
    // The name is kept for who has a token made for it.
    let any = world.token(Role::Host, "").await;
    assert!(refused(world.join_with(&any, Role::Host, "mac-a").await).contains("has joined already"));
    world.join(Role::Host, "mac-a").await;
}

#[tokio::test]
async fn a_hosts_gateway_renews_itself_and_stays_the_hosts() {
    let world = World::start().await;
    let host = world.join(Role::Host, "mac-a").await;
    let own = KeyAndRequest::generate().unwrap();
    let request = CertifyRequest {
        role: Role::Gateway.into(),
        name: "mac-a".into(),
        csr_pem: own.csr_pem,
        addresses: Vec::new(),
    };
    let answer = AgentsClient::new(world.channel(&host)).certify(request).await.unwrap().into_inner();
    let gateway = Credentials::new(answer.certificate_pem, own.key_pem, answer.ca_pem);
    let renewed = certified(&world, &gateway, Role::Gateway, "mac-a").await.unwrap();
    // Had it become a member by itself, its host could not have one any more.
    certified(&world, &host, Role::Gateway, "mac-a").await.unwrap();
    let revoke = RevokeRequest { role: Role::Host.into(), name: "mac-a".into(), force: false };
    let answer = world.fleet().revoke(revoke).await.unwrap().into_inner();
    assert!(answer.serials.contains(&serial(&renewed)));
}

#[tokio::test]
async fn a_host_that_is_deleted_is_locked_out_and_its_name_is_free() {
    let world = World::start().await;
    let host = world.host("mac-a").await;
    host.report(&report(1 << 30)).await;
    let request = || DeleteRequest {
        r#ref: Some(ObjectRef {
            kind: "InferenceHost".into(),
            namespace: String::new(),
            name: "mac-a".into(),
        }),
    };
    let status = world.objects().delete(request()).await.unwrap_err();
    assert!(status.message().contains("stop its agent first"), "{status}");
    let credentials = host.credentials.clone();
    drop(host);
    within("the session's end", async {
        while world.objects().delete(request()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let status = Host::connect(&world.url, "mac-a", credentials, 0).await.err().unwrap();
    assert!(status.message().contains("revoked"), "{status}");
    let any = world.token(Role::Host, "").await;
    world.join_with(&any, Role::Host, "mac-a").await.unwrap();
}

#[tokio::test]
async fn a_token_of_another_cluster_is_not_even_sent() {
    let world = World::start().await;
    let other = CertificateAuthority::create(SystemTime::now()).unwrap();
    let foreign = JoinToken::generate(other.fingerprint()).to_string();
    let result = world.join_with(&foreign, Role::Host, "mac-a").await;
    assert!(matches!(result, Err(EnrollError::WrongAuthority(_))), "{result:?}");
}

#[tokio::test]
async fn a_made_up_token_is_unknown_and_a_torn_one_is_no_token() {
    let world = World::start().await;
    let real: JoinToken = world.token(Role::Host, "").await.parse().unwrap();
    let made_up = JoinToken::generate(real.ca()).to_string();
    let sentence = refused(world.join_with(&made_up, Role::Host, "mac-a").await);
    assert!(sentence.contains("not known here"), "{sentence}");
    // The id of a real token with another secret.
    let parts: Vec<String> = real.to_string().split('.').map(str::to_owned).collect();
    let guessed = format!("{}.{}.{}.{}", parts[0], parts[1], "0".repeat(32), parts[3]);
    let sentence = refused(world.join_with(&guessed, Role::Host, "mac-a").await);
    assert!(sentence.contains("not known here"), "{sentence}");

    let mut raw = EnrollmentClient::new(world.channel(&world.admin));
    let request = JoinRequest {
        token: "tandem1.x".into(),
        role: Role::Host.into(),
        name: "mac-a".into(),
        ..JoinRequest::default()
    };
    let status = raw.join(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("not a join token"), "{status}");
}

#[tokio::test]
async fn a_request_that_cannot_be_signed_spends_no_token() {
    let world = World::start().await;
    let token = world.token(Role::Host, "").await;
    let mut raw = EnrollmentClient::new(world.channel(&world.admin));
    let request = JoinRequest {
        token: token.clone(),
        role: Role::Host.into(),
        name: "mac-a".into(),
        csr_pem: "garbage".into(),
        addresses: Vec::new(),
        service_account_token: String::new(),
    };
    assert_eq!(raw.join(request).await.unwrap_err().code(), Code::InvalidArgument);
    world.join_with(&token, Role::Host, "mac-a").await.unwrap();
}

#[tokio::test]
async fn many_attempts_from_one_address_are_slowed_down() {
    let world = World::start().await;
    let mut raw = EnrollmentClient::new(world.channel(&world.admin));
    let mut codes = Vec::new();
    for _ in 0..60 {
        let request = JoinRequest { role: Role::Host.into(), name: "x".into(), ..JoinRequest::default() };
        codes.push(raw.join(request).await.unwrap_err().code());
    }
    assert!(codes.contains(&Code::ResourceExhausted));
}

#[tokio::test]
async fn a_host_speaks_for_itself_only() {
    let world = World::start().await;
    let host = world.host("mac-a").await;
    let mut agents = AgentsClient::new(world.channel(&host.credentials));
    let mut certify = async |role: Role, name: &str| {
        let csr_pem = KeyAndRequest::generate().unwrap().csr_pem;
        let request = CertifyRequest { role: role.into(), name: name.into(), csr_pem, addresses: Vec::new() };
        agents.certify(request).await.map(tonic::Response::into_inner)
    };
    for (role, name) in [(Role::Host, "mac-b"), (Role::Gateway, "mac-b"), (Role::Admin, "mac-a")] {
        assert_eq!(certify(role, name).await.unwrap_err().code(), Code::PermissionDenied, "{role:?} {name}");
    }
    assert_eq!(certify(Role::Worker, "no/label").await.unwrap_err().code(), Code::InvalidArgument);
    for (role, name) in [(Role::Host, "mac-a"), (Role::Worker, "kimi-0"), (Role::Gateway, "mac-a")] {
        let certificate = certify(role, name).await.unwrap();
        assert!(certificate.certificate_pem.contains("BEGIN CERTIFICATE"));
    }

    let edge = world.join(Role::Gateway, "edge").await;
    let mut gateways = AgentsClient::new(world.channel(&edge));
    for (role, name, allowed) in
        [(Role::Gateway, "edge", true), (Role::Gateway, "mac-a", false), (Role::Worker, "kimi-0", false)]
    {
        let csr_pem = KeyAndRequest::generate().unwrap().csr_pem;
        let request = CertifyRequest { role: role.into(), name: name.into(), csr_pem, addresses: Vec::new() };
        assert_eq!(gateways.certify(request).await.is_ok(), allowed, "{role:?} {name}");
    }

    let routes = RoutesRequest { protocol: Some(Protocol::own(&[])), url: String::new() };
    let status = GatewaysClient::new(world.channel(&host.credentials)).routes(routes).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);

    let list = ListRequest { kind: "InferenceHost".into(), ..ListRequest::default() };
    let status = ObjectsClient::new(world.channel(&host.credentials)).list(list).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("for an admin"), "{status}");
    let status = tandem_control_api::fleet_client::FleetClient::new(world.channel(&host.credentials))
        .status(StatusRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let result = Host::connect(&world.url, "admin", world.admin.clone(), 0).await;
    assert_eq!(result.err().map(|status| status.code()), Some(Code::PermissionDenied));
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_nobody() {
    let world = World::start().await;
    let other = CertificateAuthority::create(SystemTime::now()).unwrap();
    let mut foreign =
        other.credentials(&Identity::host("mac-a").unwrap(), &[], SystemTime::now(), HOST_LIFETIME).unwrap();
    foreign.ca_pem.clone_from(&world.admin.ca_pem);
    assert!(Host::connect(&world.url, "mac-a", foreign, 0).await.is_err());
}

#[tokio::test]
async fn a_newer_session_replaces_the_one_before() {
    let world = World::start().await;
    let mut first = world.host("mac-a").await;
    let second = world.connect("mac-a", first.credentials.clone(), 0).await;
    let status = within("the end of the first session", async {
        loop {
            match first.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a word"),
                Err(status) => return status,
            }
        }
    })
    .await;
    assert!(status.message().contains("newer session"), "{status}");
    second.report(&report(1 << 30)).await;
    world
        .until("InferenceHost", "mac-a", "the second session's report", |host| {
            host["status"]["address"] == "127.0.0.1"
        })
        .await;
}

#[tokio::test]
async fn an_agent_of_another_age_is_told_whom_to_upgrade() {
    let world = World::start().await;
    let credentials = world.join(Role::Host, "mac-a").await;
    let hello = AgentHello {
        protocol: Some(Protocol { lowest: 90, highest: 92, ..Protocol::default() }),
        highest_term: 0,
    };
    let message = AgentMessage { message: Some(agent_message::Message::Hello(hello)) };
    let status = AgentsClient::new(world.channel(&credentials))
        .session(tokio_stream::iter([message]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("upgrade the operator"), "{status}");
}

#[tokio::test]
async fn tokens_and_members_survive_a_restart() {
    let mut world = World::start().await;
    let host = world.host("mac-a").await;
    let token = world.token(Role::Host, "").await;
    let spent = world.token(Role::Host, "").await;
    world.join_with(&spent, Role::Host, "mac-b").await.unwrap();
    world.stop().await;
    world.start_again().await;
    let again = world.connect("mac-a", host.credentials.clone(), 0).await;
    again.report(&report(1 << 30)).await;
    world.join_with(&token, Role::Host, "mac-c").await.unwrap();
    assert!(refused(world.join_with(&spent, Role::Host, "mac-d").await).contains("not known"));
}

#[tokio::test]
async fn a_second_operator_on_the_same_folder_is_refused() {
    let world = World::start().await;
    let error =
        tandem_operator::start(world::settings(world.dir.path(), 0, world::impatient())).await.err().unwrap();
    assert!(error.to_string().contains("in use by another tandem-operator"), "{error:#}");
}

#[tokio::test]
async fn the_first_admin_finds_a_configuration_that_works() {
    let world = World::start().await;
    let text = std::fs::read_to_string(world.dir.path().join("operator/admin/tandem.yaml")).unwrap();
    assert!(text.contains(&format!("operator: {}", world.url)), "{text}");
    assert!(text.contains("credentials: ."), "{text}");
    let status = world.fleet().status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.store, "embedded");
}
