// Operations: changes of many jobs, with their progress.

import { useEffect, useState } from "preact/hooks";
import { Confirm, Empty, Facts, Loaded, Page, Pager, ProjectLink, Table, Time, type Column } from "../components/ui";
import api, { body } from "../lib/api";
import { count, number } from "../lib/format";
import { abort, ACTIONS, type Operation } from "../lib/operations";
import { href, setParams, view } from "../lib/router";
import { may } from "../lib/session";
import { useQuery, type Query } from "../lib/use-query";

/** How often an operation in progress is read again, in ms. */
const AGAIN_MS = 1_000;

const COLUMNS: Column<Operation>[] = [
  { name: "Started", cell: (operation) => <a href={link(operation)}><Time at={operation.startedAt} /></a> },
  { name: "Action", cell: (operation) => title(operation) },
  { name: "Jobs", cell: (operation) => <span class="clip">{selection(operation)}</span> },
  { name: "Status", cell: ({ status }) => <OperationBadge status={status} /> },
  { name: "Progress", cell: (operation) => <Progress operation={operation} /> },
  { name: "Changed", isNumber: true, cell: ({ changed }) => number(changed) },
  { name: "By", cell: ({ requestedBy }) => requestedBy ?? "–" },
  { name: "Reason", cell: ({ reason }) => reason ?? "–" },
];

export function OperationsPage() {
  const cursor = view.value.params.get("cursor") ?? undefined;
  const query = useQuery(`operations ${cursor}`, (signal) =>
    body(api.GET("/api/queue/operations", { params: { query: { cursor } }, signal })),
  );
  useAgain(query, query.data?.operations.some(({ status }) => status === "running") ?? false);
  return (
    <Page title="Operations">
      <Loaded query={query}>
        {({ operations, nextCursor, total }) =>
          operations.length === 0 ? (
            <Empty>
              <p>No operation was started.{may("manage") && " Select jobs in a list, or retry a group of failures."}</p>
              <p>
                <a href={href(["jobs"])}>Jobs</a> <a href={href(["failures"])}>Failures</a>
              </p>
            </Empty>
          ) : (
            <>
              <Table caption={`${count(total, "operation")}, the last first`} columns={COLUMNS} rows={operations} id={({ operationId }) => operationId} href={link} />
              <Pager next={nextCursor} params={(cursor) => setParams({ cursor })} />
            </>
          )
        }
      </Loaded>
    </Page>
  );
}

export function OperationPage({ id }: { id: string }) {
  const [isAborting, setAborting] = useState(false);
  const query = useQuery(`operation ${id}`, async (signal) => {
    const answer = await body(api.GET("/api/queue/operations/{operationId}", { params: { path: { operationId: id } }, signal }));
    if (!answer.operation) throw new Error("The answer has no operation.");
    return answer.operation;
  });
  const isRunning = query.data?.status === "running";
  // One that is durable and not confirmed yet is not found at first.
  useAgain(query, isRunning || query.error?.status === 404);
  const button = isRunning && may("manage") && (
    <button type="button" class="danger" onClick={() => setAborting(true)}>
      Abort…
    </button>
  );
  return (
    <Page title={`Operation ${id.slice(0, 8)}`} aside={button}>
      <Loaded query={query}>{(operation) => <Details operation={operation} />}</Loaded>
      {isAborting && (
        <Confirm
          title="Abort this operation?"
          action="Abort it"
          onClose={() => setAborting(false)}
          onConfirm={async (reason) => {
            await abort(id, reason);
            query.reload();
          }}
        >
          <p>Jobs that it has changed stay changed.</p>
        </Confirm>
      )}
    </Page>
  );
}

function Details({ operation }: { operation: Operation }) {
  const { filter } = operation;
  return (
    <>
      <p>
        <Progress operation={operation} />
      </p>
      <Facts
        facts={[
          ["Action", title(operation)],
          ["Status", <OperationBadge status={operation.status} />],
          ["Projects", filter.projectIds ? filter.projectIds.map((id) => <span key={id} class="item"><ProjectLink id={id} /></span>) : "all"],
          ["Jobs", selection(operation)],
          ["Changed", number(operation.changed)],
          ...(operation.action === "retry" ? [["Skipped", `${number(operation.skipped)} (superseded, or past retention)`] as [string, string]] : []),
          ["Looked at", `${number(operation.lookedAt)} of ${number(operation.candidates)}`],
          ["Rate", rate(operation)],
          ["Projects left", number(operation.projectsLeft)],
          ["Started", <Time at={operation.startedAt} />],
          ["Ended", <Time at={operation.endedAt} />],
          ["Started by", operation.requestedBy ?? "–"],
          ["Aborted by", operation.abortedBy ?? "–"],
          ["Reason", operation.reason ?? "–"],
        ]}
      />
    </>
  );
}

function OperationBadge({ status }: { status: Operation["status"] }) {
  const look = { running: "processing", finished: "completed", aborted: "canceled" }[status];
  return <span class={`badge ${look}`}>{status}</span>;
}

function Progress({ operation }: { operation: Operation }) {
  const { candidates, lookedAt, status } = operation;
  const share = status === "finished" ? 1 : candidates === 0 ? 0 : Math.min(1, lookedAt / candidates);
  return <progress value={share} max={1} aria-label={`looked at ${number(lookedAt)} of ${count(candidates, "job")}`} />;
}

/** Jobs looked at per second. */
function rate({ startedAt, endedAt, lookedAt }: Operation): string {
  if (!startedAt) return "–";
  const ms = (endedAt ? Date.parse(endedAt) : Date.now()) - Date.parse(startedAt);
  // A short operation has no rate.
  return ms >= 1_000 ? `${number(Math.round((lookedAt * 1_000) / ms))} jobs a second` : "–";
}

function title({ action, priority }: Operation): string {
  return action === "setPriority" ? `${ACTIONS[action]} ${priority ?? ""}` : ACTIONS[action];
}

/** The filter in words. */
function selection({ filter }: Operation): string {
  const { projectIds, jobIds, ...rest } = filter;
  const words = Object.entries(rest).map(([name, value]) => `${name} ${value}`);
  if (jobIds) words.unshift(count(jobIds.length, "named job"));
  if (projectIds) words.unshift(projectIds.length === 1 ? `project ${projectIds[0]}` : count(projectIds.length, "project"));
  return words.join(", ") || "all";
}

function link({ operationId }: Operation): string {
  return href(["operations", operationId]);
}

/** Reads again, once a second, while it is wanted. */
function useAgain(query: Query<unknown>, isWanted: boolean) {
  useEffect(() => {
    if (!isWanted) return;
    const timer = setInterval(query.reload, AGAIN_MS);
    return () => clearInterval(timer);
  }, [isWanted]);
}
