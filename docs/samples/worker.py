"""A processor of Jobmesh in Python, over NATS alone, with the package nats-py.

  python3 worker.py nats://processor:<password>@<address>

With a login of its own (docs/security.md), which also needs the package nkeys:

  JOBMESH_NATS_NKEY_FILE=ocr.nk JOBMESH_NATS_INBOX=processor-ocr python3 worker.py nats://<address>

It takes jobs of type process_batch, upper-cases their data's text, and says what came of it. The
protocol is in docs/processors.md; this is all of it that a processor has to do.
"""

import asyncio
import json
import os
import sys
import time
import uuid

import nats
from nats.js.api import AckPolicy, ConsumerConfig

SLOTS = 4
TYPE = "process_batch"
CLASSES = ["high", "normal", "low"]


def now_ms():
    return time.time_ns() // 1_000_000


class Worker:
    def __init__(self, nc):
        self.nc, self.js = nc, nc.jetstream()
        self.name = f"python-{uuid.uuid4().hex[:8]}"
        # (job, run) -> (task, message): runs in flight, until their outcome is stored.
        self.in_flight = {}
        self.stopped = {}  # job -> the last run that is not to be run

    async def start(self):
        # What a broker hands out that is not newer than this may be in another's hands.
        self.ends = {}
        self.subs = {}
        for cls in CLASSES:
            stream = f"WORK_{cls.upper()}"
            self.ends[cls] = (await self.js.stream_info(stream)).state.last_seq
            config = ConsumerConfig(
                # With a name, the request names the filter too: a login of its own may make no other.
                name=TYPE,
                durable_name=TYPE,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=10,
                max_deliver=-1,
                max_ack_pending=100_000,
                filter_subject=f"jobmesh.work.{cls}.{TYPE}.*.*",
            )
            await self.js.add_consumer(stream, config)
            self.subs[cls] = await self.js.pull_subscribe_bind(TYPE, stream)
        await self.nc.subscribe("jobmesh.control.cancel", cb=self.on_cancel)
        await self.nc.subscribe("jobmesh.control.heartbeat-request", cb=self.on_heartbeat_request)

    async def on_cancel(self, message):
        for job, run in json.loads(message.data)["runs"]:
            self.stop(job, run)

    async def on_heartbeat_request(self, _):
        await self.publish_heartbeat()

    def stop(self, job, run):
        self.stopped[job] = max(run, self.stopped.get(job, 0))
        for (id, held), (task, _) in list(self.in_flight.items()):
            if id == job and held <= run:
                task.cancel()

    async def publish_heartbeat(self):
        said = {
            "processor": self.name,
            "capacity": SLOTS,
            "types": [TYPE],
            "running": [[job, run] for job, run in self.in_flight],
            "draining": False,
        }
        await self.nc.publish(f"jobmesh.heartbeat.{self.name}", json.dumps(said).encode())

    async def keep_alive(self):
        """Says every 2 s that this processor is there, and extends what it holds."""
        while True:
            await self.publish_heartbeat()
            for _, message in list(self.in_flight.values()):
                await message.in_progress()
            runs = [[job, run] for job, run in self.in_flight]
            if runs:
                await self.ask_current(runs)
            await asyncio.sleep(2)

    async def ask_current(self, runs):
        """Stops what is not wanted any more: the leading state service knows."""
        query = json.dumps({"processor": self.name, "runs": runs}).encode()
        try:
            answer = await self.nc.request("jobmesh.state.current", query, timeout=2)
        except Exception:
            return  # State is away: everything goes on.
        for job, run in json.loads(answer.data)["runs"]:
            self.stop(job, run)

    async def publish_command(self, verb, command):
        """Puts a word into COMMANDS, again under the same id until the broker has it."""
        headers = {"Nats-Msg-Id": str(uuid.uuid4())}
        body = json.dumps([{"id": str(uuid.uuid4()), "command": command}]).encode()
        while True:
            try:
                await self.js.publish(f"jobmesh.cmd.{verb}", body, headers=headers)
                return
            except Exception as error:
                print(f"not committed yet: {error}", file=sys.stderr)
                await asyncio.sleep(0.2)

    def outcome(self, work, cls, end, started_at=None, usage=None):
        return {
            "job": work["job"],
            "run": work["run"],
            "worker": self.name,
            "labels": {
                "project": work["project"],
                "batch": work["batch"],
                "type": work["type"],
                "class": cls,
                "attempt": work["attempt"],
                "queuedAt": work["queuedAt"],
            },
            **({"startedAt": started_at} if started_at else {}),
            "finishedAt": now_ms(),
            "usage": usage or {},
            "end": end,
            "token": work.get("token"),
        }

    async def may_run(self, work, message, cls):
        """A run is run by its first delivery only."""
        meta = message.metadata
        if meta.num_delivered > 1:
            return False
        if meta.sequence.stream > self.ends[cls]:
            return True
        # It waited before this processor came: the leading state service knows whether it is free.
        run = [work["job"], work["run"]]
        query = json.dumps({"processor": self.name, "runs": [run]}).encode()
        while True:
            try:
                answer = await self.nc.request("jobmesh.state.claim", query, timeout=2)
                return run in json.loads(answer.data)["runs"]
            except Exception:
                await message.in_progress()
                await asyncio.sleep(0.2)

    async def take(self, message, cls):
        work = json.loads(message.data)
        run = (work["job"], work["run"])
        if run in self.in_flight or work["run"] <= self.stopped.get(work["job"], 0):
            await message.ack()
            return
        if not await self.may_run(work, message, cls):
            await self.publish_command("outcome", self.outcome(work, cls, "redelivered"))
            await message.ack()
            return
        task = asyncio.create_task(self.run(work, message, cls))
        self.in_flight[run] = (task, message)

    async def run(self, work, message, cls):
        started_at = now_ms()
        run = (work["job"], work["run"])
        started = {"job": run[0], "run": run[1], "worker": self.name, "at": started_at,
                   "token": work.get("token")}
        await self.publish_command("started", started)
        try:
            result, usage = await self.handle(work)
            end = {"done": {"result": result}}
        except asyncio.CancelledError:
            end = None  # Nobody waits for its outcome.
        except Exception as error:
            end, usage = {"retry": {"error": str(error)}}, {}
        if end:
            await self.publish_command("outcome", self.outcome(work, cls, end, started_at, usage))
        # Record, then ack.
        await message.ack()
        self.in_flight.pop(run, None)

    async def handle(self, work):
        """The work itself: what it comes to, and what it cost."""
        text = work["data"]["text"]
        return {"text": text.upper()}, {"inputTokens": len(text), "model": "upper"}

    async def pull(self, cls):
        while True:
            free = SLOTS - len(self.in_flight)
            if free == 0:
                await asyncio.sleep(0.01)
                continue
            try:
                for message in await self.subs[cls].fetch(1, timeout=2):
                    await self.take(message, cls)
            except asyncio.TimeoutError:
                pass


async def main(url):
    connection = await nats.connect(
        url,
        inbox_prefix="_INBOX." + os.environ.get("JOBMESH_NATS_INBOX", "processor"),
        nkeys_seed=os.environ.get("JOBMESH_NATS_NKEY_FILE"),
    )
    worker = Worker(connection)
    await worker.start()
    print("working", flush=True)
    await asyncio.gather(worker.keep_alive(), *(worker.pull(cls) for cls in CLASSES))


asyncio.run(main(sys.argv[1]))
