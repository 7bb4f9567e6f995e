//! Connections that follow their process's credentials.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::io::ErrorKind;
use std::time::{Duration, SystemTime};

use tandem_pki::{
    CertificateAuthority, ClientCertificates, Connection, Credentials, HOST_LIFETIME, Identity, dial,
    incoming, kept_fresh, serial_of_certificate,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

struct Cluster {
    authority: CertificateAuthority,
    worker: Identity,
}

impl Cluster {
    fn new() -> Self {
        let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
        Self { authority, worker: Identity::worker("mac-a", "kimi-1").unwrap() }
    }

    fn credentials(&self, identity: &Identity) -> Credentials {
        self.authority.credentials(identity, &[], SystemTime::now(), HOST_LIFETIME).unwrap()
    }

    fn gateway(&self) -> Credentials {
        self.credentials(&Identity::gateway("edge").unwrap())
    }

    /// A server with these credentials, and where it listens.
    async fn serve(
        &self,
        own: watch::Receiver<Credentials>,
    ) -> (Endpoint, ReceiverStream<std::io::Result<Connection>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        (endpoint, incoming(listener, own, ClientCertificates::Required).unwrap())
    }

    async fn call(
        &self,
        endpoint: &Endpoint,
        own: &watch::Sender<Credentials>,
    ) -> Result<Channel, tonic::transport::Error> {
        within(dial(endpoint, &self.worker.server_name(), own.subscribe())).await
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.unwrap()
}

fn serial(own: &Credentials) -> String {
    serial_of_certificate(&pem::parse(&own.certificate_pem).unwrap().into_contents()).unwrap()
}

/// Until the other end has said all, or the connection breaks.
async fn read_to_end(connection: &mut Connection) -> std::io::Result<()> {
    let mut bytes = [0; 256];
    while connection.read(&mut bytes).await? > 0 {}
    Ok(())
}

#[tokio::test]
async fn who_is_revoked_is_cut_off_and_not_let_in_again_and_nobody_else_is() {
    let cluster = Cluster::new();
    let own = watch::Sender::new(cluster.credentials(&cluster.worker));
    let (endpoint, mut callers) = cluster.serve(own.subscribe()).await;
    let (thief, other) = (watch::Sender::new(cluster.gateway()), watch::Sender::new(cluster.gateway()));
    let _stolen = cluster.call(&endpoint, &thief).await.unwrap();
    let mut thiefs = within(callers.next()).await.unwrap().unwrap();
    let _good = cluster.call(&endpoint, &other).await.unwrap();
    let mut others = within(callers.next()).await.unwrap().unwrap();

    let revoked = serial(&thief.borrow());
    own.send_modify(|own| *own = own.trusting("", [revoked]));
    assert_eq!(within(read_to_end(&mut thiefs)).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(cluster.call(&endpoint, &thief).await);
    // The next one who gets through is somebody else.
    let third = watch::Sender::new(cluster.gateway());
    let _third = cluster.call(&endpoint, &third).await.unwrap();
    let through = within(callers.next()).await.unwrap().unwrap();
    let shown = tonic::transport::server::Connected::connect_info(&through).peer_certs().unwrap();
    assert_eq!(serial_of_certificate(&shown[0]).unwrap(), serial(&third.borrow()));
    let still_open = tokio::time::timeout(Duration::from_millis(100), read_to_end(&mut others)).await;
    assert!(still_open.is_err(), "{still_open:?}");
}

#[tokio::test]
async fn a_server_that_is_revoked_is_hung_up_on() {
    let cluster = Cluster::new();
    let own = watch::Sender::new(cluster.credentials(&cluster.worker));
    let (endpoint, mut callers) = cluster.serve(own.subscribe()).await;
    let caller = watch::Sender::new(cluster.gateway());
    let _channel = cluster.call(&endpoint, &caller).await.unwrap();
    let mut connection = within(callers.next()).await.unwrap().unwrap();
    let revoked = serial(&own.borrow());
    caller.send_modify(|caller| *caller = caller.trusting("", [revoked]));
    // Whether it says good-bye or not, it is gone.
    drop(within(read_to_end(&mut connection)).await);
    assert!(cluster.call(&endpoint, &caller).await.is_err());
}

#[tokio::test]
async fn a_renewed_certificate_and_another_authority_count_from_the_next_connection_on() {
    let (cluster, next) = (Cluster::new(), Cluster::new());
    let dir = tempfile::tempdir().unwrap();
    let first = cluster.credentials(&cluster.worker);
    first.save(dir.path()).unwrap();
    let mut own = kept_fresh(dir.path().to_owned(), first.clone());
    let (endpoint, mut callers) = cluster.serve(own.clone()).await;
    let stranger = watch::Sender::new(next.gateway());
    assert!(cluster.call(&endpoint, &stranger).await.is_err());

    let both = format!("{}{}", first.ca_pem, next.authority.certificate_pem());
    next.credentials(&cluster.worker).trusting(&both, []).save(dir.path()).unwrap();
    within(own.changed()).await.unwrap();
    let _channel = cluster.call(&endpoint, &stranger).await.unwrap();
    within(callers.next()).await.unwrap().unwrap();
}
