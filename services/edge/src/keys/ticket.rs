//! Tickets: each opens event streams for a minute, for browsers, whose `EventSource` sends no headers.
//!
//! A ticket is a text like `jt_<id of the key>_<until>_<signature>` in the query of the request. It is signed with the hash of
//! the key's secret, which every edge knows: no ticket is stored, and all end with their key.

use axum::http::{Method, Uri};
use hmac::{Hmac, Mac};
use job::time::Millis;
use sha2::Sha256;

const PREFIX: &str = "jt_";
/// How long a ticket is accepted, in ms. A stream may last longer.
const VALID_MS: Millis = 60_000;
/// How far the clock of another edge may be ahead, in ms.
const CLOCK_SKEW_MS: Millis = 10_000;
/// The paths that accept tickets.
const STREAM_PATHS: [&str; 2] = ["/api/queue/events", "/api/queue/live"];
/// The query parameter with the ticket.
pub(crate) const PARAMETER: &str = "ticket";

/// The parts of a ticket.
#[derive(Debug, PartialEq)]
pub(super) struct Ticket<'a> {
    /// The id of the key.
    pub key: &'a str,
    /// When it expires, in ms since 1970.
    until: Millis,
    signature: &'a str,
}

/// The text in the query of a request that accepts tickets.
pub(super) fn text_in<'a>(method: &Method, uri: &'a Uri) -> Option<&'a str> {
    if method != Method::GET || !STREAM_PATHS.contains(&uri.path()) {
        return None;
    }
    let parameters = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    parameters.filter(|(name, _)| *name == PARAMETER).map(|(_, ticket)| ticket).next()
}

impl<'a> Ticket<'a> {
    /// Reads a ticket; `None` if it is malformed.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.strip_prefix(PREFIX)?.split('_');
        let (key, until, signature) = (parts.next()?, parts.next()?, parts.next()?);
        let ticket = Self { key, until: until.parse().ok()?, signature };
        parts.next().is_none().then_some(ticket)
    }

    /// Whether it was made with the secret that has this hash, and is accepted at `now`.
    pub fn is_of(&self, secret_hash: &str, now: Millis) -> bool {
        let Some(signature) = bytes_of(self.signature) else { return false };
        // Whoever has the key can sign any time. The clocks of edges may differ.
        let is_soon = self.until <= now + VALID_MS + CLOCK_SKEW_MS;
        // The comparison takes as long for any signature.
        now < self.until
            && is_soon
            && mac(self.key, self.until, secret_hash).verify_slice(&signature).is_ok()
    }
}

/// A new ticket of a key, and when it expires.
pub(super) fn new_text(key: &str, secret_hash: &str, now: Millis) -> (String, Millis) {
    let until = now + VALID_MS;
    let signature = mac(key, until, secret_hash).finalize().into_bytes();
    let signature: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    (format!("{PREFIX}{key}_{until}_{signature}"), until)
}

fn mac(key: &str, until: Millis, secret_hash: &str) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(secret_hash.as_bytes());
    mac.expect("a key may have any length").chain_update(format!("{PREFIX}{key}_{until}"))
}

/// The bytes of hexadecimal digits.
fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_is_accepted_for_a_minute_with_the_secret_that_made_it() {
        let (text, until) = new_text("abcdefABCDEF", "hash", 1_000);
        assert_eq!(until, 61_000);
        let ticket = Ticket::parse(&text).expect("it is a ticket");
        assert_eq!(ticket.key, "abcdefABCDEF");
        assert!(ticket.is_of("hash", 60_999) && !ticket.is_of("hash", 61_000));
        assert!(!ticket.is_of("other", 1_001));
        let later = text.replace("_61000_", "_99000_");
        assert!(!Ticket::parse(&later).expect("it is a ticket").is_of("hash", 1_001));
        let (later, _) = new_text("abcdefABCDEF", "hash", 100_000);
        assert!(!Ticket::parse(&later).expect("it is a ticket").is_of("hash", 1_000));
        for malformed in ["", "jt_", "jt_a_b_c", "jt_a_1", "jm_a_1_c", "jt_a_1_c_d"] {
            assert_eq!(Ticket::parse(malformed), None, "{malformed}");
        }
        for signature in ["", "é", "0g", "00"] {
            let text = format!("jt_a_9999_{signature}");
            assert!(!Ticket::parse(&text).expect("it is a ticket").is_of("hash", 1), "{text}");
        }
    }

    #[test]
    fn only_event_streams_accept_tickets() {
        let found =
            |method, uri: &'static str| text_in(&method, &Uri::from_static(uri)).map(str::to_owned);
        let streams = ["/api/queue/events?projectId=p&ticket=jt_x", "/api/queue/live?ticket=jt_x"];
        for uri in streams {
            assert_eq!(found(Method::GET, uri).as_deref(), Some("jt_x"));
            assert_eq!(found(Method::POST, uri), None);
        }
        assert_eq!(found(Method::GET, "/api/queue/stats?ticket=jt_x"), None);
        assert_eq!(found(Method::GET, "/api/queue/events"), None);
    }
}
