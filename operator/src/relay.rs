//! Any operator answers; what only the leader knows is relayed to it.
//!
//! Hosts' sessions, route tables and questions about them end at the one operator that leads, so that there is one memory of
//! who was heard when. Another operator passes them on under its own certificate, and says on whose behalf.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tandem_pki::Identity;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::caller;
use crate::cluster::Cluster;
use crate::lead::Leader;

/// Names who has called the operator that relays.
pub(crate) const ON_BEHALF_OF: &str = "tandem-on-behalf-of";

/// And its certificate, which may be revoked where the leader knows it already.
pub(crate) const CALLERS_SERIAL: &str = "tandem-callers-serial";

/// How long a caller waits for an operator that leads: two leases, and more.
const LEADER_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// A leader that answers nothing for this long is gone, or another one is soon.
const PING: Duration = Duration::from_secs(1);
/// Between two tries to reach one that leads.
const AGAIN: Duration = Duration::from_millis(100);

/// The way to the leader for one call.
pub(crate) struct Relay {
    cluster: Arc<Cluster>,
    channel: Channel,
    caller: Identity,
    serial: String,
    leader: Leader,
}

impl Relay {
    /// None: the call is answered here. Else the way to the operator that leads.
    pub(crate) async fn find<T>(
        cluster: &Arc<Cluster>,
        request: &Request<T>,
    ) -> Result<Option<Self>, Status> {
        let caller = caller::identity(cluster, request)?;
        let serial = caller::serial(request)?;
        let relayed = request.metadata().contains_key(ON_BEHALF_OF);
        let end = Instant::now() + LEADER_WITHIN;
        let mut leader = cluster.leader.subscribe();
        loop {
            let known = leader.borrow_and_update().clone();
            match &known {
                Leader::Here => return Ok(None),
                Leader::Elsewhere(_) if relayed => {
                    return Err(Status::unavailable("this operator no longer leads: call again"));
                }
                Leader::Elsewhere(url) => match connect(cluster, url).await {
                    Ok(channel) => {
                        let cluster = Arc::clone(cluster);
                        return Ok(Some(Self { cluster, channel, caller, serial, leader: known }));
                    }
                    Err(error) => {
                        tracing::debug!(url, error = caller::chain(&error), "the leader can't be reached")
                    }
                },
                Leader::Unknown => {}
            }
            // The leader may come back, and another may take its place.
            if Instant::now() >= end {
                return Err(Status::unavailable("no operator leads right now: call again"));
            }
            let until = if known == Leader::Unknown { end } else { end.min(Instant::now() + AGAIN) };
            drop(timeout_at(until, leader.changed()).await);
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The same request, on behalf of who made it.
    pub(crate) fn carry<T>(&self, request: Request<T>) -> Request<T> {
        self.carry_message(request.into_inner())
    }

    fn carry_message<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let caller = MetadataValue::try_from(self.caller.uri()).expect("an identity is ASCII");
        request.metadata_mut().insert(ON_BEHALF_OF, caller);
        let serial = MetadataValue::try_from(&self.serial).expect("hexadecimal digits are ASCII");
        request.metadata_mut().insert(CALLERS_SERIAL, serial);
        request
    }

    /// The same stream of requests; a caller who breaks off ends it.
    pub(crate) fn carry_stream<T: Send + 'static>(
        &self,
        request: Request<Streaming<T>>,
    ) -> Request<impl Stream<Item = T> + Send + 'static> {
        let messages = tokio_stream::StreamExt::map_while(request.into_inner(), Result::ok);
        self.carry_message(messages)
    }

    /// What the leader answers, for as long as it leads.
    pub(crate) fn answers<T: Send + 'static>(
        self,
        answers: Response<Streaming<T>>,
    ) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
        let mut leader = self.cluster.leader.subscribe();
        let was = self.leader.clone();
        let over = async move {
            while *leader.borrow_and_update() == was {
                if leader.changed().await.is_err() {
                    return;
                }
            }
        };
        let shutdown = self.cluster.shutdown.clone();
        answers.into_inner().take_until(over).take_until(shutdown.cancelled_owned())
    }
}

async fn connect(cluster: &Cluster, url: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .tls_config(cluster.own.credentials().client_tls(&Identity::Operator))?
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true);
    // A frozen leader's kernel accepts, and its handshake never ends.
    match timeout(CONNECT_WITHIN, endpoint.connect()).await {
        Ok(connected) => connected,
        Err(_) => endpoint.connect_timeout(Duration::from_nanos(1)).connect().await,
    }
}
