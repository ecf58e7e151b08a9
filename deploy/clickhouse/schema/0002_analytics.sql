-- Version 2: waits, retries, wasted tokens and error groups. Rows of earlier versions have none of them.

-- The hash of the pattern of the error, 0 without an error.
ALTER TABLE job_runs ADD COLUMN IF NOT EXISTS error_group UInt64 AFTER error;

ALTER TABLE runs_by_hour
    ADD COLUMN IF NOT EXISTS retries       SimpleAggregateFunction(sum, UInt64),
    ADD COLUMN IF NOT EXISTS lost_runs     SimpleAggregateFunction(sum, UInt64),
    ADD COLUMN IF NOT EXISTS wasted_tokens SimpleAggregateFunction(sum, UInt64),
    ADD COLUMN IF NOT EXISTS wait_digest   AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64);

ALTER TABLE runs_by_project_hour
    ADD COLUMN IF NOT EXISTS retries       SimpleAggregateFunction(sum, UInt64),
    ADD COLUMN IF NOT EXISTS lost_runs     SimpleAggregateFunction(sum, UInt64),
    ADD COLUMN IF NOT EXISTS wasted_tokens SimpleAggregateFunction(sum, UInt64),
    ADD COLUMN IF NOT EXISTS wait_digest   AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64);

ALTER TABLE runs_by_hour_view MODIFY QUERY
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
    sum(tokens_out)                                              AS tokens_out,
    countIf(outcome = 'retry')                                   AS retries,
    countIf(outcome = 'lost')                                    AS lost_runs,
    sumIf(r.tokens_in + r.tokens_out, outcome IN ('retry', 'failed', 'lost', 'refused')) AS wasted_tokens,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(wait_ms, ran)       AS wait_digest
FROM job_runs AS r
GROUP BY hour, type, model;

ALTER TABLE runs_by_project_hour_view MODIFY QUERY
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
    sum(tokens_out)                                              AS tokens_out,
    countIf(outcome = 'retry')                                   AS retries,
    countIf(outcome = 'lost')                                    AS lost_runs,
    sumIf(r.tokens_in + r.tokens_out, outcome IN ('retry', 'failed', 'lost', 'refused')) AS wasted_tokens,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(wait_ms, ran)       AS wait_digest
FROM job_runs AS r
GROUP BY project, hour, type, model;

CREATE TABLE IF NOT EXISTS failures_by_hour
(
    project      String,
    hour         DateTime('UTC'),
    error_group  UInt64,
    type         LowCardinality(String),
    model        LowCardinality(String),
    jobs         SimpleAggregateFunction(sum, UInt64)                  COMMENT 'failed jobs',
    runs         SimpleAggregateFunction(sum, UInt64)                  COMMENT 'failed runs, also of jobs that were retried',
    first_at     SimpleAggregateFunction(min, DateTime64(3, 'UTC')),
    last_at      SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    error        SimpleAggregateFunction(anyLast, String)              COMMENT 'one of its errors',
    job          SimpleAggregateFunction(anyLast, UUID)                COMMENT 'one of its jobs'
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (project, hour, error_group, type, model)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS failures_by_hour_view TO failures_by_hour AS
SELECT
    project,
    toStartOfHour(toDateTime(at, 'UTC'))      AS hour,
    error_group,
    type,
    model,
    countIf(final)                            AS jobs,
    count()                                   AS runs,
    min(r.at)                          AS first_at,
    max(r.at)                          AS last_at,
    anyLast(r.error)                   AS error,
    anyLast(r.job)                     AS job
FROM job_runs AS r
WHERE outcome IN ('failed', 'retry') AND error_group != 0
GROUP BY project, hour, error_group, type, model;
