"""Follows the jobs of Jobmesh over NATS, with the package nats-py.

  python3 follow.py <nats url> live <project>     at most once, from now on
  python3 follow.py <nats url> durable <name>     every event, including those while this was offline

A login in the URL is used: nats://user:password@host:4222.

A project's name is in a subject unchanged if it consists of A-Z, a-z, 0-9, - and _.
"""

import asyncio
import json
import sys

import nats


def change_of(event):
    """The change of a job's status that an event is, if it is one: (job, status)."""
    [(kind, it)] = event.items()
    # The mesh's own work, deliveries to webhooks, is of projects that no user can name.
    if (it.get("project") or it.get("labels", {}).get("project", "")).startswith("\u0001"):
        return None
    if kind == "enqueued":
        return it["job"], "queued"
    if kind == "started":
        return it["job"], "processing"
    if kind == "retried":
        return it["job"]["id"], "queued"
    if kind == "ended":
        # "failed" is a string; the others are an object with one field.
        to = it["to"]
        return it["job"], to if isinstance(to, str) else next(iter(to))
    return None


async def main(url, how, name):
    nc = await nats.connect(url)
    if how == "live":
        events = await nc.subscribe(f"jobmesh.event.{name}.>")
        await nc.flush()
        print("following", flush=True)
        async for message in events.messages:
            event = json.loads(message.data)
            print(event["position"], event["status"], event["jobId"], flush=True)
        return
    events = await nc.jetstream().pull_subscribe("jobmesh.evt", durable=name, stream="EVENTS")
    print("following", flush=True)
    while True:
        try:
            messages = await events.fetch(100, timeout=5)
        except asyncio.TimeoutError:
            continue
        for message in messages:
            # A message holds events that were decided together; a position is message and index.
            sequence = message.metadata.sequence.stream
            for place, event in enumerate(json.loads(message.data)["events"]):
                change = change_of(event)
                if change:
                    job, status = change
                    print(f"{sequence}.{place}", status, job, flush=True)
            await message.ack()


asyncio.run(main(*sys.argv[1:]))
