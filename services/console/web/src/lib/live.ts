// One event stream per tab: counts once a second, and the position that changes with any job.

import { signal } from "@preact/signals";
import { base, type Schemas } from "./api";
import { access, key, seesAll, signOut } from "./session";
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
  void run(stop.signal);
  return () => stop.abort();
}

async function run(signal: AbortSignal) {
  while (!signal.aborted) {
    if (access.value !== null && !seesAll()) {
      connection.value = "polling";
      lookAgain();
      await pause(POLL_MS, signal);
      continue;
    }
    try {
      const headers: Record<string, string> = key.value ? { authorization: `Bearer ${key.value}` } : {};
      const response = await follow(`${base}/api/queue/live`, headers, signal, ({ event, data }) => {
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
    }
    await pause(RECONNECT_MS, signal);
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}
