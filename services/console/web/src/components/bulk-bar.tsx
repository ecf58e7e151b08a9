// Actions on the jobs that are selected in a list, or on all that match its filters.

import { useEffect, useState } from "preact/hooks";
import type { Job } from "../lib/api";
import { count } from "../lib/format";
import { ACTIONS, dryRun, STATUSES_OF, type Action, type Filter } from "../lib/operations";
import { useQuery } from "../lib/use-query";
import { OperationDialog } from "./operation-dialog";

/** The filters of a list that an operation has, too. */
const SHARED = ["projectId", "batchId", "status", "type", "processor", "errorGroup", "from", "to"] as const;

/** The filter of an operation over all jobs of a list; null if there is none. */
export function operationFilter(filters: Record<string, string>): Filter | null {
  if (filters.model) return null;
  return Object.fromEntries(SHARED.flatMap((name) => (filters[name] ? [[name, filters[name]]] : [])));
}

/** The actions that can change jobs of a list. */
export function actionsOf(filters: Record<string, string>): Action[] {
  const { status } = filters;
  const all = Object.keys(ACTIONS) as Action[];
  const fits = all.filter((action) => !status || STATUSES_OF[action].includes(status));
  // Only terminal jobs have an end.
  return filters.from || filters.to ? fits.filter((action) => action === "retry") : fits;
}

export function BulkBar({ filters, jobs, selected, onSelect }: {
  filters: Record<string, string>;
  /** The jobs of the page. */
  jobs: Job[];
  selected: Set<string>;
  onSelect: (ids: string[]) => void;
}) {
  const [isAllWanted, setAll] = useState(false);
  const [action, setAction] = useState<Action | null>(null);
  const filter = operationFilter(filters);
  const isPage = jobs.length > 0 && jobs.every(({ id }) => selected.has(id));
  // One that is not selected any more is not to be changed.
  const isAll = isAllWanted && isPage;
  useEffect(() => {
    if (!isPage) setAll(false);
  }, [isPage]);
  const marked = jobs.filter(({ id }) => selected.has(id));
  const statuses = new Set<string>(marked.map(({ status }) => status));
  const ofSelected = actionsOf({}).filter((action) => STATUSES_OF[action].some((status) => statuses.has(status)));
  const actions = isAll ? actionsOf(filters) : ofSelected;
  const canHaveAll = isPage && filter !== null && actionsOf(filters).length > 0;
  const matching = useQuery(
    // With a status, each of the actions concerns the same jobs.
    canHaveAll && !isAll && filters.status ? `matching ${JSON.stringify(filter)}` : null,
    async (signal) => {
      const [action] = actionsOf(filters);
      return action ? (await dryRun({ action, filter: filter ?? {} }, signal)).jobs : null;
    },
    "once",
  );
  if (selected.size === 0) {
    return <p class="bulk faint">Select jobs to change them.</p>;
  }
  const projectIds = [...new Set(marked.map(({ projectId }) => projectId))];
  const selects = isAll ? (filter ?? {}) : { projectIds, jobIds: marked.map(({ id }) => id) };
  const clear = () => {
    setAll(false);
    onSelect([]);
  };
  return (
    <div class="bulk" role="group" aria-label="Actions on the selected jobs">
      <strong role="status">{isAll ? "All jobs that match are selected." : `${count(selected.size, "job")} selected.`}</strong>
      {canHaveAll && !isAll && (
        <button type="button" onClick={() => setAll(true)}>
          {matching.data === null ? "Select all that match" : `Select all ${matching.data.toLocaleString("en")} that match`}
        </button>
      )}
      {actions.map((action) => (
        <button key={action} type="button" onClick={() => setAction(action)}>
          {ACTIONS[action]}…
        </button>
      ))}
      <button type="button" onClick={clear}>
        Clear selection
      </button>
      {isPage && filter === null && <span class="faint">All that match cannot be selected by model.</span>}
      {action && <OperationDialog action={action} filter={selects} onClose={() => setAction(null)} />}
    </div>
  );
}
