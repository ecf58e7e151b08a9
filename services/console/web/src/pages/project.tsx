// One project: limits against their use, settings, schedules, webhook.

import { useState } from "preact/hooks";
import { Confirm, Empty, Facts, Loaded, Meter, Page, Panel, Problem, Table, Time } from "../components/ui";
import api, { body, type Schemas } from "../lib/api";
import { cancel, retryAll, setProject, type Patch } from "../lib/changes";
import { bytes, count, duration, number, time } from "../lib/format";
import { href } from "../lib/router";
import { access, may } from "../lib/session";
import { useQuery } from "../lib/use-query";
import { Deliveries } from "./deliveries";

type Project = Schemas["Project"];
type Queue = Schemas["Stats"]["queue"];

export function ProjectPage({ id }: { id: string }) {
  const settings = useQuery(`project ${id}`, (signal) =>
    body(api.GET("/api/projects/{projectId}", { params: { path: { projectId: id } }, signal })),
  );
  const stats = useQuery(`stats ${id}`, (signal) =>
    body(api.GET("/api/queue/stats", { params: { query: { projectId: id } }, signal })),
  );
  const project = settings.data?.project;
  const queue = stats.data?.queue;
  return (
    <Page title={`Project ${id}`} aside={project && queue && <Actions project={project} queue={queue} />}>
      <Loaded query={stats}>{({ queue }) => <Counts id={id} queue={queue} />}</Loaded>
      <p>
        <a href={href(["failures"], { projectId: id })}>Failures</a> · <a href={href(["analytics"], { projectId: id })}>Analytics</a>
      </p>
      <Loaded query={settings}>
        {({ project }) =>
          project && (
            <>
              <Limits project={project} queue={queue} />
              <Settings project={project} />
              {project.webhook && <Webhook id={id} webhook={project.webhook} />}
            </>
          )
        }
      </Loaded>
      {!access.value?.metadataOnly && <Schedules id={id} />}
    </Page>
  );
}

function Counts({ id, queue }: { id: string; queue: Queue }) {
  const facts = [
    ["Queued", queue.queued, "queued"],
    ["Running", queue.processing, "processing"],
    ["Completed", queue.completed, "completed"],
    ["Failed", queue.failed, "failed"],
    ["Canceled", queue.canceled, "canceled"],
  ] as const;
  return (
    <section class="numbers" aria-label={`Project ${id}, now`}>
      {facts.map(([label, value, status]) => (
        <a key={label} href={href(["jobs"], { projectId: id, status })} data-count={label.toLowerCase()}>
          <span class="label">{label}</span>
          <strong>{number(value)}</strong>
        </a>
      ))}
    </section>
  );
}

interface Limit {
  field: "maxConcurrency" | "requestsPerMinute" | "tokensPerMinute" | "maxActiveJobs" | "maxActiveBytes" | "enqueuesPerMinute" | "maxSchedules";
  label: string;
  used?: number;
  isForAdmins?: boolean;
  hint?: string;
  format?: (value: number) => string;
}

function Limits({ project, queue }: { project: Project; queue: Queue | undefined }) {
  const [edited, setEdited] = useState<Limit | null>(null);
  const { usage } = project;
  const limits: Limit[] = [
    { field: "maxConcurrency", label: "Jobs at once", used: usage.runningJobs },
    { field: "requestsPerMinute", label: "Starts a minute", used: usage.startsInLastMinute },
    { field: "tokensPerMinute", label: "Tokens a minute", used: usage.tokensInLastMinute },
    {
      field: "maxActiveJobs",
      label: "Queued and running jobs",
      used: queue ? queue.queued + queue.processing : usage.activeJobs,
      isForAdmins: true,
    },
    {
      field: "maxActiveBytes",
      label: "Bytes of their data",
      used: usage.activeBytes,
      isForAdmins: true,
      format: bytes,
    },
    {
      field: "enqueuesPerMinute",
      label: "Enqueued jobs a minute",
      used: usage.enqueuedInLastMinute,
      isForAdmins: true,
    },
    {
      field: "maxSchedules",
      label: "Schedules",
      used: usage.schedules,
      isForAdmins: true,
      hint: "Limit, 1 to 1,000; empty is the configuration’s",
    },
  ];
  return (
    <Panel title="Limits">
      <Table
        caption="Limits of the project, and what it uses of them"
        rows={limits}
        id={(limit) => limit.field}
        columns={[
          { name: "Limit", cell: ({ label }) => label },
          {
            name: "Used",
            isNumber: true,
            cell: ({ field, label, used, format }) =>
              used === undefined ? "–" : (
                <>
                  {(format ?? number)(used)}
                  <Meter used={used} limit={project[field] ?? 0} label={`${label}: ${used} of ${project[field]}`} />
                </>
              ),
          },
          {
            name: "Of",
            isNumber: true,
            cell: ({ field, format }) => (project[field] ? (format ?? number)(project[field]) : "no limit"),
          },
          {
            name: "Change",
            cell: (limit) =>
              may(limit.isForAdmins ? "admin" : "manage") && (
                <button type="button" onClick={() => setEdited(limit)}>
                  Change
                </button>
              ),
          },
        ]}
      />
      {edited && <Edit project={project} limit={edited} onClose={() => setEdited(null)} />}
    </Panel>
  );
}

function Edit({ project, limit, onClose }: { project: Project; limit: Limit; onClose: () => void }) {
  const [value, setValue] = useState(String(project[limit.field] ?? 0));
  return (
    <Confirm
      title={`${limit.label}: new limit`}
      action="Set"
      onClose={onClose}
      onConfirm={(reason) => {
        const number = value.trim() === "" ? null : Number(value);
        if (number !== null && !Number.isSafeInteger(number)) throw new Error("The limit must be an integer.");
        return setProject(project.projectId, { [limit.field]: number } as Patch, reason);
      }}
    >
      <label>
        {limit.hint ?? "Limit; 0 is none, empty is the configuration’s"}
        <input inputMode="numeric" value={value} onInput={(event) => setValue(event.currentTarget.value)} />
      </label>
    </Confirm>
  );
}

function Settings({ project }: { project: Project }) {
  const { retry } = project;
  const facts: [string, preact.ComponentChildren][] = [
    ["Weight", number(project.weight)],
    ["Attempts", number(project.maxAttempts)],
    [
      "Wait between attempts",
      retry ? `${duration(retry.baseMs)} × ${retry.factor}, up to ${duration(retry.capMs)}` : "–",
    ],
    ["Longest deferral", project.maxDeferral ? duration(project.maxDeferral * 1_000) : "–"],
    ["Jobs expire after", project.expiresIn ? duration(project.expiresIn * 1_000) : "never"],
    ["Retention", project.retention ? duration(project.retention * 1_000) : "–"],
    ["Handler", project.handler ?? "by type of job"],
    ["Options", project.options ? <code>{JSON.stringify(project.options)}</code> : "none"],
  ];
  return (
    <Panel title="Settings">
      <Facts facts={facts} />
    </Panel>
  );
}

function Webhook({ id, webhook }: { id: string; webhook: Schemas["WebhookStatus"] }) {
  const { deliveries } = webhook;
  return (
    <Panel title="Webhook">
      <dl class="facts">
        <div>
          <dt>URL</dt>
          <dd class="mono">{webhook.url}</dd>
        </div>
        {(["delivered", "pending", "failed", "dropped"] as const).map((name) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{number(deliveries[name])}</dd>
          </div>
        ))}
      </dl>
      {deliveries.lastError && <Problem error={new Error(`The last delivery failed: ${deliveries.lastError}`)} />}
      <Deliveries projectId={id} />
    </Panel>
  );
}

function Schedules({ id }: { id: string }) {
  const query = useQuery(`schedules ${id}`, (signal) =>
    body(api.GET("/api/projects/{projectId}/schedules", { params: { path: { projectId: id } }, signal })),
  );
  return (
    <Panel title="Schedules">
      <Loaded query={query}>
        {({ schedules }) =>
          schedules.length === 0 ? (
            <Empty>
              <p>The project has no schedule.</p>
            </Empty>
          ) : (
            <Table
              caption={count(schedules.length, "schedule")}
              rows={schedules}
              id={(schedule) => schedule.name}
              columns={[
                { name: "Name", cell: (schedule) => schedule.name },
                { name: "Pattern", cell: (schedule) => <code>{schedule.cron}</code> },
                { name: "Time zone", cell: (schedule) => schedule.timeZone },
                { name: "Batch", cell: (schedule) => schedule.batchId },
                { name: "Next", cell: (schedule) => <Time at={schedule.nextAt} /> },
                { name: "Next times", cell: (schedule) => schedule.nextTimes.map((at) => <div key={at}>{time(at)}</div>) },
                { name: "If one is active", cell: (schedule) => schedule.ifLive },
              ]}
            />
          )
        }
      </Loaded>
    </Panel>
  );
}

function Actions({ project, queue }: { project: Project; queue: Queue }) {
  const [asked, setAsked] = useState<"pause" | "retry" | "cancel" | null>(null);
  // The numbers of a question stay while it is asked.
  const [frozen, setFrozen] = useState<Queue | null>(null);
  if (!may("manage")) return null;
  const id = project.projectId;
  const close = () => (setAsked(null), setFrozen(null));
  const ask = (what: typeof asked) => (setAsked(what), setFrozen(queue));
  const { failed, queued, processing } = frozen ?? queue;
  const active = queued + processing;
  // A large number must be typed: a click alone is too easy.
  const typed = (n: number) => (n > 1_000 ? String(n) : undefined);
  return (
    <>
      <button type="button" onClick={() => ask("pause")}>
        {project.paused ? "Resume" : "Pause"}
      </button>
      {failed > 0 && (
        <button type="button" onClick={() => ask("retry")}>
          Retry {count(failed, "failed job")}
        </button>
      )}
      {active > 0 && (
        <button type="button" class="danger" onClick={() => ask("cancel")}>
          Cancel {count(active, "active job")}
        </button>
      )}
      {asked === "pause" && (
        <Confirm
          title={project.paused ? "Resume this project?" : "Pause this project?"}
          action={project.paused ? "Resume" : "Pause"}
          onClose={close}
          onConfirm={(reason) => setProject(id, { paused: !project.paused }, reason)}
        >
          <p>{project.paused ? "Its queued jobs start again." : "Nothing of it starts; running jobs continue."}</p>
        </Confirm>
      )}
      {asked === "retry" && (
        <Confirm
          title={`Retry ${count(failed, "failed job")} of ${id}?`}
          action="Retry"
          requiredText={typed(failed)}
          onClose={close}
          onConfirm={(reason) => retryAll(id, reason)}
        >
          <p>All failed jobs that are still kept are queued again, and their attempts start at 0.</p>
        </Confirm>
      )}
      {asked === "cancel" && (
        <Confirm
          title={`Cancel ${count(active, "active job")} of ${id}?`}
          action="Cancel them"
          requiredText={typed(active)}
          onClose={close}
          onConfirm={(reason) => cancel(id, null, reason)}
        >
          <p>Queued jobs end as canceled, and running ones are stopped.</p>
        </Confirm>
      )}
    </>
  );
}
