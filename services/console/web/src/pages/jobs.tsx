// Lists of jobs. Rows do not move under the pointer: jobs that came since are counted, and shown when asked for.

import { useEffect, useRef, useState } from "preact/hooks";
import { BulkBar } from "../components/bulk-bar";
import {
  Command,
  Empty,
  JobLink,
  Loaded,
  Page,
  Pager,
  ProjectLink,
  Select,
  STATUSES,
  StatusBadge,
  Table,
  TextField,
  TimeField,
  Time,
  type Column,
} from "../components/ui";
import api, { body, type Job } from "../lib/api";
import { count, duration, number } from "../lib/format";
import { counts } from "../lib/live";
import { go, href, setParams, view } from "../lib/router";
import { may } from "../lib/session";
import { useQuery } from "../lib/use-query";
import { ENQUEUE } from "./overview";

const TEXTS = [
  ["projectId", "Project"],
  ["batchId", "Batch"],
  ["model", "Model"],
  ["processor", "Processor"],
  ["errorGroup", "Error group"],
] as const;
const TIMES = [
  ["from", "Ended from"],
  ["to", "Ended before"],
] as const;
const FILTERS = ["status", "type", ...TEXTS.map(([name]) => name), ...TIMES.map(([name]) => name)];

const COLUMNS: Column<Job>[] = [
  { name: "Job", cell: (job) => <JobLink id={job.id} /> },
  { name: "Status", cell: (job) => <StatusBadge status={job.status} /> },
  { name: "Project", cell: (job) => <ProjectLink id={job.projectId} /> },
  { name: "Batch", cell: (job) => <span class="clip">{job.batchId}</span> },
  { name: "Attempts", isNumber: true, cell: (job) => `${job.attempts}${job.maxAttempts ? ` of ${job.maxAttempts}` : ""}` },
  { name: "Priority", isNumber: true, cell: (job) => job.priority ?? "–" },
  { name: "Created", cell: (job) => <Time at={job.createdAt} /> },
  { name: "Ran for", isNumber: true, cell: (job) => ran(job) },
  { name: "Tokens", isNumber: true, cell: (job) => (job.tokens ? number(job.tokens.input + job.tokens.output) : "–") },
  { name: "Model", cell: (job) => job.model ?? "–" },
  { name: "Error", cell: (job) => <span class="clip" title={job.error ?? undefined}>{job.error ?? "–"}</span> },
];

function ran(job: Job): string {
  if (!job.startedAt) return "–";
  const end = job.completedAt ? Date.parse(job.completedAt) : Date.now();
  return duration(end - Date.parse(job.startedAt));
}

type Filters = Record<string, string>;

function filtersOf(params: URLSearchParams): Filters {
  return Object.fromEntries(FILTERS.flatMap((name) => (params.get(name) ? [[name, params.get(name) ?? ""]] : [])));
}

export function JobsPage() {
  const { params } = view.value;
  const filters = filtersOf(params);
  const cursor = params.get("cursor") ?? undefined;
  const query = useQuery(`jobs ${JSON.stringify(filters)} ${cursor}`, (signal) => {
    const query = { ...filters, cursor, limit: 50 } as NonNullable<Parameters<typeof list>[0]>;
    return list(query, signal);
  });
  return (
    <Page title="Jobs">
      <FilterBar filters={filters} />
      <Loaded query={query}>
        {({ jobs, nextCursor }) => (
          <>
            <Listed
              key={JSON.stringify([filters, cursor])}
              jobs={jobs}
              filters={filters}
              hasMore={nextCursor !== undefined && nextCursor !== null}
            />
            <Pager next={nextCursor} params={(cursor) => setParams({ cursor })} />
          </>
        )}
      </Loaded>
    </Page>
  );
}

function list(
  query: NonNullable<import("../../types/api").paths["/api/queue/jobs"]["get"]["parameters"]["query"]>,
  signal: AbortSignal,
) {
  return body(api.GET("/api/queue/jobs", { params: { query }, signal }));
}

function FilterBar({ filters }: { filters: Filters }) {
  const set = (name: string, value: string) => setParams({ [name]: value, cursor: null });
  return (
    <div class="filters">
      <Select
        label="Status"
        value={filters.status ?? ""}
        options={[["", "any"], ...STATUSES.map((status): [string, string] => [status, status])]}
        onChange={(value) => set("status", value)}
      />
      <Select
        label="Type"
        value={filters.type ?? ""}
        options={[
          ["", "any"],
          ["process_batch", "process_batch"],
          ["process_redo", "process_redo"],
        ]}
        onChange={(value) => set("type", value)}
      />
      {TEXTS.map(([name, label]) => (
        <TextField key={name} label={label} value={filters[name] ?? ""} onChange={(value) => set(name, value)} />
      ))}
      {TIMES.map(([name, label]) => (
        <TimeField key={name} label={label} value={filters[name] ?? ""} onChange={(value) => set(name, value)} />
      ))}
      {Object.keys(filters).length > 0 && (
        <button type="button" onClick={() => go(href(["jobs"]))}>
          Clear
        </button>
      )}
    </div>
  );
}

/** How many jobs match, if state has counted them. */
function matching(filters: Filters): string {
  const names = Object.keys(filters);
  const queue = counts.value?.queue;
  if (!queue || names.some((name) => name !== "status")) return "";
  const all: Record<string, number> = {
    queued: queue.queued,
    processing: queue.processing,
    completed: queue.completed,
    failed: queue.failed,
    canceled: queue.canceled,
  };
  const total = filters.status ? (all[filters.status] ?? 0) : queue.totalJobs;
  return ` of ${number(total)} in all projects`;
}

function Listed({ jobs, filters, hasMore }: { jobs: Job[]; filters: Filters; hasMore: boolean }) {
  const [shown, setShown] = useState(jobs);
  const [marked, setMarked] = useState<string[]>([]);
  const place = useRef<HTMLDivElement>(null);
  const current = new Map(jobs.map((job) => [job.id, job]));
  const ids = new Set(shown.map((job) => job.id));
  const newer = jobs.filter((job) => !ids.has(job.id));
  const selected = new Set(marked.filter((id) => ids.has(id)));
  const isHeld = () => selected.size > 0 || (place.current?.matches(":hover, :focus-within") ?? false);
  useEffect(() => {
    if (!isHeld()) setShown(jobs);
    // Cells change in place.
    else setShown((shown) => shown.map((job) => current.get(job.id) ?? job));
  }, [jobs]);
  if (shown.length === 0 && newer.length === 0) {
    if (hasMore) return <p>No job on this page.</p>;
    return (
      <Empty>
        {Object.keys(filters).length > 0 ? (
          <p>No job matches. Lists show a job until its project’s retention is over, and its row in ClickHouse after that.</p>
        ) : (
          <>
            <p>There is no job yet. Enqueue one:</p>
            <Command>{ENQUEUE}</Command>
          </>
        )}
      </Empty>
    );
  }
  return (
    <div ref={place}>
      {newer.length > 0 && (
        <p>
          <button type="button" class="newer" onClick={() => setShown(jobs)}>
            {count(newer.length, "newer job")}, show
          </button>
        </p>
      )}
      {may("manage") && <BulkBar filters={filters} jobs={shown} selected={selected} onSelect={setMarked} />}
      <Table
        caption={`${count(shown.length, "job")}${matching(filters)}; times are relative to now`}
        columns={COLUMNS}
        rows={shown}
        id={(job) => job.id}
        href={(job) => href(["jobs", job.id])}
        marks={may("manage") ? { ids: selected, onChange: setMarked, label: (job) => `Select job ${job.id}` } : undefined}
      />
    </div>
  );
}
