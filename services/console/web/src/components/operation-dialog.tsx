// Asks before an operation, with the exact number of its jobs.

import { useEffect, useState } from "preact/hooks";
import { count, number } from "../lib/format";
import { ACTIONS, dryRun, start, type Action, type Filter } from "../lib/operations";
import { go, href } from "../lib/router";
import { useQuery } from "../lib/use-query";
import { Confirm, isPriority, JobLink, ProjectLink, Problem, PriorityField, StatusBadge } from "./ui";
import type { ComponentChildren } from "preact";

/** Numbers of jobs above this one must be typed. */
const TYPED_ABOVE = 1_000;
/** Projects and statuses that are listed. */
const LISTED = 6;

export function OperationDialog({ action, filter, children, onClose }: {
  action: Action;
  filter: Filter;
  children?: ComponentChildren;
  onClose: () => void;
}) {
  const [priority, setPriority] = useState("10");
  const isValid = action !== "setPriority" || isPriority(priority);
  const request = { action, filter, priority: action === "setPriority" ? Number(isValid ? priority : 10) : undefined };
  const key = JSON.stringify([action, filter]);
  const counted = useQuery(`dry run ${key}`, (signal) => dryRun(request, signal), "once");
  // The number of a question stays while it is asked.
  const [asked, setAsked] = useState<{ key: string; jobs: number } | null>(null);
  useEffect(() => {
    if (counted.data && asked?.key !== key) setAsked({ key, jobs: counted.data.jobs });
  }, [counted.data, key]);
  const jobs = asked?.key === key ? asked.jobs : null;
  return (
    <Confirm
      title={`${ACTIONS[action]}: ${scope(filter)}?`}
      action={jobs === null ? ACTIONS[action] : `${ACTIONS[action]}${action === "setPriority" ? " of" : ""} ${count(jobs, "job")}`}
      isDangerous={action === "cancel" || action === "expire"}
      requiredText={jobs !== null && jobs > TYPED_ABOVE ? String(jobs) : undefined}
      isReady={jobs !== null && jobs > 0 && isValid}
      onClose={onClose}
      onConfirm={async (reason) => go(href(["operations", await start(request, reason)]))}
    >
      {children}
      {action === "setPriority" && <PriorityField value={priority} onChange={setPriority} />}
      {counted.error && <Problem error={counted.error} retry={counted.reload} />}
      {jobs === null && !counted.error && <p class="faint">Counting…</p>}
      {jobs !== null && counted.data && (
        <>
          <p role="status">
            {jobs === 0 ? "No job matches now." : `${count(jobs, "job")} ${jobs === 1 ? "matches" : "match"} now.`}
          </p>
          <ul class="plain">
            {counted.data.counts.slice(0, LISTED).map(({ projectId, status, jobs }) => (
              <li key={`${projectId} ${status}`}>
                {number(jobs)} <StatusBadge status={status} /> in <ProjectLink id={projectId} />
              </li>
            ))}
            {counted.data.counts.length > LISTED && <li>and more in {count(counted.data.counts.length - LISTED, "further row")}</li>}
          </ul>
          {counted.data.samples.length > 0 && (
            <p>
              Some of them:{" "}
              {counted.data.samples.map((job) => (
                <span key={job.id} class="item">
                  <JobLink id={job.id} />
                </span>
              ))}
            </p>
          )}
        </>
      )}
    </Confirm>
  );
}

/** Which jobs a filter selects, for a title. */
function scope({ jobIds, errorGroup }: Filter): string {
  if (jobIds) return "the selected jobs";
  return errorGroup ? "all jobs of this error group" : "all jobs that match";
}
