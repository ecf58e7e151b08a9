//! What API keys cost: single enqueues with and without them, on two meshes in turn.

use anyhow::Context;
use serde_json::json;

use super::{
    PEER_CALLERS, load, median_by,
    mesh::{Durability, Mesh},
    report::Report,
};

/// Jobs of each measurement.
const JOBS: usize = 10_000;
/// Pairs of measurements, one without and one with keys.
const PAIRS: usize = 7;

/// Measures single enqueues without keys and with them.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let (plain, keyed) =
        (Mesh::start(Durability::Fast).await?, Mesh::start(Durability::Fast).await?);
    let new = json!({ "name": "bench", "scope": "admin" }).to_string();
    let made = keyed.client().connect().await?.post("/api/keys", &new).await?.json()?;
    let key = made["secret"].as_str().context("a new key is shown")?;
    let with_key = keyed.client().with_key(key);
    let rate =
        async |client| anyhow::Ok(load::singles(client, "keys", PEER_CALLERS, JOBS).await?.0);
    let mut pairs = Vec::new();
    for n in 0..PAIRS {
        // Each side comes first as often as second: the machine is not the same for long.
        pairs.push(if n % 2 == 0 {
            (rate(plain.client()).await?, rate(&with_key).await?)
        } else {
            let keyed_rate = rate(&with_key).await?;
            (rate(plain.client()).await?, keyed_rate)
        });
    }
    let (plain_rate, keyed_rate) = median_by(pairs, |(plain, keyed)| keyed / plain);
    report.rate("enqueue one by one, 64 callers, without API keys", plain_rate);
    report.rate("enqueue one by one, 64 callers, with API keys, median ratio of seven", keyed_rate);
    let what = "enqueue one by one with API keys against without";
    report.ratio(what, Some(keyed_rate), Some(plain_rate), 0.97);
    plain.stop().await?;
    keyed.stop().await
}
