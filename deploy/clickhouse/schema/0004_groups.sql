-- Version 4: sums by one dimension, so that a query reads rows of its own groups only. Hours before this version was
-- applied are missing: see group_sums.rs of metrics.

CREATE TABLE IF NOT EXISTS runs_by_group_hour
(
    dimension     LowCardinality(String) COMMENT 'all, project, type, model, outcome, error_group or processor',
    hour          DateTime('UTC'),
    value         String                 COMMENT 'of the dimension: empty for all, and for runs without one',
    completed     SimpleAggregateFunction(sum, UInt64),
    failed        SimpleAggregateFunction(sum, UInt64),
    canceled      SimpleAggregateFunction(sum, UInt64),
    runs          SimpleAggregateFunction(sum, UInt64),
    duration_sum  SimpleAggregateFunction(sum, UInt64),
    durations     AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64),
    wait_sum      SimpleAggregateFunction(sum, UInt64),
    wait_digest   AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64),
    tokens_in     SimpleAggregateFunction(sum, UInt64),
    tokens_out    SimpleAggregateFunction(sum, UInt64),
    retries       SimpleAggregateFunction(sum, UInt64),
    lost_runs     SimpleAggregateFunction(sum, UInt64),
    wasted_tokens SimpleAggregateFunction(sum, UInt64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (dimension, value, hour)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS runs_by_group_hour_view TO runs_by_group_hour AS
SELECT
    tupleElement(g, 1)                                           AS dimension,
    toStartOfHour(toDateTime(r.at, 'UTC'))                       AS hour,
    tupleElement(g, 2)                                           AS value,
    countIf(r.final AND r.outcome = 'completed')                 AS completed,
    countIf(r.final AND r.outcome = 'failed')                    AS failed,
    countIf(r.final AND r.outcome = 'canceled')                  AS canceled,
    countIf(r.ran)                                               AS runs,
    sumIf(r.duration_ms, r.ran)                                  AS duration_sum,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(r.duration_ms, r.ran) AS durations,
    sumIf(r.wait_ms, r.ran)                                      AS wait_sum,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(r.wait_ms, r.ran)   AS wait_digest,
    sum(r.tokens_in)                                             AS tokens_in,
    sum(r.tokens_out)                                            AS tokens_out,
    countIf(r.outcome = 'retry')                                 AS retries,
    countIf(r.outcome = 'lost')                                  AS lost_runs,
    sumIf(r.tokens_in + r.tokens_out, r.outcome IN ('retry', 'failed', 'lost', 'refused')) AS wasted_tokens
FROM job_runs AS r
ARRAY JOIN [
    ('all', ''),
    ('project', r.project),
    ('type', toString(r.type)),
    ('model', toString(r.model)),
    ('outcome', toString(r.outcome)),
    ('error_group', if(r.error_group = 0, '', lower(leftPad(hex(r.error_group), 16, '0')))),
    ('processor', r.worker)
] AS g
GROUP BY dimension, value, hour;
