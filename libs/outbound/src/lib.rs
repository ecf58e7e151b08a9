//! HTTP clients. Proxies come from the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, each also in
//! lower case, without those hosts that `NO_PROXY` names), as curl and most programs read it; loopback
//! is always asked directly, because a proxy cannot reach this machine's.

use std::{error::Error, io};

pub use rustls::CertificateError;

use reqwest::{ClientBuilder, NoProxy, Proxy, Url};

/// What no proxy can reach for us.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// Which requests a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    All,
}

/// The settings of a client: the system's certificates, and proxies as the module says.
pub fn builder() -> ClientBuilder {
    // Another part of the process may have chosen first: then that choice holds.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder().no_proxy();
    for (scheme, url) in proxies(variable) {
        let proxy = match scheme {
            Scheme::Http => Proxy::http(url),
            Scheme::Https => Proxy::https(url),
            Scheme::All => Proxy::all(url),
        };
        // One that is not a URL is reported by `report_proxies`.
        if let Ok(proxy) = proxy {
            builder = builder.proxy(proxy.no_proxy(exceptions(variable)));
        }
    }
    builder
}

/// Logs which proxies are used, for a service at its start.
pub fn report_proxies() {
    for (scheme, url) in proxies(variable) {
        let scheme = match scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::All => "all",
        };
        match url.parse::<Url>() {
            Ok(url) => {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                let host = url.host_str().unwrap_or_default();
                let proxy = format!("{}://{host}{port}", url.scheme());
                tracing::info!(scheme, proxy, "requests to other hosts go through a proxy");
            }
            Err(error) => {
                tracing::error!(scheme, %error, "the proxy in the environment is not a URL")
            }
        }
    }
}

/// Why a server's certificate is not accepted, if a request failed for that.
pub fn certificate_error(error: &reqwest::Error) -> Option<&CertificateError> {
    let mut next = Some(error as &(dyn Error + 'static));
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(reason)) = error.downcast_ref() {
            return Some(reason);
        }
        // An error of input and output has another one in it, which is not its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The proxies that the environment names: those of a scheme before the one of all.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<(Scheme, String)> {
    let either = |upper: &str| variable(&upper.to_lowercase()).or_else(|| variable(upper));
    // In a CGI script the upper-case name holds a header of the request (CVE-2016-5385).
    let http = if variable("REQUEST_METHOD").is_some() {
        variable("http_proxy")
    } else {
        either("HTTP_PROXY")
    };
    let found = [
        (Scheme::Http, http),
        (Scheme::Https, either("HTTPS_PROXY")),
        (Scheme::All, either("ALL_PROXY")),
    ];
    let with_scheme = |url: String| if url.contains("://") { url } else { format!("http://{url}") };
    found.into_iter().filter_map(|(scheme, url)| Some((scheme, with_scheme(url?)))).collect()
}

fn exceptions(variable: impl Fn(&str) -> Option<String>) -> Option<NoProxy> {
    let named = variable("no_proxy").or_else(|| variable("NO_PROXY"));
    let named = named.map(|named| format!("{LOOPBACK},{named}"));
    NoProxy::from_string(named.as_deref().unwrap_or(LOOPBACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_as_curl_reads_them() {
        let of = |pairs: &'static [(&str, &str)]| {
            proxies(|name| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, url)| (*url).to_owned())
            })
        };
        assert_eq!(of(&[]), []);
        assert_eq!(
            of(&[("http_proxy", "a:1"), ("HTTP_PROXY", "http://b"), ("ALL_PROXY", "socks5://c")]),
            [(Scheme::Http, "http://a:1".to_owned()), (Scheme::All, "socks5://c".to_owned())]
        );
        assert_eq!(of(&[("HTTP_PROXY", "b"), ("REQUEST_METHOD", "GET")]), []);
    }
}
