// Failed runs, grouped by what their errors have in common.

import { useState } from "preact/hooks";
import { Sparkline } from "../components/chart";
import { OperationDialog } from "../components/operation-dialog";
import { Empty, JobLink, Loaded, Page, Pager, ProjectLink, Select, Table, TextField, Time, type Column } from "../components/ui";
import api, { body, type Schemas } from "../lib/api";
import { number } from "../lib/format";
import { href, setParams, view } from "../lib/router";
import { may } from "../lib/session";
import { useQuery } from "../lib/use-query";

const HOUR_MS = 3_600_000;
/** Hours of a sparkline. */
const HOURS = 24;

type Group = Schemas["FailureGroup"];

const RANGES: [string, string][] = [
  ["24", "24 hours"],
  ["168", "7 days"],
  ["720", "30 days"],
  ["0", "all time"],
];

export function FailuresPage() {
  const { params } = view.value;
  const projectId = params.get("projectId") ?? "";
  const hours = RANGES.some(([value]) => value === params.get("hours")) ? (params.get("hours") ?? "") : "168";
  const sort = (params.get("sort") ?? "lastSeen") as Schemas["FailureOrder"];
  const cursor = params.get("cursor") ?? undefined;
  const [retried, setRetried] = useState<Group | null>(null);
  const query = useQuery(`failures ${projectId} ${hours} ${sort} ${cursor}`, (signal) => {
    const from = hours !== "0" ? new Date(Date.now() - Number(hours) * HOUR_MS).toISOString() : undefined;
    const query = { projectId: projectId || undefined, from, sort, cursor };
    return body(api.GET("/api/queue/failures", { params: { query }, signal }));
  });
  const set = (name: string, value: string) => setParams({ [name]: value, cursor: null });
  return (
    <Page title="Failures">
      <div class="filters">
        <TextField label="Project" value={projectId} onChange={(value) => set("projectId", value)} />
        <Select label="Seen in the last" value={hours} options={RANGES} onChange={(value) => set("hours", value)} />
        <Select
          label="Sort by"
          value={sort}
          options={[
            ["lastSeen", "Last seen"],
            ["jobs", "Failed jobs"],
          ]}
          onChange={(value) => set("sort", value)}
        />
      </div>
      <Loaded query={query}>
        {({ groups, nextCursor }) =>
          groups.length === 0 ? (
            <Empty>
              <p>No run has failed in this time.</p>
            </Empty>
          ) : (
            <>
              <Table
                caption="Error groups: errors that differ in numbers, ids, URLs and quoted text only"
                rows={groups}
                id={(group) => group.errorGroup}
                href={(group) => jobs(group, projectId)}
                columns={[
                  {
                    name: "Error",
                    cell: (group) => (
                      <a class="pattern" href={jobs(group, projectId)} title={group.error}>
                        {group.pattern}
                      </a>
                    ),
                  },
                  ...(may("manage") ? [retryColumn(setRetried)] : []),
                  { name: "Failed jobs", isNumber: true, cell: (group) => number(group.jobs) },
                  { name: "Failed runs", isNumber: true, cell: (group) => number(group.runs) },
                  {
                    name: `Last ${HOURS} hours`,
                    cell: (group) => <Sparkline values={lastHours(group)} label={`failed runs in the last ${HOURS} hours`} />,
                  },
                  { name: "First seen", cell: (group) => <Time at={group.firstSeen} /> },
                  { name: "Last seen", cell: (group) => <Time at={group.lastSeen} /> },
                  {
                    name: "Projects",
                    cell: (group) => group.projects.slice(0, 3).map((id) => <span key={id} class="item"><ProjectLink id={id} /></span>),
                  },
                  { name: "Models", cell: (group) => group.models.join(", ") || "–" },
                  { name: "A job", cell: (group) => group.sampleJobs[0] && <JobLink id={group.sampleJobs[0]} /> },
                ]}
              />
              <Pager next={nextCursor} params={(cursor) => setParams({ cursor })} />
              {retried && <Retry group={retried} projectId={projectId} onClose={() => setRetried(null)} />}
            </>
          )
        }
      </Loaded>
    </Page>
  );
}

/** A button for each group. */
function retryColumn(onRetry: (group: Group) => void): Column<Group> {
  const cell = (group: Group) => (
    <button type="button" onClick={() => onRetry(group)}>
      Retry…
    </button>
  );
  return { name: "Retry", cell };
}

/** Asks for the projects whose failed jobs of the group are queued again. */
function Retry({ group, projectId, onClose }: { group: Group; projectId: string; onClose: () => void }) {
  const [project, setProject] = useState(projectId);
  const filter = { errorGroup: group.errorGroup, projectId: project || undefined };
  return (
    <OperationDialog action="retry" filter={filter} onClose={onClose}>
      <p class="pattern">{group.pattern}</p>
      <Select
        label="Project"
        value={project}
        options={[["", "all projects"], ...group.projects.map((id): [string, string] => [id, id])]}
        onChange={setProject}
      />
      <p>Jobs that are still failed are queued again, and their attempts start at 0.</p>
    </OperationDialog>
  );
}

function jobs(group: Group, projectId: string): string {
  return href(["jobs"], { errorGroup: group.errorGroup, projectId });
}

function lastHours(group: Group): number[] {
  const last = Math.floor(Date.now() / HOUR_MS);
  const runs = new Map(group.hours.map(({ start, runs }) => [Math.floor(Date.parse(start) / HOUR_MS), runs]));
  return Array.from({ length: HOURS }, (_, n) => runs.get(last - HOURS + 1 + n) ?? 0);
}
