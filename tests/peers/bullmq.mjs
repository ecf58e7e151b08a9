// Measures BullMQ on a Redis server.
//
//   node bullmq.mjs <port> <jobs> <single jobs> <pickup jobs> <ms between them>
//
// Writes one line of JSON: rates in jobs a second, pickup times in ms, and how many jobs of the drain
// were run, and how often.
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";
import { CONCURRENCY, Drain, Pickup, SLOTS, bulk, singles } from "./common.mjs";

const [port, jobs, singleJobs, pickupJobs, everyMs] = process.argv.slice(2).map(Number);
const connect = () => new Redis(port, "127.0.0.1", { maxRetriesPerRequest: null });
const work = (name, handle, concurrency = CONCURRENCY) =>
  new Worker(name, handle, { connection: connect(), concurrency });

const queue = new Queue("bulk", { connection: connect() });
const addBulk = await bulk(jobs, (part) =>
  queue.addBulk(part.map((data) => ({ name: "job", data }))));

const drain = new Drain(jobs);
const worker = work("bulk", async () => {});
worker.on("completed", (job) => drain.ended(job.id));
const drained = await drain.rate;
await worker.close();

/** Jobs a second with few slots, the median of three drains. */
async function drainWith(slots, jobs) {
  const rates = [];
  for (let n = 0; n < 3; n++) {
    const queue = new Queue(`slots-${slots}-${n}`, { connection: connect() });
    await bulk(jobs, (part) => queue.addBulk(part.map((data) => ({ name: "job", data }))));
    const drain = new Drain(jobs);
    const worker = work(queue.name, async () => {}, slots);
    worker.on("completed", (job) => drain.ended(job.id));
    rates.push(await drain.rate);
    await worker.close();
  }
  return rates.sort((a, b) => a - b)[1];
}
const slots = [];
for (const [count, jobs] of SLOTS) slots.push(await drainWith(count, jobs));

const single = new Queue("single", { connection: connect() });
const add = await singles(singleJobs, (data) => single.add("job", data));

const timed = new Queue("timed", { connection: connect() });
const pickup = new Pickup(pickupJobs, everyMs);
const taker = work("timed", async (job) => pickup.started(job.data.n));
await taker.waitUntilReady();
const pickupMs = await pickup.measure((n) => timed.add("job", { n }));
await taker.close();

console.log(JSON.stringify({ addBulk, drain: drained, slots, add, pickupMs, ...drain.counts }));
process.exit(0);
