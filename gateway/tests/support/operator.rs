//! An operator of three services: joining by one token, renewal, and a route table.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{self, BoxStream, StreamExt};
use tandem_control_api::agents_server::{Agents, AgentsServer};
use tandem_control_api::enrollment_server::{Enrollment, EnrollmentServer};
use tandem_control_api::gateways_server::{Gateways, GatewaysServer};
use tandem_control_api::{
    AgentMessage, Certificate, CertifyRequest, JoinRequest, OperatorMessage, RouteTable, RoutesRequest,
    TrustConfirmation, TrustConfirmed, UsageReceipt, UsageReport,
};
use tandem_pki::{
    CertificateAuthority, ClientCertificates, HOST_LIFETIME, Identity, JoinToken, OPERATOR_LIFETIME,
    peer_identity,
};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

pub struct Operator {
    pub address: SocketAddr,
    pub token: String,
    pub tables: tokio::sync::watch::Sender<RouteTable>,
    /// What the gateway has said that keys have used.
    pub reports: tokio::sync::watch::Sender<Vec<UsageReport>>,
    runtime: Option<Runtime>,
}

impl Operator {
    pub fn start(authority: &Arc<CertificateAuthority>, table: RouteTable) -> Self {
        let own =
            authority.credentials(&Identity::Operator, &[], SystemTime::now(), OPERATOR_LIFETIME).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let token = JoinToken::generate(authority.fingerprint()).to_string();
        let tables = tokio::sync::watch::Sender::new(table);
        let desk = Desk { authority: authority.clone(), token: token.clone() };
        let reports = tokio::sync::watch::Sender::new(Vec::new());
        let routes = Routes { tables: tables.clone(), reports: reports.clone() };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            Server::builder()
                .tls_config(own.server_tls(ClientCertificates::Optional))
                .unwrap()
                .add_service(AgentsServer::new(Renewals(desk.authority.clone())))
                .add_service(EnrollmentServer::new(desk))
                .add_service(GatewaysServer::new(routes))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { address, token, tables, reports, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Desk {
    authority: Arc<CertificateAuthority>,
    token: String,
}

#[tonic::async_trait]
impl Enrollment for Desk {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Certificate>, Status> {
        let request = request.into_inner();
        if request.token != self.token {
            return Err(Status::permission_denied("not this token"));
        }
        let identity =
            Identity::gateway(&request.name).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let issued =
            self.authority.sign(&request.csr_pem, &identity, &[], SystemTime::now(), HOST_LIFETIME).unwrap();
        Ok(Response::new(Certificate {
            certificate_pem: issued.certificate_pem,
            ca_pem: issued.ca_pem,
            not_after: issued.not_after,
        }))
    }
}

struct Routes {
    tables: tokio::sync::watch::Sender<RouteTable>,
    reports: tokio::sync::watch::Sender<Vec<UsageReport>>,
}

#[tonic::async_trait]
impl Gateways for Routes {
    type RoutesStream = BoxStream<'static, Result<RouteTable, Status>>;

    async fn routes(&self, request: Request<RoutesRequest>) -> Result<Response<Self::RoutesStream>, Status> {
        assert!(matches!(peer_identity(&request)?, Identity::Gateway(_)));
        let tables = WatchStream::new(self.tables.subscribe()).map(Ok);
        // The watch's sender lives as long as the operator: the stream ends with it.
        Ok(Response::new(tables.chain(stream::pending()).boxed()))
    }

    async fn report_usage(&self, request: Request<UsageReport>) -> Result<Response<UsageReceipt>, Status> {
        assert!(matches!(peer_identity(&request)?, Identity::Gateway(_)));
        self.reports.send_modify(|reports| reports.push(request.into_inner()));
        Ok(Response::new(UsageReceipt {}))
    }
}

struct Renewals(Arc<CertificateAuthority>);

#[tonic::async_trait]
impl Agents for Renewals {
    type SessionStream = BoxStream<'static, Result<OperatorMessage, Status>>;

    async fn session(
        &self,
        _: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("gateways have no session"))
    }

    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<Certificate>, Status> {
        let caller = peer_identity(&request)?;
        let request = request.into_inner();
        assert_eq!(caller, Identity::gateway(&request.name).unwrap());
        let issued = self.0.sign(&request.csr_pem, &caller, &[], SystemTime::now(), HOST_LIFETIME).unwrap();
        Ok(Response::new(Certificate {
            certificate_pem: issued.certificate_pem,
            ca_pem: issued.ca_pem,
            not_after: issued.not_after,
        }))
    }

    async fn confirm_trust(&self, _: Request<TrustConfirmation>) -> Result<Response<TrustConfirmed>, Status> {
        Ok(Response::new(TrustConfirmed {}))
    }
}
