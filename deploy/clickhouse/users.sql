-- Users of a ClickHouse server of your own: jobmesh_writer for metrics (JOBMESH_CLICKHOUSE_USER), jobmesh_reader for people and
-- their analytics. Set passwords of your own before you run it; it can be run again.

CREATE USER IF NOT EXISTS jobmesh_writer IDENTIFIED WITH sha256_password BY 'writer-password';

-- Metrics makes its tables, changes them with later versions, and inserts rows.
GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW, SELECT, INSERT, ALTER TABLE, ALTER VIEW ON jobmesh.* TO jobmesh_writer;

-- Queries only, of a minute at most, and no table functions: those need grants of their own.
CREATE SETTINGS PROFILE IF NOT EXISTS jobmesh_reader SETTINGS readonly = 1 CONST, max_execution_time = 60 CONST, max_memory_usage = 4000000000 CONST;

CREATE USER IF NOT EXISTS jobmesh_reader IDENTIFIED WITH sha256_password BY 'reader-password' SETTINGS PROFILE 'jobmesh_reader';

GRANT SELECT ON jobmesh.* TO jobmesh_reader;
