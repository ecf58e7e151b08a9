//! From when on the sums by group are whole.
//!
//! Their table is younger than that of the sums by hour: it has the runs that ended since its version of the schema was
//! applied. A restore of an older backup leaves hours out, too.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use clickhouse::Client;
use job::time::Millis;

/// How long an answer of ClickHouse is used.
const FRESH_FOR: Duration = Duration::from_secs(60);
const HOUR_MS: Millis = 3_600_000;

/// The first hour with sums by group, if they are whole.
#[derive(Debug, Default)]
pub(crate) struct GroupSums(Mutex<Option<(Instant, Millis)>>);

impl GroupSums {
    /// The beginning of the first hour from which on nothing is missing, in ms since 1970; 0 if nothing ever was.
    ///
    /// # Errors
    /// If ClickHouse does not answer.
    pub async fn since(&self, client: &Client) -> clickhouse::error::Result<Millis> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, since)) = known
            && read.elapsed() < FRESH_FOR
        {
            return Ok(since);
        }
        let since = read(client).await?;
        // Until there are sums, they can begin at any time.
        if since != Millis::MAX {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), since));
        }
        Ok(since)
    }
}

async fn read(client: &Client) -> clickhouse::error::Result<Millis> {
    // The first hour of both tables, with its ends of runs and jobs.
    let first = |table: &str, condition: &str| {
        format!(
            "SELECT toUnixTimestamp(t.hour) AS hour, sum(t.runs + t.completed + t.failed + t.canceled) AS ends
            FROM {table} AS t WHERE {condition} GROUP BY hour ORDER BY hour LIMIT 1"
        )
    };
    let by_hour = client.query_raw(&first("runs_by_hour", "true"));
    let by_group = client.query_raw(&first("runs_by_group_hour", "t.dimension = 'all'"));
    let (by_hour, by_group) = tokio::try_join!(
        by_hour.fetch_optional::<(u32, u64)>(),
        by_group.fetch_optional::<(u32, u64)>()
    )?;
    Ok(match (by_hour, by_group) {
        (None, None) => 0,
        (_, None) => Millis::MAX,
        (hour, group) if hour == group => 0,
        // The version was applied within its first hour.
        (_, Some((first, _))) => Millis::from(first) * 1_000 + HOUR_MS,
    })
}
