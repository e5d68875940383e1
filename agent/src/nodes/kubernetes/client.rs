//! A client of the API server that soon notices when its connection is dead.

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{Client, Config, client::ConfigExt};
use std::time::Duration;
use tower::{BoxError, ServiceBuilder};

/// How long a connection may be silent before it is probed. A node whose public address changes, or
/// whose NAT has forgotten it, hears nothing more on a watch, and sends nothing by which to notice.
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// Between probes, and how many go unanswered until the connection is given up.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// How long what was sent may stay unacknowledged (RFC 5482), and a connection may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client that `config` describes.
///
/// # Errors
/// What the configuration's certificates or credentials do not allow.
pub fn client(config: Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(PATIENCE));
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(PATIENCE));
    let connector = config.rustls_https_connector_with_connector(tcp)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}
