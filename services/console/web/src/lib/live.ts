// One event stream per tab: counts once a second, and the position that changes with any job.

import { signal } from "@preact/signals";
import { authorization, base, text, type Schemas } from "./api";
import { access, seesAll, signOut } from "./session";
import { follow } from "./sse";

export type Counts = Pick<Schemas["Stats"], "queue" | "worker">;

/** The counts of all projects; null until the first event, and for keys of some projects. */
export const counts = signal<Counts | null>(null);
/** Changes when any job has changed, or when it is time to look again. */
export const version = signal(0);
/** `stale` if the edge answers and state does not: counts are the last ones. */
export const connection = signal<"connecting" | "live" | "polling" | "stale" | "offline">("connecting");

/** How long to wait before a stream that ended is opened again, in ms. */
const RECONNECT_MS = 2_000;
/** How often to look again without a stream, in ms. */
const POLL_MS = 5_000;
/** How long a stream may be without any byte: the edge sends a comment every 15 s, in ms. */
const SILENT_MS = 40_000;
/** How often views are loaded again without a change: ages and shares of a minute change by themselves, in ms. */
const CLOCK_MS = 10_000;
/** The shortest time between two looks: many jobs change every second, in ms. */
const LOOK_MS = 1_500;

let last = 0;
let pending: ReturnType<typeof setTimeout> | undefined;

/** Lets all views look again, at most once in a while. */
export function lookAgain() {
  if (pending !== undefined) return;
  const wait = Math.max(0, last + LOOK_MS - performance.now());
  pending = setTimeout(() => {
    pending = undefined;
    last = performance.now();
    // A hidden tab looks again when it is shown.
    if (document.visibilityState === "visible") version.value += 1;
  }, wait);
}

/** Follows the counts until the returned function is called. */
export function connect(): () => void {
  const stop = new AbortController();
  const shown = () => document.visibilityState === "visible" && lookAgain();
  document.addEventListener("visibilitychange", shown, { signal: stop.signal });
  const clock = setInterval(lookAgain, CLOCK_MS);
  void run(stop.signal);
  return () => {
    clearInterval(clock);
    stop.abort();
    counts.value = null;
  };
}

async function run(signal: AbortSignal) {
  while (!signal.aborted) {
    if (access.value !== null && !seesAll()) {
      connection.value = "polling";
      lookAgain();
      await pause(POLL_MS, signal);
      continue;
    }
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), SILENT_MS);
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENT_MS);
    };
    try {
      const either = AbortSignal.any([signal, silence.signal]);
      const response = await follow(`${base}/api/queue/live`, authorization(), either, heard, ({ event, data }) => {
        if (event === "unavailable") connection.value = "stale";
        if (event !== "stats") return;
        connection.value = "live";
        counts.value = JSON.parse(data) as Counts;
        lookAgain();
      });
      if (response.status === 401) return signOut();
      if (!response.ok) connection.value = "offline";
    } catch {
      if (!signal.aborted) connection.value = "offline";
    } finally {
      clearTimeout(timer);
    }
    if (!signal.aborted) await loadCounts(signal);
    await pause(RECONNECT_MS, signal);
  }
}

/** Loads the counts once: a proxy may hold streams back, or the edge refuse one more. */
async function loadCounts(signal: AbortSignal) {
  try {
    counts.value = JSON.parse(await text("/api/queue/stats", signal)) as Counts;
    connection.value = "polling";
    lookAgain();
  } catch {
    // The next attempt follows.
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      done();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });
}
