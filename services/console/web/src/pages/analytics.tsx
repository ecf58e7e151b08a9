// Sums over any two times, by bucket and group; a group can be compared with another.

import { useState } from "preact/hooks";
import { Chart, type Series } from "../components/chart";
import { Empty, Loaded, Page, Panel, Problem, Select, Table, TextField, TimeField } from "../components/ui";
import { analytics, text, type Schemas } from "../lib/api";
import { duration, number, percent, time, zone } from "../lib/format";
import { setParams, view } from "../lib/router";
import { useQuery } from "../lib/use-query";

type Analytics = Schemas["Analytics"];
type Sums = Schemas["Sums"];

const HOUR_MS = 3_600_000;
const BUCKETS: Schemas["Bucket"][] = ["minute", "hour", "day", "week"];
const GROUPS: [string, string][] = [
  ["", "nothing"],
  ["project", "project"],
  ["model", "model"],
  ["type", "type"],
  ["outcome", "outcome"],
  ["errorGroup", "error group"],
  ["processor", "processor"],
];
const RANGES: [hours: string, label: string][] = [
  ["1", "last hour"],
  ["24", "last 24 hours"],
  ["168", "last 7 days"],
  ["720", "last 30 days"],
  ["", "two times"],
];
const COLORS = ["--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-6"];

const MEASURES: Record<string, { label: string; of: (sums: Sums) => number | null; format: (value: number) => string }> = {
  jobs: { label: "Jobs that ended", of: (sums) => sums.jobs, format: number },
  failed: { label: "Failed jobs", of: (sums) => sums.failed, format: number },
  retries: { label: "Retries", of: (sums) => sums.retries, format: number },
  p50: { label: "Duration of runs, median", of: (sums) => sums.duration.p50 ?? null, format: duration },
  p95: { label: "Duration of runs, 95th percentile", of: (sums) => sums.duration.p95 ?? null, format: duration },
  wait: { label: "Wait before runs, 95th percentile", of: (sums) => sums.wait.p95 ?? null, format: duration },
  tokens: { label: "Tokens", of: (sums) => sums.inputTokens + sums.outputTokens, format: number },
  wasted: { label: "Tokens of failed runs", of: (sums) => sums.wastedTokens, format: number },
};

function request() {
  const { params } = view.value;
  const named = RANGES.find(([value]) => value !== "" && value === params.get("hours"))?.[0];
  const hours = named ?? (params.get("from") ? "" : "24");
  const bucket = (params.get("bucket") ?? (hours === "1" ? "minute" : "hour")) as Schemas["Bucket"];
  const text = (name: string) => params.get(name) || undefined;
  return {
    hours,
    bucket,
    groupBy: text("groupBy") as Schemas["GroupBy"] | undefined,
    projectId: text("projectId"),
    model: text("model"),
    type: text("type") as Schemas["JobType"] | undefined,
    from: text("from"),
    to: text("to"),
    measure: params.get("measure") ?? "jobs",
  };
}

export function AnalyticsPage() {
  const { hours, measure, ...rest } = request();
  const query = useQuery(`analytics ${JSON.stringify([hours, rest])}`, (signal) => {
    const range = hours ? { from: since(hours), to: undefined } : {};
    const query = { ...rest, ...range, timeZone: zone, groups: COLORS.length };
    return analytics(query, signal);
  });
  return (
    <Page title="Analytics" aside={query.data && <Csv analytics={query.data} />}>
      <div class="filters">
        <Select
          label="Time"
          value={hours}
          options={RANGES}
          onChange={(hours) => setParams(hours ? { hours, from: null, to: null, bucket: null } : { hours: null, ...lastDay() })}
        />
        {hours === "" && (
          <>
            <TimeField label="From" value={rest.from ?? ""} onChange={(from) => setParams({ from })} />
            <TimeField label="To" value={rest.to ?? ""} onChange={(to) => setParams({ to })} />
          </>
        )}
        <Select
          label="By"
          value={rest.bucket}
          options={BUCKETS.map((bucket) => [bucket, bucket])}
          onChange={(bucket) => setParams({ bucket })}
        />
        <Select label="Compare" value={rest.groupBy ?? ""} options={GROUPS} onChange={(groupBy) => setParams({ groupBy })} />
        <Select
          label="Measure"
          value={measure}
          options={Object.entries(MEASURES).map(([name, { label }]) => [name, label])}
          onChange={(measure) => setParams({ measure })}
        />
        <TextField label="Project" value={rest.projectId ?? ""} onChange={(projectId) => setParams({ projectId })} />
        <TextField label="Model" value={rest.model ?? ""} onChange={(model) => setParams({ model })} />
      </div>
      <Loaded query={query}>{(analytics) => <Shown analytics={analytics} measure={measure} />}</Loaded>
    </Page>
  );
}

/** So many hours ago, to ten seconds: viewers share an answer. */
function since(hours: string): string {
  return new Date(Math.floor(Date.now() / 10_000) * 10_000 - Number(hours) * HOUR_MS).toISOString();
}

function lastDay(): { from: string; to: string } {
  const at = (hours: number) => new Date(Date.now() - hours * HOUR_MS).toISOString();
  return { from: at(24), to: at(0) };
}

function name(sums: Sums): string {
  if (sums.isOther) return "all others";
  return sums.group === "" ? "(none)" : (sums.group ?? "all");
}

function Shown({ analytics, measure }: { analytics: Analytics; measure: string }) {
  const chosen = MEASURES[measure] ?? MEASURES.jobs;
  if (!chosen) return null;
  const { from, to, asOf, timeZone, totals } = analytics;
  if (totals.every((sums) => sums.jobs === 0 && sums.runs === 0)) {
    return (
      <Empty>
        <p>
          No run ended between {time(from)} and {time(to)} with these filters.
        </p>
      </Empty>
    );
  }
  const series = totals.slice(0, COLORS.length).map((total, n): Series => {
    const rows = new Map(
      analytics.rows.filter((row) => name(row) === name(total)).map((row) => [row.start, row]),
    );
    return {
      label: name(total),
      color: COLORS[n] ?? "--series-1",
      values: analytics.buckets.map((start) => {
        const row = rows.get(start);
        return row ? chosen.of(row) : measure.startsWith("p") || measure === "wait" ? null : 0;
      }),
    };
  });
  return (
    <>
      <Panel title={`${chosen.label}, by ${analytics.bucket}`}>
        <Chart label={`${chosen.label}, by ${analytics.bucket}`} starts={analytics.buckets} series={series} format={chosen.format} />
      </Panel>
      <Panel title="Totals">
        <Table
          caption={`From ${time(from)} to ${time(to)}; buckets in ${timeZone}; as of ${time(asOf)}`}
          rows={totals}
          id={name}
          columns={[
            { name: analytics.groupBy ?? "Group", cell: name },
            { name: "Jobs", isNumber: true, cell: (sums) => number(sums.jobs) },
            { name: "Completed", isNumber: true, cell: (sums) => number(sums.completed) },
            { name: "Failed", isNumber: true, cell: (sums) => number(sums.failed) },
            { name: "Canceled", isNumber: true, cell: (sums) => number(sums.canceled) },
            { name: "Success", isNumber: true, cell: (sums) => (sums.completed + sums.failed ? percent(sums.successRate) : "–") },
            { name: "Runs", isNumber: true, cell: (sums) => number(sums.runs) },
            { name: "Retries", isNumber: true, cell: (sums) => number(sums.retries) },
            { name: "Run p50", isNumber: true, cell: (sums) => duration(sums.duration.p50) },
            { name: "Run p95", isNumber: true, cell: (sums) => duration(sums.duration.p95) },
            { name: "Run p99", isNumber: true, cell: (sums) => duration(sums.duration.p99) },
            { name: "Wait p95", isNumber: true, cell: (sums) => duration(sums.wait.p95) },
            { name: "Tokens in", isNumber: true, cell: (sums) => number(sums.inputTokens) },
            { name: "Tokens out", isNumber: true, cell: (sums) => number(sums.outputTokens) },
            { name: "Wasted tokens", isNumber: true, cell: (sums) => number(sums.wastedTokens) },
          ]}
        />
      </Panel>
    </>
  );
}

/** The same sums as a file. */
function Csv({ analytics }: { analytics: Analytics }) {
  const [error, setError] = useState<Error | null>(null);
  const download = async () => {
    const { projectId, model, type, groupBy } = request();
    const { from, to, bucket, timeZone } = analytics;
    const query = { projectId, model, type, groupBy, from, to, bucket, timeZone, groups: String(COLORS.length), format: "csv" };
    const params = new URLSearchParams(Object.entries(query).flatMap(([name, value]) => (value ? [[name, value]] : [])));
    let csv;
    try {
      csv = await text(`/api/queue/analytics?${params}`);
    } catch (error) {
      return setError(error as Error);
    }
    setError(null);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
    link.download = `jobmesh-${from.slice(0, 10)}-${to.slice(0, 10)}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  return (
    <>
      {error && <Problem error={error} />}
      <button type="button" onClick={download}>
        CSV
      </button>
    </>
  );
}
