// Measures graphile-worker on a PostgreSQL server.
//
//   node graphile.mjs <port> <jobs> <single jobs> <pickup jobs> <ms between them>
//
// Writes one line of JSON: rates in jobs a second, pickup times in ms, and how many jobs of the drain
// were run, and how often.
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import { CONCURRENCY, Drain, Pickup, bulk, singles } from "./common.mjs";

const [port, jobs, singleJobs, pickupJobs, everyMs] = process.argv.slice(2).map(Number);
// Each of its workers looks when a job is added: as many as of the drain stand in each other's way.
const PICKUP_CONCURRENCY = 10;
const connectionString = `postgres://jobmesh@127.0.0.1:${port}/postgres`;
const logger = new Logger(() => () => {});
const utils = await makeWorkerUtils({ connectionString, logger });
await utils.migrate();

const work = (taskList, concurrentJobs, localQueue) => run({
  connectionString,
  logger,
  noHandleSignals: true,
  taskList,
  // Its documentation's advice for throughput: fetch and end jobs in batches.
  preset: { worker: {
    concurrentJobs,
    maxPoolSize: 20,
    pollInterval: 1000,
    ...(localQueue && { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 }),
  } },
});

const addBulk = await bulk(jobs, (part) =>
  utils.addJobs(part.map((payload) => ({ identifier: "job", payload }))));

const drain = new Drain(jobs);
const runner = await work({ job: async () => {} }, CONCURRENCY, true);
runner.events.on("job:success", ({ job }) => drain.ended(job.id));
const drained = await drain.rate;
await runner.stop();

const add = await singles(singleJobs, (payload) => utils.addJob("single", payload));

const pickup = new Pickup(pickupJobs, everyMs);
const taker = await work({ timed: async ({ n }) => pickup.started(n) }, PICKUP_CONCURRENCY, false);
const pickupMs = await pickup.measure((n) => utils.addJob("timed", { n }));
await taker.stop();

console.log(JSON.stringify({ addBulk, drain: drained, add, pickupMs, ...drain.counts }));
process.exit(0);
