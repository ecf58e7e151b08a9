// Reads and writes the engine of `jobmesh dev` with @clickhouse/client.
// Usage: node sql.mjs <port> <user> <file with its password>
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createClient } from "@clickhouse/client";

const [port, username, file] = process.argv.slice(2);
const password = readFileSync(file, "utf8").trim();
const url = `http://127.0.0.1:${port}`;
const connect = (options) =>
  createClient({ url, username, password, log: { level: 127 }, ...options });
const rows = async (client, query, options) =>
  (await client.query({ query, format: "JSONEachRow", ...options })).json();

const compressions = [{}, { response: true }];
for (const compression of compressions) {
  const client = connect({ database: "jobmesh", compression, session_id: "s" });
  const counted = await rows(client, "SELECT count() AS n, {a:Int32} AS a FROM job_runs", {
    query_params: { a: 3 },
    clickhouse_settings: { output_format_json_quote_64bit_integers: 0 },
  });
  assert.deepEqual(counted, [{ n: 0, a: 3 }]);
  await client.close();
}

const client = connect();
const compressing = connect({ compression: { request: true } });
if (username === "writer") {
  const table = "default.written_by_node";
  await client.command({ query: `CREATE TABLE ${table} (a Int32) ENGINE = Memory` });
  await assert.rejects(client.command({ query: "SET max_threads = 1" }), /clients share connections/);
  const values = [{ a: 1 }, { a: 2 }];
  const insert = { table, values, format: "JSONEachRow" };
  await assert.rejects(compressing.insert(insert), /no compressed bodies/);
  await client.insert(insert);
  assert.deepEqual(await rows(client, `SELECT sum(a) = 3 AS ok FROM ${table}`), [{ ok: 1 }]);
} else {
  await assert.rejects(client.command({ query: "DROP TABLE jobmesh.job_runs" }), { code: "164", type: "READONLY" });
}
await Promise.all([client.close(), compressing.close()]);
