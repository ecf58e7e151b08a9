-- Version 1. The files of this folder are applied in order, once each; every statement can be run again.
--
-- A row of job_runs is an ended run, or a job that ended without one. `final` marks the row that
-- ended its job: counts of jobs use final rows, durations use rows whose run came to its own end
-- (`ran`), tokens use all rows.
--
-- Blocks of rows come with a token for deduplication. A plain MergeTree keeps no log of tokens
-- unless told to, and neither does the target of a view: hence the window on every table.

CREATE TABLE IF NOT EXISTS job_runs
(
    sequence     UInt64                 COMMENT 'where in EVENTS the run ended: message',
    idx          UInt32                 COMMENT 'and index in it',
    at           DateTime64(3, 'UTC')   COMMENT 'when that was',
    project      String,
    batch        String,
    job          UUID,
    type         LowCardinality(String),
    class        LowCardinality(String),
    run          UInt32,
    attempt      UInt32,
    outcome      LowCardinality(String) COMMENT 'completed, failed, canceled, retry, lost, released, deferred, refused',
    final        UInt8                  COMMENT 'whether it ended its job',
    ran          UInt8                  COMMENT 'whether the run came to its own end',
    queued_at    DateTime64(3, 'UTC'),
    started_at   DateTime64(3, 'UTC')   COMMENT '1970 where no run began',
    finished_at  DateTime64(3, 'UTC'),
    wait_ms      UInt64,
    duration_ms  UInt64,
    tokens_in    UInt64,
    tokens_out   UInt64,
    images       UInt64,
    model        LowCardinality(String),
    worker       String,
    error        String,
    INDEX job_index job TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (project, at, job, run)
SETTINGS non_replicated_deduplication_window = 10000;

-- By hour alone: what all projects did. Merging the digests of all projects would cost 300 ms a day.
CREATE TABLE IF NOT EXISTS runs_by_hour
(
    hour         DateTime('UTC'),
    type         LowCardinality(String),
    model        LowCardinality(String),
    completed    SimpleAggregateFunction(sum, UInt64),
    failed       SimpleAggregateFunction(sum, UInt64),
    canceled     SimpleAggregateFunction(sum, UInt64),
    runs         SimpleAggregateFunction(sum, UInt64),
    duration_sum SimpleAggregateFunction(sum, UInt64),
    duration_min SimpleAggregateFunction(min, UInt64),
    duration_max SimpleAggregateFunction(max, UInt64),
    durations    AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64),
    waits        SimpleAggregateFunction(sum, UInt64),
    wait_sum     SimpleAggregateFunction(sum, UInt64),
    tokens_in    SimpleAggregateFunction(sum, UInt64),
    tokens_out   SimpleAggregateFunction(sum, UInt64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (hour, type, model)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS runs_by_project_hour
(
    project      String,
    hour         DateTime('UTC'),
    type         LowCardinality(String),
    model        LowCardinality(String),
    completed    SimpleAggregateFunction(sum, UInt64),
    failed       SimpleAggregateFunction(sum, UInt64),
    canceled     SimpleAggregateFunction(sum, UInt64),
    runs         SimpleAggregateFunction(sum, UInt64),
    duration_sum SimpleAggregateFunction(sum, UInt64),
    duration_min SimpleAggregateFunction(min, UInt64),
    duration_max SimpleAggregateFunction(max, UInt64),
    durations    AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64),
    waits        SimpleAggregateFunction(sum, UInt64),
    wait_sum     SimpleAggregateFunction(sum, UInt64),
    tokens_in    SimpleAggregateFunction(sum, UInt64),
    tokens_out   SimpleAggregateFunction(sum, UInt64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (project, hour, type, model)
SETTINGS non_replicated_deduplication_window = 10000;

-- Requests that changed something, other than enqueues. A record can be inserted twice: read it with FINAL.
CREATE TABLE IF NOT EXISTS audit
(
    id           UUID,
    at           DateTime64(3, 'UTC')   COMMENT 'when the request was answered',
    request_id   String,
    key_id       String                 COMMENT 'of its API key, empty without one',
    key_name     String,
    address      String,
    method       LowCardinality(String),
    path         String,
    project      String                 COMMENT 'empty if it is not about one project',
    target       String,
    status       UInt16                 COMMENT 'of the answer',
    reason       String
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (at, id);

CREATE MATERIALIZED VIEW IF NOT EXISTS runs_by_hour_view TO runs_by_hour AS
SELECT
    toStartOfHour(toDateTime(at, 'UTC'))                         AS hour,
    type,
    model,
    countIf(final AND outcome = 'completed')                     AS completed,
    countIf(final AND outcome = 'failed')                        AS failed,
    countIf(final AND outcome = 'canceled')                      AS canceled,
    countIf(ran)                                                 AS runs,
    sumIf(duration_ms, ran)                                      AS duration_sum,
    min(if(ran, duration_ms, 18446744073709551615))              AS duration_min,
    maxIf(duration_ms, ran)                                      AS duration_max,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(duration_ms, ran)   AS durations,
    countIf(ran)                                                 AS waits,
    sumIf(wait_ms, ran)                                          AS wait_sum,
    sum(tokens_in)                                               AS tokens_in,
    sum(tokens_out)                                              AS tokens_out
FROM job_runs
GROUP BY hour, type, model;

CREATE MATERIALIZED VIEW IF NOT EXISTS runs_by_project_hour_view TO runs_by_project_hour AS
SELECT
    project,
    toStartOfHour(toDateTime(at, 'UTC'))                         AS hour,
    type,
    model,
    countIf(final AND outcome = 'completed')                     AS completed,
    countIf(final AND outcome = 'failed')                        AS failed,
    countIf(final AND outcome = 'canceled')                      AS canceled,
    countIf(ran)                                                 AS runs,
    sumIf(duration_ms, ran)                                      AS duration_sum,
    min(if(ran, duration_ms, 18446744073709551615))              AS duration_min,
    maxIf(duration_ms, ran)                                      AS duration_max,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(duration_ms, ran)   AS durations,
    countIf(ran)                                                 AS waits,
    sumIf(wait_ms, ran)                                          AS wait_sum,
    sum(tokens_in)                                               AS tokens_in,
    sum(tokens_out)                                              AS tokens_out
FROM job_runs
GROUP BY project, hour, type, model;
