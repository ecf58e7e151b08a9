//! Requests of web pages: a page of another site must neither read nor change anything here.
//!
//! Browsers send simple requests to any address, loopback included, and report the page's site in
//! `Origin` and `Sec-Fetch-Site`. A site can also point its own name at this address (DNS rebinding):
//! then the browser takes the edge for that site, and only `Host` shows the name.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use axum::{
    body::HttpBody,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{Config, error::Error};

const FETCH_SITE: &str = "sec-fetch-site";
const FETCH_MODE: &str = "sec-fetch-mode";
/// The paths of the console; below `DOCS` are the pages about the API. Everything else is data.
const CONSOLE: [&str; 2] = ["/", "/assets"];
const DOCS: &str = "/docs";

/// What an allowed page may send, and read of an answer.
const ALLOWED_METHODS: &str = "GET, POST, PUT, PATCH, DELETE";
const ALLOWED_HEADERS: &str =
    "authorization, content-type, idempotency-key, jobmesh-reason, last-event-id, x-request-id";
const EXPOSED_HEADERS: &str = "retry-after, x-request-id";
/// How long a browser remembers the answer to a preflight request, in seconds.
const PREFLIGHT_MAX_AGE: &str = "600";

/// Headers of every answer.
const HARDENING: [(HeaderName, HeaderValue); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];
/// What answers, and its version.
static SERVER: LazyLock<HeaderValue> = LazyLock::new(|| {
    let server = format!("jobmesh/{}", service::VERSION.as_str());
    HeaderValue::from_str(&server).unwrap_or(HeaderValue::from_static("jobmesh"))
});
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// The policy of data, that of the console, and that of the pages about the API, which have styles in them.
const DATA_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
const CONSOLE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
const DOCS_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// The names of this edge, and the sites whose pages may use it.
#[derive(Clone, Debug)]
pub(crate) struct Browsers(Arc<Allowed>);

#[derive(Debug)]
struct Allowed {
    hosts: Vec<String>,
    origins: Vec<HeaderValue>,
}

/// The site of the page that made a request.
#[derive(Debug, PartialEq)]
enum Site {
    /// No page, or one of this edge.
    Own,
    /// A page that an operator allowed.
    Allowed(HeaderValue),
    /// Another page: its site, as far as the browser reports it.
    Foreign(String),
}

impl Browsers {
    pub fn new(config: &Config) -> Self {
        let hosts = config.allow_hosts.iter().map(|host| host.trim().to_ascii_lowercase());
        let hosts = hosts.filter(|host| !host.is_empty()).collect();
        let origins = config.allow_origins.iter().map(|origin| origin.0.clone()).collect();
        Self(Arc::new(Allowed { hosts, origins }))
    }
}

/// Refuses requests to foreign names and from foreign pages, answers browsers that ask for permission,
/// and adds the headers that protect pages.
pub(crate) async fn guard(
    State(Browsers(allowed)): State<Browsers>,
    request: Request,
    next: Next,
) -> Response {
    let policy = policy_of(request.uri().path());
    let (mut response, site) = match allowed.check(&request) {
        Err(error) => {
            // A page that may use the API may read its errors too.
            let origin = allowed.origin_of(request.headers()).cloned();
            (error.into_response(), origin.map_or(Site::Own, Site::Allowed))
        }
        Ok(site @ Site::Allowed(_)) if is_preflight(&request) => (preflight(), site),
        Ok(site) => (next.run(request).await, site),
    };
    let headers = response.headers_mut();
    headers.extend(HARDENING);
    headers.insert(header::SERVER, SERVER.clone());
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    let readers = if let Site::Allowed(origin) = site {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        let exposed = HeaderValue::from_static(EXPOSED_HEADERS);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        "cross-origin"
    } else {
        "same-origin"
    };
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static(readers));
    response
}

/// The content security policy of a path.
fn policy_of(path: &str) -> HeaderValue {
    let is_below = |page: &str| path.strip_prefix(page).is_some_and(|rest| rest.starts_with('/'));
    if CONSOLE.contains(&path) || is_below(CONSOLE[1]) {
        CONSOLE_POLICY
    } else if path == DOCS || is_below(DOCS) {
        DOCS_POLICY
    } else {
        DATA_POLICY
    }
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, ALLOWED_METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

impl Allowed {
    fn check(&self, request: &Request) -> Result<Site, Error> {
        let headers = request.headers();
        // An absolute URI in the request line replaces the header.
        let host = match request.uri().authority() {
            Some(authority) => Some(authority.as_str().to_owned()),
            None => headers.get(header::HOST).map(text),
        };
        if let Some(host) = &host
            && !self.is_own_name(host)
        {
            return Err(Error::host_not_allowed(host));
        }
        let site = self.site(request.method(), headers, host.as_deref().unwrap_or_default());
        if let Site::Foreign(site) = &site {
            return Err(Error::cross_origin(site));
        }
        let takes_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
        let sends_body = takes_body && !request.body().is_end_stream();
        let is_browser = headers.contains_key(header::ORIGIN) || headers.contains_key(FETCH_SITE);
        if sends_body && is_browser && !is_json(headers) {
            return Err(Error::content_type());
        }
        Ok(site)
    }

    /// True for addresses, which no site can claim, for `localhost`, and for configured names.
    fn is_own_name(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some(address) => address,
            None => host.split_at(host.find(':').unwrap_or(host.len())),
        };
        let is_port = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit());
        if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
            return false;
        }
        // A name may end with a dot, as in DNS.
        let name = name.strip_suffix('.').unwrap_or(name);
        name == "localhost"
            || name.ends_with(".localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|own| *own == host || own == name)
    }

    /// The origin of an allowed page.
    fn origin_of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        headers.get(header::ORIGIN).filter(|origin| self.origins.contains(origin))
    }

    fn site(&self, method: &Method, headers: &HeaderMap, host: &str) -> Site {
        if let Some(origin) = self.origin_of(headers) {
            return Site::Allowed(origin.clone());
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = text(origin);
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            let is_own = authority.is_some_and(|it| it.eq_ignore_ascii_case(host));
            return if is_own { Site::Own } else { Site::Foreign(origin) };
        }
        let Some(site) = headers.get(FETCH_SITE).map(text) else { return Site::Own };
        // A link to a page here may be followed from anywhere; the page with the link does not see
        // the answer.
        let is_link =
            method == Method::GET && headers.get(FETCH_MODE).is_some_and(|mode| mode == "navigate");
        let is_own = matches!(site.as_str(), "same-origin" | "none");
        if is_own || is_link { Site::Own } else { Site::Foreign(site) }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(text).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    const HOST: (&str, &str) = ("host", "127.0.0.1:8080");

    fn allowed() -> Allowed {
        let origins = vec![HeaderValue::from_static("https://console.example")];
        Allowed { hosts: vec!["queue.example".into(), "edge:8080".into()], origins }
    }

    fn check(method: Method, pairs: &[(&str, &str)]) -> Result<Site, u16> {
        checked(&request(method, pairs, Body::from("{}")))
    }

    fn request(method: Method, pairs: &[(&str, &str)], body: Body) -> Request {
        let mut request = Request::builder().method(method).uri("/api/queue/stats");
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        request.body(body).expect("it is a request")
    }

    fn checked(request: &Request) -> Result<Site, u16> {
        allowed().check(request).map_err(|error| error.into_response().status().as_u16())
    }

    #[test]
    fn only_pages_of_other_sites_are_foreign() {
        for own in [
            vec![HOST],
            vec![HOST, ("origin", "http://127.0.0.1:8080")],
            vec![HOST, ("sec-fetch-site", "same-origin")],
            vec![HOST, ("sec-fetch-site", "none")],
            vec![HOST, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
        ] {
            assert_eq!(check(Method::GET, &own), Ok(Site::Own), "{own:?}");
        }
        for foreign in [
            vec![HOST, ("origin", "https://evil.example")],
            vec![HOST, ("origin", "https://console.example.evil.example")],
            vec![HOST, ("origin", "null")],
            vec![HOST, ("origin", "http://127.0.0.1:9090")],
            vec![HOST, ("sec-fetch-site", "cross-site")],
            vec![HOST, ("sec-fetch-site", "same-site")],
        ] {
            assert_eq!(check(Method::GET, &foreign), Err(403), "{foreign:?}");
        }
        let form = [HOST, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(check(Method::POST, &form), Err(403));
        let console = HeaderValue::from_static("https://console.example");
        let page = [HOST, ("origin", "https://console.example"), ("sec-fetch-site", "cross-site")];
        assert_eq!(check(Method::GET, &page), Ok(Site::Allowed(console)));
    }

    #[test]
    fn names_that_a_site_could_claim_are_refused() {
        for host in [
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
            "10.1.2.3",
            "LOCALHOST:8080",
            "mesh.localhost",
            "queue.example",
            "Queue.Example:443",
            "edge:8080",
            "localhost.",
            "queue.example.:8080",
        ] {
            assert_eq!(check(Method::GET, &[("host", host)]), Ok(Site::Own), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "edge:9090",
            "localhost:x@evil.example",
            "[::1].evil.example",
            "[::1]x",
            "edge",
            "",
        ] {
            assert_eq!(check(Method::GET, &[("host", host)]), Err(421), "{host}");
        }
    }

    #[test]
    fn pages_send_json_and_programs_anything() {
        let plain = ("content-type", "text/plain");
        assert_eq!(check(Method::POST, &[HOST, plain]), Ok(Site::Own));
        let own = ("origin", "http://127.0.0.1:8080");
        assert_eq!(check(Method::POST, &[HOST, own, plain]), Err(415));
        assert_eq!(check(Method::PUT, &[HOST, ("sec-fetch-site", "same-origin")]), Err(415));
        let empty = request(Method::POST, &[HOST, own], Body::empty());
        assert_eq!(checked(&empty), Ok(Site::Own), "there is no body");
        let json = ("content-type", "application/json; charset=utf-8");
        assert_eq!(check(Method::POST, &[HOST, own, json]), Ok(Site::Own));
    }
}
