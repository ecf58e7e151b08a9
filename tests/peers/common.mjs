// What the peers' programs share: the jobs' data, clocks, and how each part is measured.

/** How many callers ask at once, in bulk and one by one; jobs of a bulk request; jobs run at once. */
export const BULK_CALLERS = 4;
export const CALLERS = 64;
export const REQUEST_JOBS = 1000;
export const CONCURRENCY = 256;
/** Few slots, and the jobs of each of three drains with them. */
export const SLOTS = [[1, 2000], [8, 8000]];

/** A text as long as that of Jobmesh's benchmark, the same for the same number. */
export function text(n) {
  let letters = "";
  for (let x = n + 1; letters.length < 245; x = (x * 48271) % 2147483647) {
    letters += String.fromCharCode(97 + (x % 26));
  }
  return letters;
}

const now = () => Number(process.hrtime.bigint()) / 1e6;

/** Jobs a second of `add(part)`, over parts of REQUEST_JOBS data, BULK_CALLERS at a time. */
export async function bulk(jobs, add) {
  const parts = Array.from({ length: jobs / REQUEST_JOBS }, (_, part) =>
    Array.from({ length: REQUEST_JOBS }, (_, n) => ({ text: text(part * REQUEST_JOBS + n) })),
  );
  const begun = now();
  const next = parts.values();
  await Promise.all(Array.from({ length: BULK_CALLERS }, async () => {
    for (const part of next) await add(part);
  }));
  return (jobs * 1000) / (now() - begun);
}

/** Jobs a second of `add(data)` from CALLERS at a time. */
export async function singles(jobs, add) {
  const begun = now();
  let left = jobs;
  await Promise.all(Array.from({ length: CALLERS }, async () => {
    while (left-- > 0) await add({ text: text(left) });
  }));
  return (jobs * 1000) / (now() - begun);
}

/** Counts ends: jobs a second from the first to the last of them. */
export class Drain {
  #first;
  #ran = new Set();
  #runs = 0;
  #resolve;
  constructor(jobs) {
    this.jobs = jobs;
    this.rate = new Promise((resolve) => (this.#resolve = resolve));
  }
  ended(id) {
    this.#ran.add(id);
    this.#runs += 1;
    this.#first ??= now();
    if (this.#runs === this.jobs) this.#resolve(((this.jobs - 1) * 1000) / (now() - this.#first));
  }
  /** How many jobs ran, and how often in all. */
  get counts() {
    return { ran: this.#ran.size, runs: this.#runs };
  }
}

/** Time from the end of `add(n)` to the start of its handler, which calls `started(n)`. */
export class Pickup {
  #added = new Map();
  #started = new Map();
  #resolve;
  constructor(jobs, everyMs) {
    [this.jobs, this.everyMs] = [jobs, everyMs];
    this.all = new Promise((resolve) => (this.#resolve = resolve));
  }
  started(n) {
    this.#started.set(n, now());
    if (this.#started.size === this.jobs) this.#resolve();
  }
  async measure(add) {
    const begun = now();
    for (let n = 0; n < this.jobs; n++) {
      const wait = begun + n * this.everyMs - now();
      if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      await add(n);
      this.#added.set(n, now());
    }
    await this.all;
    return [...this.#added].map(([n, at]) => this.#started.get(n) - at);
  }
}
