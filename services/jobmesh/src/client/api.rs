//! The HTTP API, as the commands use it.

use std::{path::Path, time::Duration};

use anyhow::Context;
use outbound::CertificateError;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use serde::Serialize;
use serde_json::Value;

use super::{Invalid, Server, json::Json};

/// How long an answer may take; a status that is waited for takes a minute.
const TIMEOUT: Duration = Duration::from_secs(90);

/// The variable that may hold the API key.
const KEY: &str = "JOBMESH_KEY";

/// An edge.
#[derive(Clone, Debug)]
pub(super) struct Api {
    http: reqwest::Client,
    base: Url,
}

/// A request that was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// The edge says why.
    #[error("{error} ({code})")]
    Answered { status: StatusCode, code: String, error: String },
    /// No edge is there.
    #[error(
        "no edge answers at {url}: is it running? (`jobmesh dev` starts one; --url names another)"
    )]
    Away {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// It shows a certificate that is not accepted.
    #[error("the certificate of {url} is not accepted: {reason}{hint}")]
    Untrusted { url: String, reason: String, hint: String },
}

impl Refused {
    /// The status that a command exits with.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Answered { status, .. } if status.is_client_error() && status.as_u16() != 429 => {
                3
            }
            Self::Answered { .. } | Self::Away { .. } | Self::Untrusted { .. } => 4,
        }
    }
}

impl Api {
    pub fn new(server: &Server) -> anyhow::Result<Self> {
        let base = Url::parse(&server.url).ok();
        let base =
            base.filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(|| {
                let url = &server.url;
                Invalid(format!("--url {url}: it is not a URL such as http://127.0.0.1:8080"))
            })?;
        let agent = concat!("jobmesh-cli/", env!("CARGO_PKG_VERSION"));
        let http = outbound::builder().user_agent(agent).default_headers(headers(server)?);
        Ok(Self { http: http.build()?, base })
    }

    /// The URL of the edge.
    pub fn base(&self) -> &Url {
        &self.base
    }

    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Json> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.answer(self.http.get(url).timeout(TIMEOUT)).await
    }

    /// A GET of a path whose parts may hold anything.
    pub async fn get_in(&self, path: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Json> {
        let mut url = self.url_in(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.answer(self.http.get(url).timeout(TIMEOUT)).await
    }

    pub async fn put_in<T: Serialize>(&self, path: &[&str], body: &T) -> anyhow::Result<Json> {
        let request = self.http.request(Method::PUT, self.url_in(path)?);
        self.answer(request.timeout(TIMEOUT).json(body)).await
    }

    pub async fn post<T: Serialize>(
        &self,
        path: &str,
        body: &T,
        key: Option<&str>,
    ) -> anyhow::Result<Json> {
        let mut request = self.http.post(self.url(path)?).timeout(TIMEOUT).json(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        self.answer(request).await
    }

    /// Server-sent events, from behind `last` on.
    pub async fn events(
        &self,
        query: &[(&str, String)],
        last: Option<&str>,
    ) -> anyhow::Result<Response> {
        let mut url = self.url("/api/queue/events")?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.get(url);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = self.send(request).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(refused(response).await.into())
        }
    }

    fn url(&self, path: &str) -> anyhow::Result<Url> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        self.url_in(&parts)
    }

    fn url_in(&self, path: &[&str]) -> anyhow::Result<Url> {
        let mut url = self.base.clone();
        let mut segments = url.path_segments_mut().ok().context("the URL can hold no path")?;
        segments.pop_if_empty().extend(path);
        drop(segments);
        Ok(url)
    }

    /// A POST of a path whose parts may hold anything.
    pub async fn post_in<T: Serialize>(&self, path: &[&str], body: &T) -> anyhow::Result<Json> {
        self.answer(self.http.post(self.url_in(path)?).timeout(TIMEOUT).json(body)).await
    }

    pub async fn delete_in(&self, path: &[&str]) -> anyhow::Result<Json> {
        self.answer(self.http.delete(self.url_in(path)?).timeout(TIMEOUT)).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Refused> {
        request.send().await.map_err(|error| self.away(error))
    }

    /// Why no edge answers.
    pub fn away(&self, source: reqwest::Error) -> Refused {
        let url = self.base.to_string();
        match outbound::certificate_error(&source) {
            Some(reason) => {
                Refused::Untrusted { url, reason: reason.to_string(), hint: hint(reason) }
            }
            None => Refused::Away { url, source },
        }
    }

    async fn answer(&self, request: RequestBuilder) -> anyhow::Result<Json> {
        let response = self.send(request).await?;
        if !response.status().is_success() {
            return Err(refused(response).await.into());
        }
        let text = response.text().await.context("the answer broke off")?;
        Json::parse(&text).context("the answer is not JSON: is this an edge of Jobmesh?")
    }
}

/// What to do about a certificate that is not accepted, if this machine can do something.
fn hint(reason: &CertificateError) -> String {
    use CertificateError as Reason;
    match reason {
        Reason::Expired
        | Reason::ExpiredContext { .. }
        | Reason::NotValidYet
        | Reason::NotValidYetContext { .. }
        | Reason::NotValidForName
        | Reason::NotValidForNameContext { .. } => return String::new(),
        _ => {}
    }
    match std::env::var_os("SSL_CERT_FILE") {
        Some(file) if !Path::new(&file).is_file() => {
            format!("; SSL_CERT_FILE names {}, which is no file", Path::new(&file).display())
        }
        _ => "; for an authority of your own, name a file with its certificate in SSL_CERT_FILE (a certificate that is an \
              authority itself is never accepted for a server)"
            .to_owned(),
    }
}

/// The API key as a header, if there is one.
fn headers(server: &Server) -> anyhow::Result<HeaderMap> {
    let Some(key) = service::secret::read(KEY, server.key_file.as_deref())? else {
        return Ok(HeaderMap::new());
    };
    let value = HeaderValue::try_from(format!("Bearer {}", key.reveal()));
    let mut value = value.context("the API key has characters that no key has")?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

async fn refused(response: Response) -> Refused {
    let status = response.status();
    let body: Value = response.json().await.unwrap_or_default();
    let text = |field: &str| body[field].as_str().map(str::to_owned);
    let code = text("code").unwrap_or_else(|| status.as_u16().to_string());
    let error = match code.as_str() {
        // The edge explains how a program sends it.
        "key_missing" => format!("an API key is needed: set {KEY} or --key-file"),
        _ => text("error").unwrap_or_else(|| format!("the edge answered {status}")),
    };
    Refused::Answered { status, code, error }
}
