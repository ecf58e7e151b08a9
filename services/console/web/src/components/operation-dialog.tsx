// Asks before an operation, with the exact number of its jobs.

import { useEffect, useState } from "preact/hooks";
import { count, number } from "../lib/format";
import { ACTIONS, dryRun, start, type Action, type Filter } from "../lib/operations";
import { go, href } from "../lib/router";
import { useQuery } from "../lib/use-query";
import { Confirm, JobLink, ProjectLink, Problem, StatusBadge, TextField } from "./ui";
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
  const isPriority = /^\d{1,4}$/.test(priority) && Number(priority) <= 1_000;
  const request = { action, filter, priority: action === "setPriority" ? Number(isPriority ? priority : 10) : undefined };
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
      title={filter.jobIds ? `${ACTIONS[action]}: the selected jobs?` : `${ACTIONS[action]}: all jobs that match?`}
      action={jobs === null ? ACTIONS[action] : `${ACTIONS[action]} ${count(jobs, "job")}`}
      requiredText={jobs !== null && jobs > TYPED_ABOVE ? String(jobs) : undefined}
      isReady={jobs !== null && jobs > 0 && (action !== "setPriority" || isPriority)}
      onClose={onClose}
      onConfirm={async (reason) => go(href(["operations", await start(request, reason)]))}
    >
      {children}
      {action === "setPriority" && <TextField label="New priority, 0 to 1000, lower first" value={priority} onChange={setPriority} inputMode="numeric" />}
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
