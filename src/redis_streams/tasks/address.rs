//! Address of Redis, from a URL or environment variables.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

/// Address and credentials of a Redis server. `Display` omits the credentials.
#[derive(Clone)]
pub struct Address {
    info: ConnectionInfo,
}

/// An invalid address: the setting, what is wrong and what was expected. URLs are not echoed, since they may contain a
/// password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadAddress(pub String);

impl Address {
    /// Parses `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS. `setting` is the name in error
    /// messages.
    ///
    /// # Errors
    /// [`BadAddress`] if the URL is invalid.
    pub fn from_url(setting: &str, url: &str) -> Result<Self, BadAddress> {
        let bad = |what: &str| {
            BadAddress(format!("{setting} {what}; expected redis://[user:password@]host[:port][/db] or rediss://…"))
        };
        if url.is_empty() {
            return Err(bad("is empty"));
        }
        let info = url.into_connection_info().map_err(|e| bad(&format!("is invalid ({})", e.category())))?;
        Ok(Self::new(info))
    }

    /// Reads `REDIS_URL`, or else `REDIS_HOST` (default localhost), `REDIS_PORT` (6379) and `REDIS_PASSWORD`. `lookup`
    /// returns the value of a variable; empty values count as unset.
    ///
    /// # Errors
    /// [`BadAddress`] with the variable, its value and the expected value.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, BadAddress> {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        if let Some(url) = set("REDIS_URL") {
            return Self::from_url("REDIS_URL", &url);
        }
        let host = set("REDIS_HOST").unwrap_or_else(|| "localhost".to_owned());
        let port = match set("REDIS_PORT") {
            None => 6379,
            Some(text) => text
                .parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| BadAddress(format!("REDIS_PORT is {text:?}; expected a port from 1 to 65535")))?,
        };
        let mut info = (host, port)
            .into_connection_info()
            .map_err(|e| BadAddress(format!("REDIS_HOST is invalid ({})", e.category())))?;
        if let Some(password) = set("REDIS_PASSWORD") {
            info = info.clone().set_redis_settings(info.redis_settings().clone().set_password(password));
        }
        Ok(Self::new(info))
    }

    fn new(info: ConnectionInfo) -> Self {
        // RESP2 regardless of the URL, so that replies have the same types on all servers.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        Self { info: info.set_redis_settings(settings) }
    }

    /// The same server with another database number.
    #[must_use]
    pub fn database(&self, number: i64) -> Self {
        let settings = self.info.redis_settings().clone().set_db(number);
        Self { info: self.info.clone().set_redis_settings(settings) }
    }

    pub(super) fn client(&self) -> Result<redis::Client, redis::RedisError> {
        if matches!(self.info.addr(), ConnectionAddr::TcpTls { .. }) {
            // An error means that the process has already installed a provider.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        redis::Client::open(self.info.clone())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.addr().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<Address, BadAddress> {
        Address::from_env(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_url_overrides_the_other_variables() {
        assert_eq!(from(&[]).unwrap().to_string(), "localhost:6379");
        assert_eq!(from(&[("REDIS_HOST", "r"), ("REDIS_PORT", "7")]).unwrap().to_string(), "r:7");
        assert_eq!(from(&[("REDIS_URL", "redis://x:9/2"), ("REDIS_PORT", "no")]).unwrap().to_string(), "x:9");
    }

    #[test]
    fn passwords_are_used_but_not_displayed() {
        let address = from(&[("REDIS_PASSWORD", "secret")]).unwrap();
        assert_eq!(address.info.redis_settings().password(), Some("secret"));
        assert!(!format!("{address:?}{address}").contains("secret"));
        let refused = from(&[("REDIS_URL", "http://:secret@x")]).unwrap_err().to_string();
        assert!(refused.contains("REDIS_URL") && !refused.contains("secret"), "{refused}");
    }

    #[test]
    fn an_invalid_port_is_reported_with_the_expected_value() {
        for port in ["99999", "0", "x"] {
            let error = from(&[("REDIS_PORT", port)]).unwrap_err().to_string();
            assert!(error.contains(port) && error.contains("1 to 65535"), "{error}");
        }
    }
}
