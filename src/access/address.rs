//! Where requests come from, and which proxies are believed about it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// The proxies that are believed: `MONITOR_PROXY_TRUSTED`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// These.
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them asks from `peer`.
    #[must_use]
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(&peer))
    }

    /// Who asks, when `peer` is connected and says that it asks for `forwarded_for`
    /// (`X-Forwarded-For`): the last address there that is none of these proxies. What stands
    /// before it, anybody may have written.
    #[must_use]
    pub fn client(&self, peer: IpAddr, forwarded_for: &[u8]) -> IpAddr {
        let mut client = peer;
        // Read from the right, as bytes: what anybody wrote further left must not hide what a proxy added.
        for hop in forwarded_for.rsplit(|byte| *byte == b',') {
            if !self.contains(client) {
                break;
            }
            let hop = std::str::from_utf8(hop.trim_ascii()).ok();
            let Some(before) = hop.and_then(address) else { break };
            client = before;
        }
        client.to_canonical()
    }
}

/// An address with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    text.parse::<SocketAddr>().map(|address| address.ip()).ok().or_else(bare)
}

/// Those who are counted as one: who has an IPv6 address has all of its /64.
#[must_use]
pub fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_that_is_no_proxy_asks() {
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        let client = |peer: &str, said: Option<&str>| {
            proxies.client(peer.parse().unwrap(), said.unwrap_or_default().as_bytes()).to_string()
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
        assert_eq!(bytes.to_string(), "198.51.100.9");
    }

    #[test]
    fn neighbours_of_ipv6_are_one() {
        let of = |text: &str| household(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
