//! The parsers of what clients send, for fuzz/.

use axum::http::Uri;
use job::Patch;

use crate::{body, endpoints::enqueue};

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
