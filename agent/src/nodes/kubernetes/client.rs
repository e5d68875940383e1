//! A client of the API server that detects dead connections.

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{Client, Config, client::ConfigExt};
use std::time::Duration;
use tower::{BoxError, ServiceBuilder};

/// Idle time before TCP keep-alive probes. A watch only receives: without probes, the client would not detect that
/// the node's public address changed or that the NAT dropped its entry.
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// Time between probes, and unanswered probes until the connection is closed.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// Limit for connecting, and for unacknowledged data (TCP user timeout, RFC 5482).
const TIMEOUT: Duration = Duration::from_secs(30);

/// The client that `config` describes.
///
/// # Errors
/// The certificates or credentials of `config` cannot be used.
pub fn client(config: Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(TIMEOUT));
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(TIMEOUT));
    let connector = config.rustls_https_connector_with_connector(tcp)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}
