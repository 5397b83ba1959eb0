//! HTTP client for other services: webhooks, the outside check, the identity provider. Looks names up apart from other
//! blocking work, and trusts the CA certificates of a setting in addition to those of the system.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, ClientBuilder};

use crate::{tcp, tls};

/// Request timeout.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Timeout of establishing a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A client without a redirect policy of its own. `authorities` is a setting and its value, a PEM file with additional
/// CA certificates.
///
/// # Errors
/// If the file cannot be used.
pub fn builder(authorities: Option<(&str, &str)>) -> Result<ClientBuilder, String> {
    // Fails if another part of the program installed the same provider already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut trusted = Vec::new();
    if let Some((setting, path)) = authorities {
        let unusable = |why: String| format!("{setting} is {path:?}: expected {why}");
        for certificate in tls::certificates(path).map_err(unusable)? {
            trusted.push(Certificate::from_der(&certificate).map_err(|error| unusable(error.to_string()))?);
        }
    }
    Ok(ClientBuilder::new()
        .tls_certs_merge(trusted)
        .timeout(ANSWER_WITHIN)
        .connect_timeout(CONNECT_WITHIN)
        .dns_resolver(Arc::new(Resolver))
        .user_agent(concat!("shepherd-monitor/", env!("CARGO_PKG_VERSION"))))
}

/// Looks names up apart from other blocking work.
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The port comes from the address.
            let addresses = tcp::resolve(name.as_str()).await?.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}
