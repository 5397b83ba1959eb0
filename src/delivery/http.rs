//! Posting JSON, and what an HTTP answer means for a message.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, Response, StatusCode};
use serde_json::Value;

use super::Outcome;
use crate::{tcp, tls};

/// A channel that has not answered by then is tried again.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The first pause after an answer that says nothing about when.
const SOON: Duration = Duration::from_secs(2);

/// A client for all channels; it trusts the authorities in the PEM file `authorities` too.
///
/// # Errors
/// When TLS cannot be had.
pub(super) fn client(authorities: Option<&str>) -> Result<Client, String> {
    let mut trusted = Vec::new();
    if let Some(path) = authorities {
        let unusable = |why: String| format!("ALERT_WEBHOOK_CA_FILE is {path:?}: expected {why}");
        for certificate in tls::certificates(path).map_err(unusable)? {
            trusted.push(Certificate::from_der(&certificate).map_err(|error| unusable(error.to_string()))?);
        }
    }
    Client::builder()
        .tls_certs_merge(trusted)
        .timeout(ANSWER_WITHIN)
        .connect_timeout(Duration::from_secs(5))
        .dns_resolver(Arc::new(Resolver))
        // An answer that sends us elsewhere would take the message, and its secret, there.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("shepherd-monitor/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|_| "no HTTP client: cannot initialize TLS".to_owned())
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

/// Posts `body`. Nothing that is said of it holds the address: that is a secret.
pub(super) async fn post(client: &Client, url: &str, body: &Value) -> Outcome {
    let again = |why: String| Outcome::TryAgainAfter { channel_rests: None, at_least: SOON, why };
    match client.post(url).json(body).send().await {
        Ok(answer) => judge(answer).await,
        Err(error) if error.is_builder() => Outcome::ChannelBroken("invalid URL".to_owned()),
        Err(error) if error.is_timeout() => again(format!("timed out after {} s", ANSWER_WITHIN.as_secs())),
        Err(error) if error.is_connect() => again(connect_failure(&error)),
        Err(_) => again("connection closed".to_owned()),
    }
}

/// Why there is no connection, where it is about certificates. The error itself would name the address.
fn connect_failure(error: &reqwest::Error) -> String {
    let mut said = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        said = error.to_string();
        cause = error.source();
    }
    match tls::explain(&said, &tls::WEBHOOK) {
        Some(failure) => failure.append_to("cannot connect"),
        None => "cannot connect".to_owned(),
    }
}

async fn judge(answer: Response) -> Outcome {
    let status = answer.status();
    let retry_after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let body = answer.text().await.unwrap_or_default();
    let said = super::shortened(&super::visible(body.trim()), 120);
    let said = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
    match status {
        _ if status.is_success() => Outcome::Sent(said),
        StatusCode::TOO_MANY_REQUESTS => {
            let rest = Duration::from_secs(retry_after.unwrap_or(30).min(3600));
            Outcome::TryAgainAfter { channel_rests: Some(rest), at_least: rest, why: said }
        }
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::UNAUTHORIZED => {
            Outcome::ChannelBroken(said)
        }
        StatusCode::REQUEST_TIMEOUT => Outcome::TryAgainAfter { channel_rests: None, at_least: SOON, why: said },
        _ if status.is_client_error() || status.is_redirection() => Outcome::Never(said),
        _ => Outcome::TryAgainAfter { channel_rests: None, at_least: SOON, why: said },
    }
}
