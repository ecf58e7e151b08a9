//! The parsers of what clients send, for fuzz/.

use std::net::{IpAddr, Ipv4Addr};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use job::Patch;

use crate::{body, endpoints::enqueue, keys, proxies::TrustedProxies};

/// A body, as several endpoints read it.
pub fn body(data: &[u8]) {
    let _ = body::read::<Patch>(data);
    enqueue::try_read(data);
}

/// A query string.
pub fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(uri) = format!("/?{text}").parse::<Uri>() {
        let _ = body::query(&uri, ["projectId", "limit"]);
    }
}

/// The ticket of an event stream, which no key made.
pub fn ticket(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert!(!keys::is_ticket_of(text, "the hash of another secret", 0));
}

/// The header of a trusted proxy.
pub fn forwarded(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let Ok(network) = "10.0.0.0/8".parse() else { return };
    let (proxies, peer) = (TrustedProxies::new(&[network]), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let headers = HeaderMap::from_iter([(HeaderName::from_static("x-forwarded-for"), value)]);
    let _ = proxies.client(peer, &headers);
}
