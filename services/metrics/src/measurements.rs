//! What the metrics service measures.

use std::time::Duration;

use service::prometheus::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const INGESTING: &str = "jobmesh_ingest_leading";
const LAG: &str = "jobmesh_ingest_lag_events";
const ROWS: &str = "jobmesh_ingested_rows_total";
const INSERTS: &str = "jobmesh_insert_seconds";
const INSERT_ERRORS: &str = "jobmesh_insert_errors_total";
const QUERIES: &str = "jobmesh_query_seconds";
const QUERY_ERRORS: &str = "jobmesh_query_errors_total";

/// Gives each measurement its unit and help.
pub(crate) fn describe() {
    describe_gauge!(INGESTING, "1 if this replica writes to ClickHouse.");
    describe_gauge!(
        LAG,
        "Messages of EVENTS that are not in ClickHouse yet, as this replica knows."
    );
    describe_counter!(ROWS, "Rows of runs that were written to ClickHouse.");
    describe_histogram!(INSERTS, Unit::Seconds, "How long it took to write a block of rows.");
    describe_counter!(INSERT_ERRORS, "Blocks that were not written, and are sent again.");
    describe_histogram!(QUERIES, Unit::Seconds, "How long answers took, by query.");
    describe_counter!(QUERY_ERRORS, "Queries without an answer.");
    gauge!(INGESTING).set(0.0);
    counter!(INSERT_ERRORS).absolute(0);
    counter!(QUERY_ERRORS).absolute(0);
}

/// Records whether this replica writes to ClickHouse.
pub(crate) fn ingesting(is_leading: bool) {
    gauge!(INGESTING).set(f64::from(u8::from(is_leading)));
}

/// Records how far ClickHouse is behind EVENTS.
pub(crate) fn lag(messages: u64) {
    gauge!(LAG).set(messages as f64);
}

/// Records a block that was written, or was not.
pub(crate) fn inserted(rows: usize, took: Duration, is_written: bool) {
    if !is_written {
        return counter!(INSERT_ERRORS).increment(1);
    }
    counter!(ROWS).increment(rows as u64);
    histogram!(INSERTS).record(took);
}

/// Records an answer.
pub(crate) fn answered(query: &'static str, took: Duration, is_answered: bool) {
    histogram!(QUERIES, "query" => query).record(took);
    counter!(QUERY_ERRORS).increment(u64::from(!is_answered));
}
