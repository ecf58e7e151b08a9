import { Command, Empty, Loaded, Meter, Page, Panel, Table, Time } from "../components/ui";
import api, { body } from "../lib/api";
import { duration, number } from "../lib/format";
import { href } from "../lib/router";
import { useQuery } from "../lib/use-query";

export function ProcessorsPage() {
  const query = useQuery("processors", (signal) => body(api.GET("/api/processors", { signal })));
  const health = useQuery("health", async (signal) => {
    // Not ready is an answer, too.
    const { data, error } = await api.GET("/readyz", { signal });
    return data ?? error;
  });
  return (
    <Page title="Processors">
      <Loaded query={query}>
        {({ processors }) =>
          processors.length === 0 ? (
            <Empty>
              <p>No processor is online: jobs are queued and none starts. Start one:</p>
              <Command>jobmesh serve processor --nats-url nats://localhost:4222</Command>
            </Empty>
          ) : (
            <Table
              caption={`${processors.filter((it) => it.online).length} processors online`}
              rows={processors}
              id={(processor) => processor.processor}
              href={(processor) => href(["jobs"], { processor: processor.processor })}
              columns={[
                {
                  name: "Processor",
                  cell: (processor) => (
                    <a class="mono" href={href(["jobs"], { processor: processor.processor })}>
                      {processor.processor}
                    </a>
                  ),
                },
                {
                  name: "State",
                  cell: ({ online, draining }) => (
                    <span class={`badge ${online ? (draining ? "paused" : "completed") : "failed"}`}>
                      {online ? (draining ? "draining" : "online") : "offline"}
                    </span>
                  ),
                },
                {
                  name: "Running",
                  isNumber: true,
                  cell: ({ running, capacity }) => (
                    <>
                      {number(running)} of {number(capacity)}
                      <Meter used={running} limit={capacity} label={`${running} of ${capacity} slots`} />
                    </>
                  ),
                },
                { name: "Types", cell: ({ types }) => types.join(", ") },
                { name: "Handlers", cell: ({ handlers }) => handlers.join(", ") || "–" },
                { name: "Version", cell: ({ version }) => version ?? "–" },
                { name: "Started", cell: ({ startedAt }) => <Time at={startedAt} /> },
                { name: "Last heartbeat", cell: ({ heartbeatAgeMs }) => `${duration(heartbeatAgeMs)} ago` },
              ]}
            />
          )
        }
      </Loaded>
      <Tasks />
      <section class="panel" aria-label="Services">
        <header>
          <h2>Services</h2>
        </header>
        <Loaded query={health}>
          {(health) => (
            <dl class="facts">
              {Object.entries(health ?? {}).map(([name, value]) => (
                <div key={name}>
                  <dt>{name}</dt>
                  <dd>
                    {typeof value === "boolean" ? (
                      <span class={`badge ${value ? "completed" : "failed"}`}>{value ? "answers" : "does not answer"}</span>
                    ) : (
                      String(value)
                    )}
                  </dd>
                </div>
              ))}
            </dl>
          )}
        </Loaded>
      </section>
    </Page>
  );
}

/** What services do in the background, and whether it succeeded last. */
function Tasks() {
  const query = useQuery("tasks", (signal) => body(api.GET("/api/tasks", { signal })));
  return (
    <Panel title="Background tasks">
      <Loaded query={query}>
        {({ tasks }) => (
          <Table
            caption="Background tasks and their last results"
            rows={tasks}
            id={({ instance, task }) => `${instance} ${task}`}
            columns={[
              { name: "Task", cell: ({ task }) => task },
              { name: "Process", cell: ({ instance }) => <span class="mono">{instance}</span> },
              {
                name: "Last result",
                cell: ({ ok, error, lastAt }) => (
                  <span class={`badge ${lastAt ? (ok ? "completed" : "failed") : "queued"}`}>
                    {lastAt ? (ok ? "done" : error) : "none yet"}
                  </span>
                ),
              },
              { name: "Last time", cell: ({ lastAt }) => <Time at={lastAt} /> },
              { name: "Succeeded", isNumber: true, cell: ({ succeeded }) => number(succeeded) },
              { name: "Failed", isNumber: true, cell: ({ failed }) => number(failed) },
            ]}
          />
        )}
      </Loaded>
    </Panel>
  );
}
