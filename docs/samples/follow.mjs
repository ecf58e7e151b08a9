// Follows the jobs of Jobmesh over NATS, with the packages @nats-io/transport-node and
// @nats-io/jetstream.
//
//   node follow.mjs <nats url> live <project>     at most once, from now on
//   node follow.mjs <nats url> durable <name>     every event, including those while this was offline
//
// A login in the URL is used: nats://user:password@host:4222.
//
// A project's name stands in a subject unchanged if it consists of A-Z, a-z, 0-9, - and _.
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const [url, how, name] = process.argv.slice(2);
const { host, username, password } = new URL(url);
const login = username ? { user: decodeURIComponent(username), pass: decodeURIComponent(password) } : {};
const nc = await connect({ servers: host, ...login });

if (how === "live") {
  const events = nc.subscribe(`jobmesh.event.${name}.>`);
  await nc.flush();
  console.log("following");
  for await (const message of events) {
    const event = message.json();
    console.log(event.position, event.status, event.jobId);
  }
} else {
  const manager = await jetstreamManager(nc);
  await manager.consumers.add("EVENTS", { durable_name: name, ack_policy: "explicit" });
  const consumer = await jetstream(nc).consumers.get("EVENTS", name);
  console.log("following");
  for await (const message of await consumer.consume()) {
    // A message holds events that were decided together; a position is message and index.
    message.json().events.forEach((event, place) => {
      const change = changeOf(event);
      if (change) console.log(`${message.seq}.${place}`, change.status, change.job);
    });
    message.ack();
  }
}

// The change of a job's status that an event is, if it is one.
function changeOf(event) {
  const [[kind, it]] = Object.entries(event);
  // The mesh's own work, deliveries to webhooks, is of projects that no user can name.
  const project = it.project ?? it.labels?.project ?? it.job?.project;
  if (project?.startsWith("\u0001")) return;
  switch (kind) {
    case "enqueued":
      return { job: it.job, status: "queued" };
    case "started":
      return { job: it.job, status: "processing" };
    case "retried":
      return { job: it.job.id, status: "queued" };
    case "ended": {
      // "failed" is a string; the others are an object with one field.
      const to = typeof it.to === "string" ? it.to : Object.keys(it.to)[0];
      return { job: it.job, status: to };
    }
  }
}
