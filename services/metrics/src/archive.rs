//! Copies of the rows as files in ClickHouse's format Native, of a bounded number of rows each. Sums are made again from the
//! rows by the views. If ClickHouse deletes old rows, sums of the hours before the oldest row are copied, too.

use std::{
    io::{Read, Write},
    time::Duration,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use job::time::Millis;
use nats::{Broker, checkpoint::Checkpoint};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    checkpoint::CheckpointStore,
    config::{ClickHouse, ClickHouseAccess},
    retention::{self, Deletion},
    schema,
};

/// Rows of a file, unless more of them are of the same minute.
const FILE_ROWS: u64 = 200_000;
/// How long to wait before ClickHouse is asked again.
const PAUSE: Duration = Duration::from_millis(250);
/// Bytes that are sent to ClickHouse at once.
const SEND_BYTES: usize = 1 << 20;

/// A table whose rows are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// Ended runs.
    Runs,
    /// The audit log.
    Audit,
    /// Sums over all projects.
    Hours,
    /// Sums by project.
    ProjectHours,
    /// Sums over all projects by one dimension.
    Groups,
    /// Sums by error group.
    Failures,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Runs, Self::Audit, Self::Hours, Self::ProjectHours, Self::Groups, Self::Failures];

    /// Its name in ClickHouse.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runs => "job_runs",
            Self::Audit => "audit",
            Self::Hours => "runs_by_hour",
            Self::ProjectHours => "runs_by_project_hour",
            Self::Groups => "runs_by_group_hour",
            Self::Failures => "failures_by_hour",
        }
    }

    /// The version of the tables that it is in since.
    pub fn since_version(self) -> u32 {
        match self {
            Self::Runs | Self::Audit | Self::Hours | Self::ProjectHours => 1,
            Self::Failures => 2,
            Self::Groups => 4,
        }
    }

    /// The column of its time.
    fn time(self) -> &'static str {
        match self {
            Self::Runs | Self::Audit => "at",
            Self::Hours | Self::ProjectHours | Self::Groups | Self::Failures => "hour",
        }
    }
}

/// Which rows of ended runs belong to a copy of EVENTS.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// The first message of EVENTS whose rows are left out: metrics reads it again.
    pub next: u64,
    /// When the stream was made: rows before it are of another stream, which had sequences of its own.
    pub created: Millis,
    /// The first hour whose runs are copied, and from which on sums are not, in seconds since 1970.
    pub first_hour: u32,
}

/// The rows of some minutes.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The first minute, since 1970.
    from: u32,
    /// The first one after it.
    to: u32,
    /// How many rows there are.
    pub rows: u64,
}

/// ClickHouse, to copy rows from and to.
pub struct Archive(ClickHouse);

impl Archive {
    /// The tables of a ClickHouse server.
    ///
    /// # Errors
    /// If the address or the login cannot be used.
    pub fn open(access: &ClickHouseAccess) -> anyhow::Result<Self> {
        Ok(Self(access.clients()?))
    }

    /// Waits until ClickHouse answers, or `stop` is cancelled.
    pub async fn until_there(&self, stop: &CancellationToken) {
        let ping = || self.0.server.query_raw("SELECT 1").execute();
        service::retry_until(stop, PAUSE, "ClickHouse does not answer", ping).await;
    }

    /// The version of the tables that are there.
    ///
    /// # Errors
    /// If ClickHouse does not answer, or there are no tables.
    pub async fn version(&self) -> anyhow::Result<u32> {
        schema::applied(&self.0).await.with_context(|| self.failed("read"))
    }

    /// The rows of a table, in files of a bounded number of rows.
    ///
    /// # Errors
    /// If ClickHouse does not answer.
    pub async fn parts(&self, table: Table, cut: Cut) -> anyhow::Result<Vec<Part>> {
        let sql = format!(
            "SELECT toUInt32(intDiv(toUnixTimestamp({}), 60)) AS minute, count() FROM {} WHERE {}
            GROUP BY minute ORDER BY minute",
            table.time(),
            table.name(),
            is_in(table)
        );
        let query = self.0.tables.query_raw(&sql).param("next", cut.next);
        let query = query.param("created", cut.created).param("first_hour", cut.first_hour);
        let minutes = query.fetch_all::<(u32, u64)>().await.with_context(|| self.failed("read"))?;
        let mut parts: Vec<Part> = Vec::new();
        for (minute, rows) in minutes {
            match parts.last_mut() {
                Some(part) if part.rows + rows <= FILE_ROWS => {
                    (part.to, part.rows) = (minute + 1, part.rows + rows);
                }
                _ => parts.push(Part { from: minute, to: minute + 1, rows }),
            }
        }
        Ok(parts)
    }

    /// The first hour from which on all rows are there and stay, in seconds since 1970; 0 if rows were never deleted.
    ///
    /// # Errors
    /// If ClickHouse does not answer.
    pub async fn first_hour(&self) -> anyhow::Result<u32> {
        let failed = || self.failed("read");
        // Hours whose sums have more than their rows. The last hours may be written at this moment.
        let differences = "SELECT toUnixTimestamp(t.hour) AS hour, toInt64(sum(t.completed + t.failed + t.canceled)) AS ends,
                toInt64(sum(t.runs)) AS runs
            FROM runs_by_hour AS t GROUP BY hour
            UNION ALL
            SELECT toUnixTimestamp(toStartOfHour(toDateTime(t.at, 'UTC'))) AS hour, -toInt64(countIf(t.final)) AS ends,
                -toInt64(countIf(t.ran)) AS runs
            FROM job_runs AS t GROUP BY hour";
        let sql = format!(
            "SELECT toUInt32(max(if(more, hour + 3600, 0))) FROM (
                SELECT hour, sum(ends) > 0 OR sum(runs) > 0 AS more FROM ({differences}) GROUP BY hour
            ) WHERE hour < toUnixTimestamp(toStartOfHour(now('UTC') - toIntervalHour(2)))"
        );
        let deleted: u32 = self.0.tables.query_raw(&sql).fetch_one().await.with_context(failed)?;
        let Deletion::After(days) = retention::deletion(&self.0).await.with_context(failed)? else {
            return Ok(deleted);
        };
        // Rows that are due are deleted while others are copied: an hour more.
        let sql = format!(
            "SELECT toUInt32(toUnixTimestamp(toStartOfHour(now('UTC') - toIntervalDay({days}) + toIntervalHour(2))))"
        );
        let due: u32 = self.0.tables.query_raw(&sql).fetch_one().await.with_context(failed)?;
        Ok(deleted.max(due))
    }

    /// Writes the rows of a part.
    ///
    /// # Errors
    /// If ClickHouse does not answer, or `to` cannot be written.
    pub async fn export(
        &self,
        table: Table,
        part: Part,
        cut: Cut,
        to: &mut (dyn Write + Send),
    ) -> anyhow::Result<()> {
        let sql = format!(
            "SELECT * FROM {} WHERE {time} >= toDateTime64({{from:UInt32}} * 60, 3, 'UTC')
            AND {time} < toDateTime64({{to:UInt32}} * 60, 3, 'UTC') AND {}",
            table.name(),
            is_in(table),
            time = table.time()
        );
        let query = self.0.tables.query_raw(&sql).param("from", part.from).param("to", part.to);
        let query = query.param("next", cut.next).param("created", cut.created);
        let query = query.param("first_hour", cut.first_hour);
        let mut bytes = query.fetch_bytes("Native").with_context(|| self.failed("read"))?;
        while let Some(some) = bytes.next().await.with_context(|| self.failed("read"))? {
            to.write_all(&some)?;
        }
        Ok(())
    }

    /// Makes the tables, and checks that they are empty.
    ///
    /// # Errors
    /// If ClickHouse does not answer, has rows, or `version` of the rows is newer than this program.
    pub async fn prepare(&self, version: u32) -> anyhow::Result<()> {
        ensure!(
            version <= schema::VERSION,
            "the rows have version {version}, and this program knows {} at most: use a newer jobmesh",
            schema::VERSION
        );
        schema::create(&self.0).await.with_context(|| self.failed("written"))?;
        for table in Table::ALL {
            let rows = self.rows(table).await?;
            ensure!(
                rows == 0,
                "table {} of database {} in ClickHouse has {rows} rows: restore into an empty database",
                table.name(),
                self.0.database
            );
        }
        Ok(())
    }

    /// Inserts the rows of a file.
    ///
    /// # Errors
    /// If ClickHouse refuses them, or `from` cannot be read.
    pub async fn import(&self, table: Table, from: &mut (dyn Read + Send)) -> anyhow::Result<()> {
        let sql = format!("INSERT INTO {} FORMAT Native", table.name());
        let mut insert = self.0.tables.insert_formatted_with(sql);
        loop {
            let mut bytes = Vec::with_capacity(SEND_BYTES);
            if from.take(SEND_BYTES as u64).read_to_end(&mut bytes)? == 0 {
                break;
            }
            insert.send(Bytes::from(bytes)).await.with_context(|| self.failed("written"))?;
        }
        insert.end().await.with_context(|| self.failed("written"))
    }

    /// The number of rows of a table.
    ///
    /// # Errors
    /// If ClickHouse does not answer.
    pub async fn rows(&self, table: Table) -> anyhow::Result<u64> {
        let sql = format!("SELECT count() FROM {}", table.name());
        let counted = self.0.tables.query_raw(&sql).fetch_one().await;
        counted.with_context(|| self.failed("read"))
    }

    fn failed(&self, step: &str) -> String {
        format!("ClickHouse at {} could not be {step}", self.0.shown)
    }
}

/// The condition of rows that belong to a copy.
fn is_in(table: Table) -> &'static str {
    match table {
        Table::Runs => {
            "(sequence < {next:UInt64} OR at < fromUnixTimestamp64Milli({created:Int64}, 'UTC'))
            AND at >= toDateTime({first_hour:UInt32}, 'UTC')"
        }
        Table::Audit => "true",
        Table::Hours | Table::ProjectHours | Table::Groups | Table::Failures => {
            "hour < toDateTime({first_hour:UInt32}, 'UTC')"
        }
    }
}

/// How far EVENTS is in ClickHouse; `None` if that is not known.
///
/// # Errors
/// If the bucket of leases cannot be read.
pub async fn checkpoint(broker: &Broker) -> anyhow::Result<Option<Checkpoint>> {
    let checkpoint = CheckpointStore::open(broker).await?.checkpoint();
    Ok(Some(checkpoint).filter(|checkpoint| *checkpoint != Checkpoint::UNKNOWN))
}

/// Lets metrics read EVENTS from a checkpoint on.
///
/// # Errors
/// If the bucket of leases cannot be written.
pub async fn set_checkpoint(broker: &Broker, checkpoint: Checkpoint) -> anyhow::Result<()> {
    CheckpointStore::open(broker).await?.put(checkpoint).await
}
