import { Empty, Loaded, Page, Pager, ProjectLink, Table, TextField, Time } from "../components/ui";
import api, { body } from "../lib/api";
import { setParams, view } from "../lib/router";
import { useQuery } from "../lib/use-query";

export function AuditPage() {
  const { params } = view.value;
  const projectId = params.get("projectId") ?? "";
  const cursor = params.get("cursor") ?? undefined;
  const query = useQuery(`audit ${projectId} ${cursor}`, (signal) =>
    body(api.GET("/api/audit", { params: { query: { projectId: projectId || undefined, cursor } }, signal })),
  );
  return (
    <Page title="Audit">
      <div class="filters">
        <TextField label="Project" value={projectId} onChange={(projectId) => setParams({ projectId, cursor: null })} />
      </div>
      <Loaded query={query}>
        {({ records, nextCursor }) =>
          records.length === 0 ? (
            <Empty>
              <p>No change is recorded. A change is listed about a second after it was made; enqueues are not recorded.</p>
            </Empty>
          ) : (
            <>
              <Table
                caption="Requests that changed something, the last first"
                rows={records}
                id={(record) => record.id}
                columns={[
                  { name: "At", cell: ({ at }) => <Time at={at} /> },
                  { name: "Key", cell: ({ keyName }) => keyName ?? "–" },
                  { name: "Address", cell: ({ address }) => <span class="mono">{address}</span> },
                  { name: "Request", cell: ({ method, path }) => <span class="mono">{`${method} ${path}`}</span> },
                  { name: "Project", cell: ({ projectId }) => (projectId ? <ProjectLink id={projectId} /> : "–") },
                  { name: "Target", cell: ({ target }) => target ?? "–" },
                  { name: "Answer", isNumber: true, cell: ({ status }) => String(status) },
                  { name: "Reason", cell: ({ reason }) => reason ?? "–" },
                ]}
              />
              <Pager next={nextCursor} params={(cursor) => setParams({ cursor })} />
            </>
          )
        }
      </Loaded>
    </Page>
  );
}
