//! What API keys cost: single enqueues with and without them, on two meshes in turn.

use anyhow::Context;
use serde_json::json;

use super::{
    PEER_CALLERS, load, median,
    mesh::{Durability, Mesh},
    report::Report,
};

/// Jobs of each measurement, and measurements of each kind.
const JOBS: usize = 20_000;
const ROUNDS: usize = 3;

/// Measures single enqueues without keys and with them.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let (plain, keyed) =
        (Mesh::start(Durability::Fast).await?, Mesh::start(Durability::Fast).await?);
    let new = json!({ "name": "bench", "scope": "admin" }).to_string();
    let made = keyed.client().connect().await?.post("/api/keys", &new).await?.json()?;
    let key = made["secret"].as_str().context("a new key is shown")?;
    let with_key = keyed.client().with_key(key);
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (client, rates) in [plain.client(), &with_key].into_iter().zip(&mut rates) {
            rates.push(load::singles(client, "keys", PEER_CALLERS, JOBS).await?.0);
        }
    }
    let [plain_rate, keyed_rate] = rates.map(median);
    report.rate("enqueue one by one, 64 callers, without API keys, median of three", plain_rate);
    report.rate("enqueue one by one, 64 callers, with API keys, median of three", keyed_rate);
    let what = "enqueue one by one with API keys against without";
    report.ratio(what, Some(keyed_rate), Some(plain_rate), 0.97);
    plain.stop().await?;
    keyed.stop().await
}
