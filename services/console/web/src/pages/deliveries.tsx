// Deliveries to a project's webhook that wait or were given up, and another try.

import { useState } from "preact/hooks";
import { Confirm, Empty, JobLink, Loaded, Pager, Select, Table, Time } from "../components/ui";
import api, { body, type Schemas } from "../lib/api";
import { retryDeliveries } from "../lib/changes";
import { count } from "../lib/format";
import { setParams, view } from "../lib/router";
import { may } from "../lib/session";
import { useQuery } from "../lib/use-query";

type Delivery = Schemas["Delivery"];

export function Deliveries({ projectId }: { projectId: string }) {
  const { params } = view.value;
  const status = params.get("deliveries") === "pending" ? "pending" : "failed";
  const cursor = params.get("cursor") ?? undefined;
  const [again, setAgain] = useState<Delivery | "all" | null>(null);
  const query = useQuery(`deliveries ${projectId} ${status} ${cursor}`, (signal) => {
    const request = { path: { projectId }, query: { status, cursor } as const };
    return body(api.GET("/api/projects/{projectId}/deliveries", { params: request, signal }));
  });
  const canRetry = status === "failed" && may("manage");
  return (
    <>
      <div class="filters">
        <Select
          label="Deliveries"
          value={status}
          options={[
            ["failed", "given up in the last 3 days"],
            ["pending", "pending"],
          ]}
          onChange={(deliveries) => setParams({ deliveries, cursor: null })}
        />
      </div>
      <Loaded query={query}>
        {({ deliveries, nextCursor }) =>
          deliveries.length === 0 ? (
            <Empty>
              <p>{status === "failed" ? "No delivery was given up." : "No delivery is pending."}</p>
            </Empty>
          ) : (
            <>
              {canRetry && (
                <p>
                  <button type="button" onClick={() => setAgain("all")}>
                    Deliver all again…
                  </button>
                </p>
              )}
              <Table
                caption={`${count(deliveries.length, "delivery", "deliveries")} on this page`}
                rows={deliveries}
                id={(delivery) => delivery.deliveryId}
                columns={[
                  { name: "Reports", cell: ({ type }) => type },
                  { name: "Job", cell: ({ jobId }) => <JobLink id={jobId} /> },
                  { name: "Batch", cell: ({ batchId }) => <span class="clip">{batchId}</span> },
                  { name: "Attempts", isNumber: true, cell: ({ attempts, maxAttempts }) => `${attempts} of ${maxAttempts}` },
                  { name: "Last attempt", cell: ({ lastAttemptAt }) => <Time at={lastAttemptAt} /> },
                  { name: "Next attempt", cell: ({ nextAttemptAt }) => <Time at={nextAttemptAt} /> },
                  { name: "Error", cell: ({ error }) => <span class="clip" title={error ?? undefined}>{error ?? "–"}</span> },
                  {
                    name: "Again",
                    cell: (delivery) =>
                      canRetry && (
                        <button type="button" onClick={() => setAgain(delivery)}>
                          Deliver…
                        </button>
                      ),
                  },
                ]}
              />
              <Pager next={nextCursor} params={(cursor) => setParams({ cursor })} />
            </>
          )
        }
      </Loaded>
      {again && (
        <Confirm
          title={again === "all" ? "Deliver all again that were given up?" : "Deliver this again?"}
          action="Deliver"
          onClose={() => setAgain(null)}
          onConfirm={(reason) => retryDeliveries(projectId, again === "all" ? undefined : [again.deliveryId], reason)}
        >
          <p>It goes to the current URL of the webhook, signed with its current secret. The attempts start at 0.</p>
        </Confirm>
      )}
    </>
  );
}
