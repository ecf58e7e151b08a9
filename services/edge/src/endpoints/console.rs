//! GET / and /assets: the console, as it was built into the program.

use axum::{
    extract::{Path, Request},
    http::{
        HeaderMap, StatusCode,
        header::{
            ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
            VARY,
        },
    },
    response::{IntoResponse, Response},
};
use console::File;

use crate::error::Error;

/// The name of an asset has the hash of its content.
const FOREVER: &str = "public, max-age=31536000, immutable";
/// The page names its assets, and must be the current one.
const REVALIDATE: &str = "no-cache";

/// The page of the console.
pub(crate) async fn page(request: Request) -> Response {
    respond(console::page(), REVALIDATE, request.headers())
}

/// A script, style or image of the console.
pub(crate) async fn asset(Path(name): Path<String>, request: Request) -> Response {
    match console::asset(&name) {
        Some(file) => respond(file, FOREVER, request.headers()),
        None => Error::no_endpoint(request.uri().path()).into_response(),
    }
}

fn respond(file: &File, cache: &str, request: &HeaderMap) -> Response {
    let has_it = request.get(IF_NONE_MATCH).and_then(|it| it.to_str().ok());
    let has_it = has_it.is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == file.etag));
    let headers = [
        (CONTENT_TYPE, file.content_type),
        (CACHE_CONTROL, cache),
        (ETAG, file.etag),
        (VARY, "accept-encoding"),
    ];
    if has_it {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    let accepts_gzip = request
        .get(ACCEPT_ENCODING)
        .and_then(|it| it.to_str().ok())
        .is_some_and(|encodings| encodings.split(',').any(|it| it.trim().starts_with("gzip")));
    match file.gzip.filter(|_| accepts_gzip) {
        Some(gzip) => (headers, [(CONTENT_ENCODING, "gzip")], gzip).into_response(),
        None => (headers, file.content).into_response(),
    }
}
