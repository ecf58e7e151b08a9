// What the mesh does now, and in the last hour.

import { Chart } from "../components/chart";
import { Command, Empty, Loaded, Meter, Page, Panel, ProjectLink, Table, Time } from "../components/ui";
import api, { analytics, base, body, type Schemas } from "../lib/api";
import { number, short } from "../lib/format";
import { counts } from "../lib/live";
import { href } from "../lib/router";
import { seesAll } from "../lib/session";
import { useQuery } from "../lib/use-query";

type Project = Schemas["ProjectSummary"];

const HOUR_MS = 3_600_000;
const MINUTE_MS = 60_000;

export const ENQUEUE = `curl -s ${base}/api/queue/enqueue \\
  -d '{"projectId":"invoices","batchId":"b1","data":{"text":"hello world"}}'`;

export function OverviewPage() {
  return (
    <Page title="Overview">
      {seesAll() && <Now />}
      <div class="columns">
        <LastHour />
        <BusiestProjects />
        <NewFailures />
      </div>
    </Page>
  );
}

function Now() {
  const now = counts.value;
  if (!now) return <p class="faint loading">Loading…</p>;
  const { queue, worker } = now;
  const facts: [label: string, value: number, to: string, detail?: string][] = [
    ["Queued", queue.queued, href(["jobs"], { status: "queued" }), `${number(queue.scheduled)} scheduled`],
    ["Running", queue.processing, href(["jobs"], { status: "processing" }), `of ${number(worker.maxConcurrency)} slots`],
    ["Completed", queue.completed, href(["jobs"], { status: "completed" })],
    ["Failed", queue.failed, href(["jobs"], { status: "failed" })],
    ["Canceled", queue.canceled, href(["jobs"], { status: "canceled" })],
    ["Processors", worker.processors, href(["processors"]), "online"],
  ];
  return (
    <section class="numbers" aria-label="All projects, now">
      {facts.map(([label, value, to, detail]) => (
        <a key={label} href={to} data-count={label.toLowerCase()}>
          <span class="label">{label}</span>
          <strong title={number(value)}>{short(value)}</strong>
          <span class="faint">{detail ?? "in all"}</span>
        </a>
      ))}
      <table class="classes">
        <caption>By class</caption>
        <thead>
          <tr>
            <th scope="col">Class</th>
            <th scope="col" class="number">Queued</th>
            <th scope="col" class="number">Running</th>
          </tr>
        </thead>
        <tbody>
          {(["high", "normal", "low"] as const).map((name) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td class="number">{number(queue.byClass[name].queued)}</td>
              <td class="number">{number(queue.byClass[name].processing)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function LastHour() {
  const query = useQuery("last-hour", (signal) => {
    const to = Math.ceil(Date.now() / MINUTE_MS) * MINUTE_MS;
    const from = new Date(to - HOUR_MS).toISOString();
    const range = { from, to: new Date(to).toISOString(), bucket: "minute" as const };
    return analytics(range, signal);
  });
  return (
    <Panel title="Last hour, by minute" aside={<a href={href(["analytics"])}>Analytics</a>}>
      <Loaded query={query}>
        {(analytics) => {
          const rows = new Map(analytics.rows.map((row) => [row.start, row]));
          const values = (of: (row: Schemas["BucketSums"]) => number) =>
            analytics.buckets.map((start) => {
              const row = rows.get(start);
              return row ? of(row) : 0;
            });
          const total = analytics.totals[0];
          return (
            <>
              <Chart
                label="Jobs that ended, by minute"
                starts={analytics.buckets}
                series={[
                  { label: "completed", color: "--completed", values: values((row) => row.completed) },
                  { label: "failed", color: "--failed", values: values((row) => row.failed) },
                ]}
              />
              <p class="faint">{sentence(total)}</p>
            </>
          );
        }}
      </Loaded>
    </Panel>
  );
}

/** One text: the end of a line does not move when a number before it grows. */
function sentence(total: Schemas["Sums"] | undefined): string {
  const tokens = (total?.inputTokens ?? 0) + (total?.outputTokens ?? 0);
  return `${number(total?.jobs)} jobs ended, ${number(total?.retries)} runs were retried, ${number(tokens)} tokens.`;
}

function BusiestProjects() {
  const query = useQuery("busiest", (signal) =>
    body(api.GET("/api/projects", { params: { query: { sort: "queued", limit: 10 } }, signal })),
  );
  return (
    <Panel title="Busiest projects" aside={<a href={href(["projects"])}>All projects</a>}>
      <Loaded query={query}>
        {({ projects }) =>
          projects.length === 0 ? (
            <Empty>
              <p>There is no job yet. Enqueue one:</p>
              <Command>{ENQUEUE}</Command>
            </Empty>
          ) : (
            <ProjectTable caption="The ten projects with the most queued jobs" projects={projects} />
          )
        }
      </Loaded>
    </Panel>
  );
}

export function ProjectTable({ caption, projects }: { caption: string; projects: Project[] }) {
  return (
    <Table
      caption={caption}
      rows={projects}
      id={(project) => project.projectId}
      href={(project) => href(["projects", project.projectId])}
      columns={[
        {
          name: "Project",
          cell: (project) => (
            <>
              <ProjectLink id={project.projectId} />
              {project.paused && <span class="badge paused">paused</span>}
            </>
          ),
        },
        { name: "Queued", isNumber: true, cell: (project) => number(project.queued) },
        {
          name: "Running",
          isNumber: true,
          cell: (project) => (
            <>
              {number(project.processing)}
              <Meter
                used={project.processing}
                limit={project.maxConcurrency}
                label={`${project.processing} of ${project.maxConcurrency} at once`}
              />
            </>
          ),
        },
        {
          name: "Starts/min",
          isNumber: true,
          cell: (project) => (
            <>
              {number(project.startsInLastMinute)}
              <Meter
                used={project.startsInLastMinute}
                limit={project.requestsPerMinute}
                label={`${project.startsInLastMinute} of ${project.requestsPerMinute} starts a minute`}
              />
            </>
          ),
        },
        {
          name: "Tokens/min",
          isNumber: true,
          cell: (project) => (
            <>
              {short(project.tokensInLastMinute)}
              <Meter
                used={project.tokensInLastMinute}
                limit={project.tokensPerMinute}
                label={`${project.tokensInLastMinute} of ${project.tokensPerMinute} tokens a minute`}
              />
            </>
          ),
        },
        { name: "Failed", isNumber: true, cell: (project) => number(project.failed) },
      ]}
    />
  );
}

function NewFailures() {
  const query = useQuery("new-failures", (signal) =>
    body(api.GET("/api/queue/failures", { params: { query: { status: "active", sort: "lastSeen", limit: 5 } }, signal })),
  );
  return (
    <Panel title="Last error groups" aside={<a href={href(["failures"])}>All failures</a>}>
      <Loaded query={query}>
        {({ groups }) =>
          groups.length === 0 ? (
            <Empty>
              <p>No error group is open.</p>
            </Empty>
          ) : (
            <Table
              caption="The five open error groups that were seen last"
              rows={groups}
              id={(group) => group.errorGroup}
              href={(group) => href(["jobs"], { errorGroup: group.errorGroup })}
              columns={[
                {
                  name: "Error",
                  cell: (group) => (
                    <a class="pattern" href={href(["jobs"], { errorGroup: group.errorGroup })} title={group.error}>
                      {group.pattern}
                    </a>
                  ),
                },
                { name: "Jobs", isNumber: true, cell: (group) => number(group.jobs) },
                { name: "Last seen", cell: (group) => <Time at={group.lastSeen} /> },
              ]}
            />
          )
        }
      </Loaded>
    </Panel>
  );
}
