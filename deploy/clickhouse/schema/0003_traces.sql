-- Version 3: the traces of runs. Rows of earlier versions have none.

-- The id of the trace in hexadecimal digits, empty without one.
ALTER TABLE job_runs ADD COLUMN IF NOT EXISTS trace_id String AFTER error_group;
