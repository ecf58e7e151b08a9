// One job: where it stands and why, its attempts, its data and result.

import { useState } from "preact/hooks";
import { JsonTree } from "../components/json-tree";
import { Command, Confirm, Facts, isPriority, Loaded, Page, Panel, PriorityField, ProjectLink, StatusBadge, Table, Time, TimeField } from "../components/ui";
import api, { base, body, text, type Job, type Schemas } from "../lib/api";
import { cancel, retryJob, updateJob } from "../lib/changes";
import { duration, number, time } from "../lib/format";
import { at, parse, type Node } from "../lib/json";
import { counts } from "../lib/live";
import { href } from "../lib/router";
import { access, may } from "../lib/session";
import { useQuery } from "../lib/use-query";

interface Loaded {
  job: Job;
  /** The same job as a tree of what was sent. */
  node: Node | undefined;
  mayBeBehind: boolean;
}

async function load(id: string, signal: AbortSignal): Promise<Loaded> {
  const answer = await text(`/api/queue/status/${encodeURIComponent(id)}?history=true`, signal);
  const { job, mayBeBehind } = JSON.parse(answer) as Schemas["JobStatus"];
  return { job, node: at(parse(answer), "job"), mayBeBehind: mayBeBehind ?? false };
}

export function JobPage({ id }: { id: string }) {
  const query = useQuery(`job ${id}`, (signal) => load(id, signal));
  const job = query.data?.job;
  return (
    <Page title={`Job ${id.slice(0, 8)}`} aside={job && <Actions job={job} />}>
      <p class="mono faint">{id}</p>
      <Loaded query={query}>
        {({ job, node, mayBeBehind }) => (
          <>
            {mayBeBehind && <p class="problem">State does not answer: this may be behind by some seconds.</p>}
            <JobFacts job={job} />
            {job.status === "queued" && <Reason job={job} />}
            {job.error && (
              <Panel title={job.status === "failed" ? "Error" : "Last error"}>
                <pre class="text">{job.error}</pre>
              </Panel>
            )}
            <History job={job} />
            <Content job={job} node={node} />
          </>
        )}
      </Loaded>
    </Page>
  );
}

function JobFacts({ job }: { job: Job }) {
  const end = job.completedAt ? Date.parse(job.completedAt) : Date.now();
  const facts: [string, preact.ComponentChildren][] = [
    ["Status", <StatusBadge status={job.status} />],
    ["Project", <ProjectLink id={job.projectId} />],
    ["Batch", <a href={href(["jobs"], { projectId: job.projectId, batchId: job.batchId })}>{job.batchId}</a>],
    ["Type", job.type],
    ["Priority", job.priority === undefined || job.priority === null ? "–" : number(job.priority)],
    ["Attempts", `${job.attempts}${job.maxAttempts ? ` of ${job.maxAttempts}` : ""}`],
    ["Created", <Time at={job.createdAt} />],
    ["Not before", job.runAt ? <Time at={job.runAt} /> : "–"],
    ["Expires", job.expiresAt ? <Time at={job.expiresAt} /> : "–"],
    ["Started", <Time at={job.startedAt} />],
    ["Ended", <Time at={job.completedAt} />],
    ["Ran for", job.startedAt ? duration(end - Date.parse(job.startedAt)) : "–"],
    ["Tokens", job.tokens ? `${number(job.tokens.input)} in, ${number(job.tokens.output)} out` : "–"],
    ["Model", job.model ?? "–"],
    ["Processor", job.worker ? <a href={href(["jobs"], { processor: job.worker })}>{job.worker}</a> : "–"],
    ["Superseded by", job.supersededBy ? <a href={href(["jobs", job.supersededBy])}>{job.supersededBy}</a> : "–"],
  ];
  return <Facts facts={facts} />;
}

/** Why a queued job does not run yet: what its project may do, and who could run it. */
function Reason({ job }: { job: Job }) {
  const query = useQuery(`waits ${job.projectId}`, (signal) =>
    body(api.GET("/api/projects/{projectId}", { params: { path: { projectId: job.projectId } }, signal })),
  );
  return (
    <Panel title="Why it waits">
      <Loaded query={query}>{({ project }) => <p>{project && reason(job, project)}</p>}</Loaded>
    </Panel>
  );
}

export function reason(job: Job, project: Schemas["Project"]): string {
  const { usage } = project;
  if (project.paused) return "Its project is paused.";
  if (job.runAt && Date.parse(job.runAt) > Date.now()) return `It starts at ${time(job.runAt)} or later.`;
  const reached = (used: number, limit: number | null | undefined) => Boolean(limit) && used >= (limit ?? 0);
  if (reached(usage.runningJobs, project.maxConcurrency)) {
    return `Its project runs ${number(usage.runningJobs)} jobs and may run ${number(project.maxConcurrency)} at once.`;
  }
  if (reached(usage.startsInLastMinute, project.requestsPerMinute)) {
    return `Its project started ${number(usage.startsInLastMinute)} runs in the last minute, its limit.`;
  }
  if (reached(usage.tokensInLastMinute, project.tokensPerMinute)) {
    return `Its project used ${number(usage.tokensInLastMinute)} tokens in the last minute, and its limit is ${number(project.tokensPerMinute)}.`;
  }
  const worker = counts.value?.worker;
  if (worker && worker.processors === 0) return "No processor is online.";
  if (worker && worker.activeJobs >= worker.maxConcurrency) {
    return `All ${number(worker.maxConcurrency)} slots are taken: it starts when those before it have.`;
  }
  return "It is about to start, or no processor takes its type.";
}

function History({ job }: { job: Job }) {
  const steps = job.history ?? [];
  return (
    <Panel title="History">
      <Table
        caption="The steps of the job, the first one first"
        rows={steps.map((step, n) => ({ ...step, n, next: steps[n + 1] }))}
        id={(step) => String(step.n)}
        columns={[
          { name: "At", cell: (step) => <span title={time(step.at)}>{time(step.at)}</span> },
          { name: "Status", cell: (step) => <StatusBadge status={step.status} /> },
          { name: "Run", isNumber: true, cell: (step) => number(step.run) },
          { name: "Attempt", isNumber: true, cell: (step) => number(step.attempt) },
          {
            name: "For",
            isNumber: true,
            cell: (step) => (step.next ? duration(Date.parse(step.next.at) - Date.parse(step.at)) : "–"),
          },
          { name: "Processor", cell: (step) => step.worker ?? "–" },
          { name: "Why", cell: (step) => step.reason ?? "–" },
          { name: "Error", cell: (step) => <span class="clip" title={step.error ?? undefined}>{step.error ?? "–"}</span> },
        ]}
      />
    </Panel>
  );
}

function Content({ job, node }: { job: Job; node: Node | undefined }) {
  const part = (name: string) => node && at(node, name);
  const parts: [title: string, node: Node | undefined][] = [
    ["Progress", part("progress")],
    ["Data", part("data")],
    ["Result", part("result")],
  ];
  if (access.value?.metadataOnly) return <p class="faint">The API key hides data and results.</p>;
  const key = access.value?.keyId ? ' -H "Authorization: Bearer $JOBMESH_KEY"' : "";
  return (
    <>
      {parts.map(([title, node]) => node && <Panel key={title} title={title}><JsonTree node={node} label={title} /></Panel>)}
      {job.resultUrl && (
        <Panel title="Result">
          <p>
            It has {number(job.resultBytes)} bytes and is kept apart:
          </p>
          <Command>{`curl -s${key} ${base}${job.resultUrl}`}</Command>
        </Panel>
      )}
      <Panel title="As a request">
        <Command>{`curl -s${key} "${base}/api/queue/status/${job.id}?history=true"`}</Command>
      </Panel>
    </>
  );
}

/** The most seconds that a job may wait. */
const EXPIRES_IN_MAX = 316_224_000;

/** Asks for another priority, time or expiry of a queued job. */
function Change({ job, onClose }: { job: Job; onClose: () => void }) {
  const [priority, setPriority] = useState(String(job.priority ?? 10));
  const [runAt, setRunAt] = useState(job.runAt ?? "");
  const [expiry, setExpiry] = useState("");
  const isExpiry = expiry === "" || (/^\d{1,9}$/.test(expiry) && Number(expiry) <= EXPIRES_IN_MAX);
  const expiresIn = expiry === "" ? undefined : Number(expiry) || null;
  return (
    <Confirm
      title="Change this job?"
      action="Change"
      isReady={isPriority(priority) && isExpiry}
      isDangerous={false}
      onClose={onClose}
      onConfirm={(why) => updateJob(job.id, Number(priority), runAt, expiresIn, why)}
    >
      <PriorityField value={priority} onChange={setPriority} />
      <TimeField label="Not before (empty for at once)" value={runAt} onChange={setRunAt} />
      <label class="field">
        <span>Expires in (seconds; empty: as it is, 0: never)</span>
        <input inputMode="numeric" value={expiry} onInput={(event) => setExpiry(event.currentTarget.value.trim())} />
      </label>
    </Confirm>
  );
}

function Actions({ job }: { job: Job }) {
  const [asked, setAsked] = useState<"retry" | "cancel" | "change" | null>(null);
  if (!may("manage")) return null;
  const close = () => setAsked(null);
  const isActive = job.status === "queued" || job.status === "processing";
  const isRetried = (job.status === "failed" || job.status === "canceled") && !job.archived;
  return (
    <>
      {isRetried && (
        <button type="button" onClick={() => setAsked("retry")}>
          Retry
        </button>
      )}
      {job.status === "queued" && (
        <button type="button" onClick={() => setAsked("change")}>
          Change…
        </button>
      )}
      {asked === "change" && <Change job={job} onClose={close} />}
      {isActive && (
        <button type="button" class="danger" onClick={() => setAsked("cancel")}>
          Cancel
        </button>
      )}
      {asked === "retry" && (
        <Confirm title="Retry this job?" action="Retry" onClose={close} onConfirm={(why) => retryJob(job.projectId, job.id, why)}>
          <p>It is queued again, and its attempts start at 0.</p>
        </Confirm>
      )}
      {asked === "cancel" && (
        <Confirm
          title="Cancel the batch of this job?"
          action="Cancel it"
          onClose={close}
          onConfirm={(why) => cancel(job.projectId, [job.batchId], why)}
        >
          <p>
            All active jobs of batch <strong>{job.batchId}</strong> in project <strong>{job.projectId}</strong> end as canceled; a
            running one is stopped.
          </p>
        </Confirm>
      )}
    </>
  );
}
