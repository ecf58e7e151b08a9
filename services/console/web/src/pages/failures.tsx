// Failed runs, grouped by what their errors have in common.

import { useState } from "preact/hooks";
import { Sparkline } from "../components/chart";
import { OperationDialog } from "../components/operation-dialog";
import { Confirm, Empty, JobLink, Loaded, Page, Pager, ProjectLink, Select, Table, TextField, Time, type Column } from "../components/ui";
import api, { body, type Schemas } from "../lib/api";
import { markFailure } from "../lib/changes";
import { number } from "../lib/format";
import { href, setParams, view } from "../lib/router";
import { may, seesAll } from "../lib/session";
import { useQuery } from "../lib/use-query";

const HOUR_MS = 3_600_000;
/** Hours of a sparkline. */
const HOURS = 24;

type Group = Schemas["FailureGroup"];

type Mark = Schemas["FailureMark"];

const VIEWS: [string, string][] = [
  ["active", "open and reopened"],
  ["muted", "muted"],
  ["resolved", "resolved"],
  ["all", "all"],
];

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
  const [marked, setMarked] = useState<[Group, Mark] | null>(null);
  const shown = VIEWS.some(([value]) => value === params.get("status")) ? (params.get("status") ?? "") : "active";
  const query = useQuery(`failures ${projectId} ${hours} ${shown} ${sort} ${cursor}`, (signal) => {
    const from = hours !== "0" ? new Date(Date.now() - Number(hours) * HOUR_MS).toISOString() : undefined;
    const status = shown === "all" ? undefined : (shown as Schemas["FailureView"]);
    const query = { projectId: projectId || undefined, from, status, sort, cursor };
    return body(api.GET("/api/queue/failures", { params: { query }, signal }));
  });
  const set = (name: string, value: string) => setParams({ [name]: value, cursor: null });
  return (
    <Page title="Failures">
      <div class="filters">
        <TextField label="Project" value={projectId} onChange={(value) => set("projectId", value)} />
        <Select label="Seen in the last" value={hours} options={RANGES} onChange={(value) => set("hours", value)} />
        <Select label="Show" value={shown} options={VIEWS} onChange={(value) => set("status", value)} />
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
              <p>{shown === "all" ? "No run has failed in this time." : "No such error group was seen in this time."}</p>
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
                  { name: "Status", cell: (group) => <Status group={group} /> },
                  ...(may("manage") && (projectId || seesAll()) ? [markColumn((group, mark) => setMarked([group, mark]))] : []),
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
              {marked && (
                <Confirm
                  title={MARKS[marked[1]].question}
                  action={MARKS[marked[1]].action}
                  onClose={() => setMarked(null)}
                  onConfirm={async (reason) => {
                    await markFailure(marked[0].errorGroup, projectId, marked[1], reason);
                    query.reload();
                  }}
                >
                  <p class="pattern">{marked[0].pattern}</p>
                  <p>
                    {MARKS[marked[1]].effect} {projectId ? `This is for project ${projectId}.` : "This is for all projects."}
                  </p>
                </Confirm>
              )}
              {retried && <Retry group={retried} projectId={projectId} onClose={() => setRetried(null)} />}
            </>
          )
        }
      </Loaded>
    </Page>
  );
}

const MARKS: Record<Mark, { action: string; question: string; effect: string }> = {
  open: { action: "Open", question: "Open this error group?", effect: "It is listed again." },
  muted: { action: "Mute", question: "Mute this error group?", effect: "It is listed as muted only, even if it is seen again." },
  resolved: { action: "Resolve", question: "Resolve this error group?", effect: "It is listed as resolved until it is seen again." },
};

function Status({ group }: { group: Group }) {
  const by = group.markedBy && ` by ${group.markedBy}`;
  return (
    <>
      {group.status} {group.markedAt && <span class="quiet">(marked <Time at={group.markedAt} />{by})</span>}
    </>
  );
}

/** The marks that each group can get. */
function markColumn(onMark: (group: Group, mark: Mark) => void): Column<Group> {
  const marks = (group: Group): Mark[] =>
    group.status === "muted" || group.status === "resolved" ? ["open"] : ["resolved", "muted"];
  const cell = (group: Group) =>
    marks(group).map((mark) => (
      <button key={mark} type="button" onClick={() => onMark(group, mark)}>
        {MARKS[mark].action}…
      </button>
    ));
  return { name: "Mark", cell };
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
