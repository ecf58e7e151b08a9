//! Requests of web pages: a page of another site must neither read nor change anything here. Browsers
//! send simple requests to any address, loopback included, and say where they come from.

use axum::{
    extract::Request,
    http::{HeaderMap, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::error::Error;

const FETCH_SITE: &str = "sec-fetch-site";
const FETCH_MODE: &str = "sec-fetch-mode";

/// Refuses a request that a page of another site made. A link to a page here may be followed from anywhere.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    match foreign_origin(request.method(), request.headers()) {
        Some(origin) => Error::cross_origin(&origin).into_response(),
        None => next.run(request).await,
    }
}

/// The site that made the request, if it is another one.
fn foreign_origin(method: &Method, headers: &HeaderMap) -> Option<String> {
    let text =
        |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    if let Some(origin) = headers.get(header::ORIGIN).map(text) {
        let host = headers.get(header::HOST).map(text).unwrap_or_default();
        let is_same = origin.split_once("://").is_some_and(|(_, authority)| authority == host);
        return (!is_same).then_some(origin);
    }
    let site = headers.get(FETCH_SITE).map(text)?;
    // The page that holds the link does not see what is shown.
    let is_link =
        method == Method::GET && headers.get(FETCH_MODE).is_some_and(|mode| mode == "navigate");
    (!is_link && !matches!(site.as_str(), "same-origin" | "none")).then_some(site)
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
            vec![host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
        ] {
            assert_eq!(foreign_origin(&Method::GET, &headers(&own)), None, "{own:?}");
        }
        for foreign in [
            vec![host, ("origin", "https://evil.example")],
            vec![host, ("origin", "null")],
            vec![host, ("origin", "http://127.0.0.1:9090")],
            vec![host, ("sec-fetch-site", "cross-site")],
            vec![host, ("sec-fetch-site", "same-site")],
        ] {
            assert!(foreign_origin(&Method::GET, &headers(&foreign)).is_some(), "{foreign:?}");
        }
        let form = [host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert!(foreign_origin(&Method::POST, &headers(&form)).is_some());
    }
}
