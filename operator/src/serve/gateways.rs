//! Gateways: the whole route table at once, and again after every change; what API keys have used.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use tandem_control_api::gateways_client::GatewaysClient;
use tandem_control_api::{Protocol, RouteTable, RoutesRequest, UsageReceipt, UsageReport, gateways_server};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::caller;
use crate::cluster::Cluster;
use crate::keys;
use crate::relay::Relay;

/// Longest URL of a gateway.
const LONGEST_URL: usize = 2048;

pub(super) struct Gateways(pub(super) Arc<Cluster>);

type Tables = Pin<Box<dyn Stream<Item = Result<RouteTable, Status>> + Send>>;

#[tonic::async_trait]
impl gateways_server::Gateways for Gateways {
    type RoutesStream = Tables;

    async fn routes(&self, request: Request<RoutesRequest>) -> Result<Response<Tables>, Status> {
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            let mut leader = GatewaysClient::new(relay.channel());
            let answer = leader.routes(relay.carry(request)).await?;
            return Ok(Response::new(Box::pin(relay.answers(answer))));
        }
        let gateway = caller::gateway(&self.0, &request)?;
        let serial = caller::serial(&request)?;
        let request = request.into_inner();
        Protocol::agree(request.protocol.as_ref()).map_err(Status::failed_precondition)?;
        if request.url.len() > LONGEST_URL {
            return Err(Status::invalid_argument("the gateway's URL is longer than 2048 characters"));
        }
        tracing::info!(%gateway, url = request.url, "gateway connected");
        let here = self.0.gateway_here(gateway.as_str(), &request.url);
        // Version 0 is the table before the first look at the store: silence is better than an empty table, since a gateway
        // serves from its last one.
        let tables = WatchStream::new(self.0.routes.subscribe())
            .filter(|table| std::future::ready(table.version > 0))
            .map(move |table| {
                let _while_streaming = &here;
                Ok(RouteTable::clone(&table))
            })
            .take_until(self.0.once_revoked(serial))
            .take_until(self.0.no_longer_leads())
            .take_until(self.0.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(tables)))
    }
    async fn report_usage(&self, request: Request<UsageReport>) -> Result<Response<UsageReceipt>, Status> {
        let gateway = caller::gateway(&self.0, &request)?;
        let report = request.into_inner();
        keys::count(&*self.0.store, &report, self.0.now()).await.map_err(super::keys::refused)?;
        tracing::debug!(%gateway, keys = report.used.len(), "counted what keys have used");
        Ok(Response::new(UsageReceipt {}))
    }
}
