//! Strict request parsing: unknown fields are refused by name.

mod strict;

use std::{borrow::Cow, time::Duration};

use axum::{
    body::HttpBody,
    extract::{FromRequest, FromRequestParts, Request},
    http::{
        HeaderMap, Uri,
        header::{CONTENT_ENCODING, EXPECT},
        request::Parts,
    },
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use job::{Id, bounds::truncate};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use strict::Failure;

use crate::{error::Error, ids};

pub(crate) use strict::{ITEMS_MAX, as_integer};

/// The largest body, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How much of a path or a value an error shows, in bytes.
const SHOWN_BYTES_MAX: usize = 500;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The most that is read of a body that was refused, in bytes.
const DISCARDED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long the next bytes of a body may take.
const NEXT_BYTES_WITHIN: Duration = Duration::from_secs(10);
/// How long all of a body may take.
const BODY_WITHIN: Duration = Duration::from_secs(60);

/// The bytes of a body.
pub(crate) struct Body(pub Bytes);

impl<S: Sync> FromRequest<S> for Body {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        let (parts, mut body) = request.into_parts();
        let read = async {
            let refused = match refused(&parts.headers, &body) {
                None => match read_all(&mut body).await {
                    Err(error) if error.is_too_large() => error,
                    read => return read,
                },
                Some(refused) => refused,
            };
            // Most clients read the answer only after they have sent everything.
            if !parts.headers.contains_key(EXPECT) {
                discard(&mut body).await;
            }
            Err(refused)
        };
        let read = tokio::time::timeout(BODY_WITHIN, read).await;
        read.unwrap_or_else(|_| Err(Error::slow(BODY_WITHIN))).map(Self)
    }
}

/// Why a body is not read at all.
fn refused(headers: &HeaderMap, body: &axum::body::Body) -> Option<Error> {
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Some(too_large());
    }
    let encoding = headers.get(CONTENT_ENCODING)?.as_bytes();
    let encoding = truncate(&String::from_utf8_lossy(encoding), SHOWN_BYTES_MAX);
    (!encoding.eq_ignore_ascii_case("identity")).then(|| {
        let text = "the body has the Content-Encoding";
        Error::unsupported(format!("{text} {encoding:?}: send it without compression"))
    })
}

async fn read_all(body: &mut axum::body::Body) -> Result<Bytes, Error> {
    // A client that announces a length and sends less costs no memory: pages that are not written
    // are not there.
    let announced = body.size_hint().lower().min(BODY_BYTES_MAX as u64);
    let mut all = BytesMut::with_capacity(usize::try_from(announced).unwrap_or(0));
    loop {
        let frame = tokio::time::timeout(NEXT_BYTES_WITHIN, body.frame()).await;
        match frame.map_err(|_| Error::slow(NEXT_BYTES_WITHIN))? {
            None => return Ok(all.freeze()),
            Some(Ok(frame)) => all.extend(frame.into_data()),
            Some(Err(_)) => return Err(Error::malformed("the body could not be read to its end")),
        }
        if all.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
    }
}

/// Reads the rest of a refused body, up to a bound.
async fn discard(body: &mut axum::body::Body) {
    let mut bytes = 0;
    while bytes < DISCARDED_BYTES_MAX {
        match tokio::time::timeout(NEXT_BYTES_WITHIN, body.frame()).await {
            Ok(Some(Ok(frame))) => bytes += frame.data_ref().map_or(0, Bytes::len),
            _ => return,
        }
    }
}

fn too_large() -> Error {
    Error::too_large(format!("the body has more than {BODY_BYTES_MAX} bytes"))
}

/// The project that a body is about, if it is one of those that name it.
pub(crate) fn project_in(body: &[u8]) -> Option<Id> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct About {
        project_id: Option<Id>,
        filter: Option<Box<About>>,
    }
    let about: About = serde_json::from_slice(body).ok()?;
    let project = about.project_id.or_else(|| about.filter?.project_id)?;
    ids::id("projectId", &project).ok()
}

/// Reads a body as a JSON object with the fields of `T` and no others.
pub(crate) fn read<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Error> {
    // Editors and programs of Windows write a byte order mark first.
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    if body.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Error::malformed("the body must be a JSON object"));
    }
    let failure = Failure::default();
    strict::read(body, &failure).map_err(|error| explain(&error, &failure))
}

fn explain(error: &serde_json::Error, failure: &Failure) -> Error {
    let path = truncate(&failure.path(), SHOWN_BYTES_MAX);
    if failure.is_too_many() {
        return Error::too_large(format!("{path} has more than {ITEMS_MAX} items"));
    }
    let text = error.to_string();
    let text = truncate(text.split(" at line ").next().unwrap_or(&text), SHOWN_BYTES_MAX);
    if text == "trailing characters" {
        return Error::malformed("the body has something behind its JSON object");
    }
    if !error.is_data() {
        let place = format!("line {} column {}", error.line(), error.column());
        return Error::malformed(format!("the body is not valid JSON: {text} at {place}"));
    }
    let text = plain_words(&text);
    Error::invalid(if path.is_empty() { text } else { format!("{path}: {text}") })
}

/// JSON's words for what our types expect.
fn plain_words(text: &str) -> String {
    const WORDS: [(&str, &str); 6] = [
        ("expected u32", "expected an integer from 0 to 4294967295"),
        ("expected u64", "expected an integer from 0 on"),
        ("expected i64", "expected an integer"),
        ("expected f64", "expected a number"),
        ("expected struct Backoff", "expected an object"),
        ("floating point", "number"),
    ];
    WORDS.iter().fold(text.to_owned(), |text, (ours, plain)| text.replace(ours, plain))
}

/// Refuses every parameter: for requests that say all in their path and body.
pub(crate) struct NoQuery;

impl<S: Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        query(&parts.uri, [])?;
        Ok(Self)
    }
}

/// The parameters of a query string, each of which must be known and come once.
pub(crate) fn query<const N: usize>(
    uri: &Uri,
    known: [&str; N],
) -> Result<[Option<String>; N], Error> {
    let mut values = [const { None }; N];
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name).ok_or_else(|| Error::invalid("a parameter's name is not UTF-8"))?;
        let value = decode(value).ok_or_else(|| Error::invalid(format!("{name} is not UTF-8")))?;
        let Some(place) = known.iter().position(|known| **known == name) else {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::invalid(format!("unknown parameter {name:?}; known: {known}")));
        };
        if values[place].replace(value).is_some() {
            return Err(Error::invalid(format!("{name} is given twice")));
        }
    }
    Ok(values)
}

/// Decodes a part of a query string; `None` if it is not UTF-8.
fn decode(part: &str) -> Option<String> {
    let spaced = part.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(Cow::into_owned)
}
