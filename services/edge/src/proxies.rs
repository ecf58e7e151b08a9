//! The address of a client behind proxies that an operator trusts.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

/// Each proxy appends the address of which it received the request.
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The length of the prefix of IPv4 addresses in IPv6.
const IPV4_MAPPED_PREFIX: u8 = 96;

/// A network of trusted proxies, as `10.0.0.0/8`, or the address of one.
#[derive(Clone, Copy, Debug)]
pub struct ProxyNetwork(IpNet);

impl FromStr for ProxyNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().map(IpNet::from).ok();
        let network = address.or_else(|| text.parse().ok());
        let invalid = || format!("{text:?} is not an address or a network like 10.0.0.0/8");
        let network = network.ok_or_else(invalid)?;
        // Addresses of clients are compared as IPv4 where they are.
        match network.addr().to_canonical() {
            IpAddr::V4(address) if network.addr().is_ipv6() => {
                let prefix =
                    network.prefix_len().checked_sub(IPV4_MAPPED_PREFIX).ok_or_else(invalid)?;
                let network = IpNet::new(address.into(), prefix);
                network.map(Self).map_err(|error| error.to_string())
            }
            _ => Ok(Self(network)),
        }
    }
}

/// The address of a request's client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientAddress(pub IpAddr);

/// The proxies whose header is believed. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    pub fn new(networks: &[ProxyNetwork]) -> Self {
        Self(networks.iter().map(|ProxyNetwork(network)| *network).collect())
    }

    /// Whether an address is that of a trusted proxy.
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The address of the client whose request came from `peer`: the last one in the header that is not a trusted
    /// proxy. What stands before it comes from the client. A text that is no address ends the search.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.has(peer) {
            return peer;
        }
        let mut client = peer;
        let values: Vec<&[u8]> =
            headers.get_all(&FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
        for hop in values.iter().rev().flat_map(|list| list.rsplit(|byte| *byte == b',')) {
            let Some(address) =
                std::str::from_utf8(hop).ok().and_then(|hop| address_of(hop.trim()))
            else {
                break;
            };
            client = address;
            if !self.has(address) {
                break;
            }
        }
        client
    }
}

/// The address in an item of the header: some proxies add the port.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok();
    address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, headers: &[&str]) -> String {
        let networks = ["10.0.0.0/8", "2001:db8::1"].map(|it| it.parse().expect("a network"));
        let proxies = TrustedProxies::new(&networks);
        let mut map = HeaderMap::new();
        for value in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a header");
            map.append(&FORWARDED_FOR, value);
        }
        proxies.client(peer.parse().expect("an address"), &map).to_string()
    }

    #[test]
    fn only_trusted_proxies_name_the_client() {
        // A client that is no proxy can write what it likes.
        assert_eq!(client("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        // The first is what the client sent, the last is who sent it.
        assert_eq!(client("10.0.0.1", &["1.2.3.4, 198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["1.2.3.4", "198.51.100.7, 10.2.2.2"]), "198.51.100.7");
        assert_eq!(client("2001:db8::1", &["[2001:db8::9]:443"]), "2001:db8::9");
        assert_eq!(client("::ffff:10.0.0.1", &["198.51.100.7:443"]), "198.51.100.7");
        // Without a usable header, the proxy is all that is known.
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.7, unknown"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["\u{e9}, 198.51.100.7"]), "198.51.100.7");
        // All are proxies: the first one.
        assert_eq!(client("10.0.0.1", &["10.0.0.9, 10.0.0.2"]), "10.0.0.9");
    }

    #[test]
    fn networks_are_read_or_refused_by_name() {
        assert!("10.0.0.0/8".parse::<ProxyNetwork>().is_ok());
        assert!("::1".parse::<ProxyNetwork>().is_ok());
        let mapped = TrustedProxies::new(&["::ffff:10.0.0.0/104".parse().expect("a network")]);
        assert!(mapped.has("10.1.2.3".parse().expect("an address")));
        let error = "proxy.example".parse::<ProxyNetwork>().expect_err("it is a name");
        assert!(error.contains("proxy.example"), "{error}");
    }
}
