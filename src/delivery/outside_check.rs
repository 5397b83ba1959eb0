//! Calls an outside check (healthchecks.io, Dead Man's Snitch, Uptime Kuma), which reports when the calls stop.

use reqwest::Client;

use super::{Outcome, http};
use crate::settings::Secret;

/// The configured check.
pub struct OutsideCheck {
    url: Secret,
    client: Client,
}

impl OutsideCheck {
    /// Returns the check at `url`. Trusts the certificates in the PEM file `authorities` in addition to those of the
    /// system. Does not connect.
    ///
    /// # Errors
    /// The invalid setting; secrets are not included.
    pub fn new(url: Secret, authorities: Option<&str>) -> Result<Self, String> {
        Ok(Self { url, client: http::client(authorities)? })
    }

    /// Requests the URL once.
    ///
    /// # Errors
    /// The response or the cause of the failure, without the URL.
    pub async fn call(&self) -> Result<(), String> {
        match http::get(&self.client, self.url.reveal()).await {
            Outcome::Sent(_) => Ok(()),
            failed => Err(failed.answer().to_owned()),
        }
    }
}
