// Measures BullMQ on a Redis server: bulk and single enqueue, and a drain.
//
//   node bullmq.mjs <port> <jobs> <single jobs>
//
// Writes one line of JSON: rates in jobs a second, and how many jobs were run, each once.
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";

const [port, jobs, singles] = process.argv.slice(2).map(Number);
const connect = () => new Redis(port, "127.0.0.1", { maxRetriesPerRequest: null });
const text = (n) => {
  let letters = "";
  for (let x = n + 1; letters.length < 243; x = (x * 48271) % 2147483647) {
    letters += String.fromCharCode(97 + (x % 26));
  }
  return letters;
};
const seconds = async (work) => {
  const begun = process.hrtime.bigint();
  await work();
  return Number(process.hrtime.bigint() - begun) / 1e9;
};

const bulk = new Queue("bulk", { connection: connect() });
const parts = Array.from({ length: jobs / 1000 }, (_, part) =>
  Array.from({ length: 1000 }, (_, n) => ({ name: "job", data: { text: text(part * 1000 + n) } })),
);
const added = await seconds(async () => {
  // Four at a time, as Jobmesh is asked.
  const next = parts.values();
  await Promise.all(Array.from({ length: 4 }, async () => {
    for (const part of next) await bulk.addBulk(part);
  }));
});

const ran = new Set();
let runs = 0;
let first, firstRuns;
const drained = await new Promise((resolve) => {
  const worker = new Worker(
    "bulk",
    async (job) => {
      ran.add(job.id);
    },
    { connection: connect(), concurrency: 256 },
  );
  worker.on("completed", () => {
    runs += 1;
    if (first === undefined) [first, firstRuns] = [process.hrtime.bigint(), runs];
    if (runs === jobs) {
      const took = Number(process.hrtime.bigint() - first) / 1e9;
      worker.close().then(() => resolve((runs - firstRuns) / took));
    }
  });
});

const single = new Queue("single", { connection: connect() });
const one = await seconds(async () => {
  let left = singles;
  await Promise.all(Array.from({ length: 64 }, async () => {
    while (left-- > 0) await single.add("job", { text: text(left) });
  }));
});
console.log(JSON.stringify({ addBulk: jobs / added, drain: drained, add: singles / one, ran: ran.size, runs }));
process.exit(0);
