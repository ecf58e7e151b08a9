//! Reading requests strictly: what is not known is refused by its name.

use axum::{
    body::Bytes,
    extract::{FromRequestParts, rejection::BytesRejection},
    http::{StatusCode, Uri, request::Parts},
};
use serde::de::DeserializeOwned;

use crate::error::Error;

/// The largest body, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The bytes of a body, or why there are none.
pub(crate) type Body = Result<Bytes, BytesRejection>;

/// Takes a body within the limit.
pub(crate) fn bytes(body: Body) -> Result<Bytes, Error> {
    body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Error::too_large(format!("the body has more than {BODY_BYTES_MAX} bytes"));
        }
        Error::malformed("the body could not be read to its end")
    })
}

/// Reads a body as a JSON object with the fields of `T` and no others.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let first = body.iter().find(|b| !b.is_ascii_whitespace());
    if first != Some(&b'{') {
        return Err(Error::malformed("the body must be a JSON object"));
    }
    match serde_json::from_slice(body) {
        Ok(read) => Ok(read),
        // Once more, slower, to name the place.
        Err(_) => Err(explain::<T>(body)),
    }
}

fn explain<T: DeserializeOwned>(body: &[u8]) -> Error {
    let mut json = serde_json::Deserializer::from_slice(body);
    match serde_path_to_error::deserialize::<_, T>(&mut json) {
        Ok(_) => Error::malformed("the body has something behind its JSON object"),
        Err(error) => {
            let path = error.path().to_string();
            let inner = error.into_inner();
            let text = inner.to_string();
            let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
            if !inner.is_data() {
                let place = format!("line {} column {}", inner.line(), inner.column());
                return Error::malformed(format!("the body is not valid JSON: {text} at {place}"));
            }
            // For an unknown field the path is the field itself, which the text names too.
            let text = plain_words(&text);
            let plain = path == "." || text.starts_with("unknown field");
            Error::invalid(if plain { text } else { format!("{path}: {text}") })
        }
    }
}

/// What a reader of JSON expects in the place of the names that our types have.
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
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    let pairs = pairs.map_err(|_| Error::invalid("the query string could not be read"))?;
    for (name, value) in pairs.0 {
        let Some(place) = known.iter().position(|known| **known == name) else {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::invalid(format!("unknown parameter {name:?}; known: {known}")));
        };
        if value.contains(char::REPLACEMENT_CHARACTER) {
            return Err(Error::invalid(format!("{name} is not UTF-8")));
        }
        if values[place].replace(value).is_some() {
            return Err(Error::invalid(format!("{name} is given twice")));
        }
    }
    Ok(values)
}
