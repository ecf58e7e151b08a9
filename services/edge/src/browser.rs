//! Requests of web pages: a page of another site must neither read nor change anything here. Browsers
//! send simple requests to any address, loopback included, and say where they come from.

use axum::{
    extract::Request,
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::error::Error;

const FETCH_SITE: &str = "sec-fetch-site";

/// Refuses a request that a page of another site made.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    match foreign_origin(request.headers()) {
        Some(origin) => Error::cross_origin(&origin).into_response(),
        None => next.run(request).await,
    }
}

/// The site that made the request, if it is another one.
fn foreign_origin(headers: &HeaderMap) -> Option<String> {
    let text =
        |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    if let Some(origin) = headers.get(header::ORIGIN).map(text) {
        let host = headers.get(header::HOST).map(text).unwrap_or_default();
        let is_same = origin.split_once("://").is_some_and(|(_, authority)| authority == host);
        return (!is_same).then_some(origin);
    }
    let site = headers.get(FETCH_SITE).map(text)?;
    (!matches!(site.as_str(), "same-origin" | "none")).then_some(site)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_other_sites_are_foreign() {
        let headers = |pairs: &[(&'static str, &str)]| {
            let pair = |(name, value): &(&'static str, &str)| {
                (axum::http::HeaderName::from_static(name), value.parse().expect("it is a value"))
            };
            pairs.iter().map(pair).collect::<HeaderMap>()
        };
        let host = ("host", "127.0.0.1:8080");
        for own in [
            vec![host],
            vec![host, ("origin", "http://127.0.0.1:8080")],
            vec![host, ("sec-fetch-site", "same-origin")],
            vec![host, ("sec-fetch-site", "none")],
        ] {
            assert_eq!(foreign_origin(&headers(&own)), None, "{own:?}");
        }
        for foreign in [
            vec![host, ("origin", "https://evil.example")],
            vec![host, ("origin", "null")],
            vec![host, ("origin", "http://127.0.0.1:9090")],
            vec![host, ("sec-fetch-site", "cross-site")],
            vec![host, ("sec-fetch-site", "same-site")],
        ] {
            assert!(foreign_origin(&headers(&foreign)).is_some(), "{foreign:?}");
        }
    }
}
