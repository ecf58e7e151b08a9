// Follows jobs by server-sent events, as a browser does: one line per event, "<id> <status> <job>".
// Usage: node follow-sse.mjs <url of /api/queue/events>
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
for (const status of ["queued", "processing", "completed", "failed", "canceled", "gap", "lagged"]) {
  source.addEventListener(status, (event) => {
    console.log(event.lastEventId, status, JSON.parse(event.data).jobId);
  });
}
source.addEventListener("open", () => console.log("open"));
