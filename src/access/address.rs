//! Client addresses and trusted proxies.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Proxies whose headers are trusted: `MONITOR_PROXY_TRUSTED`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Trusts these networks.
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether no proxy is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any address is trusted.
    #[must_use]
    pub fn trusts_everybody(&self) -> bool {
        self.0.iter().any(|network| network.prefix_len() == 0)
    }

    /// Whether `peer` is a trusted proxy.
    #[must_use]
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(&peer))
    }

    /// Address of the client behind `peer`: the last address in `forwarded_for` (`X-Forwarded-For`) that is not a
    /// trusted proxy. Clients can forge the addresses before it. If a proxy wrote something else than an address, returns
    /// that as well, with the address of the proxy.
    #[must_use]
    pub fn client<'a>(&self, peer: IpAddr, forwarded_for: &'a [u8]) -> (IpAddr, Option<&'a [u8]>) {
        let (mut client, mut unreadable) = (peer, None);
        // From the right and as bytes, so that forged values further left cannot hide the addresses that proxies add.
        for hop in forwarded_for.rsplit(|byte| *byte == b',') {
            if !self.contains(client) {
                break;
            }
            let hop = hop.trim_ascii();
            let Some(before) = std::str::from_utf8(hop).ok().and_then(address) else {
                unreadable = Some(hop).filter(|hop| !hop.is_empty());
                break;
            };
            client = before;
        }
        (client.to_canonical(), unreadable)
    }
}

/// Parses an address with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    text.parse::<SocketAddr>().map(|address| address.ip()).ok().or_else(bare)
}

/// Address under which clients are counted. IPv6 addresses of a /64 count as one client.
#[must_use]
pub fn client_prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_last_address_that_is_not_a_trusted_proxy() {
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        let client = |peer: &str, said: Option<&str>| {
            proxies.client(peer.parse().unwrap(), said.unwrap_or_default().as_bytes()).0.to_string()
        };
        assert_eq!(client("192.0.2.1", Some("198.51.100.9")), "192.0.2.1", "no proxy of ours says so");
        assert_eq!(client("10.0.0.1", None), "10.0.0.1");
        assert_eq!(client("10.0.0.1", Some("198.51.100.9")), "198.51.100.9");
        assert_eq!(client("::ffff:10.0.0.1", Some("198.51.100.9")), "198.51.100.9");
        assert_eq!(client("10.0.0.1", Some("203.0.113.7, 198.51.100.9, 10.2.3.4")), "198.51.100.9");
        assert_eq!(client("fd00::1", Some("[2001:db8::7]:4711")), "2001:db8::7");
        assert_eq!(client("10.0.0.1", Some("198.51.100.9:4711")), "198.51.100.9");
        for nonsense in ["", "unknown", "198.51.100.9, _hidden"] {
            assert_eq!(client("10.0.0.1", Some(nonsense)), "10.0.0.1", "{nonsense}");
        }
        assert_eq!(client("10.0.0.1", Some("\u{e9}, 198.51.100.9")), "198.51.100.9", "what a proxy added");
        let bytes = proxies.client("10.0.0.1".parse().unwrap(), b"\xff\xfe, 198.51.100.9,10.2.3.4");
        assert_eq!((bytes.0.to_string().as_str(), bytes.1), ("198.51.100.9", None));
        let unreadable = proxies.client("10.0.0.1".parse().unwrap(), b"198.51.100.9, _hidden, 10.2.3.4");
        assert_eq!((unreadable.0.to_string().as_str(), unreadable.1), ("10.2.3.4", Some(&b"_hidden"[..])));
        let forged = proxies.client("192.0.2.1".parse().unwrap(), b"_hidden");
        assert_eq!(forged.1, None, "only what a proxy wrote");
    }

    #[test]
    fn ipv6_addresses_of_a_64_count_as_one_client() {
        let of = |text: &str| client_prefix(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
