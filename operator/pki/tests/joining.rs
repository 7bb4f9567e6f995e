//! Joining over real sockets: the token is sent to the pinned authority and to nobody else.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tandem_control_api::enrollment_server::{Enrollment as EnrollmentService, EnrollmentServer};
use tandem_control_api::{Certificate, JoinRequest, Role};
use tandem_pki::{
    CertificateAuthority, ClientCertificates, Credentials, EnrollError, Enrollment, HOST_LIFETIME, Identity,
    JoinToken, OPERATOR_LIFETIME, install_tls_provider, join,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

struct Desk {
    authority: Arc<CertificateAuthority>,
    tokens_seen: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl EnrollmentService for Desk {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Certificate>, Status> {
        let request = request.into_inner();
        self.tokens_seen.lock().unwrap().push(request.token.clone());
        let identity = Identity::host(&request.name).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let issued = self
            .authority
            .sign(&request.csr_pem, &identity, &request.addresses, SystemTime::now(), HOST_LIFETIME)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(Certificate {
            certificate_pem: issued.certificate_pem,
            ca_pem: issued.ca_pem,
            not_after: issued.not_after,
        }))
    }
}

async fn operator(
    authority: Arc<CertificateAuthority>,
    as_who: &Identity,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let own = authority.credentials(as_who, &[], SystemTime::now(), OPERATOR_LIFETIME).unwrap();
    serve(authority, own).await
}

async fn serve(authority: Arc<CertificateAuthority>, own: Credentials) -> (String, Arc<Mutex<Vec<String>>>) {
    install_tls_provider();
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let tokens_seen = Arc::new(Mutex::new(Vec::new()));
    let desk = Desk { authority, tokens_seen: tokens_seen.clone() };
    tokio::spawn(
        Server::builder()
            .tls_config(own.server_tls(ClientCertificates::Optional))
            .unwrap()
            .add_service(EnrollmentServer::new(desk))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (url, tokens_seen)
}

fn enrollment(operator: &str, token: JoinToken) -> Enrollment {
    Enrollment {
        operator: operator.to_owned(),
        proof: tandem_pki::Proof::Token(token),
        role: Role::Host,
        name: "mac-a".to_owned(),
        addresses: vec!["127.0.0.1".to_owned()],
    }
}

fn authority() -> Arc<CertificateAuthority> {
    Arc::new(CertificateAuthority::create(SystemTime::now()).unwrap())
}

#[tokio::test]
async fn a_token_buys_a_certificate_for_its_name() {
    let authority = authority();
    let (url, seen) = operator(authority.clone(), &Identity::Operator).await;
    let token = JoinToken::generate(authority.fingerprint());
    let credentials = join(&enrollment(&url, token.clone())).await.unwrap();
    assert_eq!(credentials.identity().unwrap(), Identity::host("mac-a").unwrap());
    assert_eq!(*seen.lock().unwrap(), [token.to_string()]);
}

#[tokio::test]
async fn a_foreign_cluster_never_sees_the_token() {
    let (url, seen) = operator(authority(), &Identity::Operator).await;
    let token = JoinToken::generate(authority().fingerprint());
    let error = join(&enrollment(&url, token)).await.unwrap_err();
    assert!(matches!(error, EnrollError::WrongAuthority(_)), "{error:?}");
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn another_member_of_the_cluster_cannot_pose_as_operator() {
    let authority = authority();
    let (url, seen) = operator(authority.clone(), &Identity::host("mallory").unwrap()).await;
    let token = JoinToken::generate(authority.fingerprint());
    let error = join(&enrollment(&url, token)).await.unwrap_err();
    assert!(matches!(error, EnrollError::WrongAuthority(_)), "{error:?}");
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn nobody_there_and_no_address_are_told_apart() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let token = JoinToken::generate(authority().fingerprint());
    let error = join(&enrollment(&format!("https://{closed}"), token.clone())).await.unwrap_err();
    assert!(matches!(error, EnrollError::Unreachable(_)), "{error:?}");
    for bad in ["operator:7443", "http://127.0.0.1:7443", "https://", ""] {
        let error = join(&enrollment(bad, token.clone())).await.unwrap_err();
        assert!(matches!(error, EnrollError::BadAddress(_)), "{bad}: {error:?}");
    }
}

#[tokio::test]
async fn while_an_authority_is_replaced_a_token_of_either_lets_in() {
    install_tls_provider();
    let now = SystemTime::now();
    let old = CertificateAuthority::create(now).unwrap();
    let new = Arc::new(CertificateAuthority::create(now).unwrap());
    let mut own = new.credentials(&Identity::Operator, &[], now, OPERATOR_LIFETIME).unwrap();
    own.certificate_pem += &new.vouched_for_by(&old, now, OPERATOR_LIFETIME).unwrap();
    own.ca_pem = format!("{}{}", old.certificate_pem(), new.certificate_pem());
    let (operator, _) = serve(new.clone(), own).await;
    for pinned in [old.fingerprint(), new.fingerprint()] {
        let joined = join(&enrollment(&operator, JoinToken::generate(pinned))).await.unwrap();
        assert_eq!(joined.issuer(&joined.ca_pem).unwrap(), Some(new.fingerprint()));
    }
    // Nobody vouches for the new one with the old one's name alone.
    let stranger = CertificateAuthority::create(now).unwrap();
    let result = join(&enrollment(&operator, JoinToken::generate(stranger.fingerprint()))).await;
    assert!(matches!(result, Err(EnrollError::WrongAuthority(_))), "{result:?}");
    let mut own = new.credentials(&Identity::Operator, &[], now, OPERATOR_LIFETIME).unwrap();
    own.ca_pem = format!("{}{}", old.certificate_pem(), new.certificate_pem());
    let (operator, _) = serve(new, own).await;
    let result = join(&enrollment(&operator, JoinToken::generate(old.fingerprint()))).await;
    assert!(matches!(result, Err(EnrollError::WrongAuthority(_))), "{result:?}");
}
