// Operations: changes of all jobs that match a filter.

import api, { body, type Schemas } from "./api";
import { lookAgain } from "./live";

export type Operation = Schemas["Operation"];
export type Action = Schemas["OperationAction"];
export type Filter = Schemas["OperationFilter"];
type Request = Pick<Schemas["OperationRequest"], "action" | "filter" | "priority">;

/** What actions are called. */
export const ACTIONS: Record<Action, string> = {
  retry: "Retry",
  cancel: "Cancel",
  expire: "Expire",
  setPriority: "Set priority",
};

/** The statuses of jobs that an action changes. */
export const STATUSES_OF: Record<Action, string[]> = {
  retry: ["failed"],
  cancel: ["queued", "processing"],
  expire: ["queued"],
  setPriority: ["queued"],
};

/** Counts the jobs that an operation would change. */
export async function dryRun(request: Request, signal?: AbortSignal): Promise<Schemas["OperationDryRun"]> {
  const answer = await body(api.POST("/api/queue/operations", { body: { ...request, dryRun: true }, signal }));
  if (!answer.dryRun) throw new Error("The answer has no counts.");
  return answer.dryRun;
}

/** Starts an operation; returns its id. */
export async function start(request: Request, reason: string): Promise<string> {
  const { projectId, projectIds }: Filter = request.filter ?? {};
  const allProjects = !projectId && !projectIds;
  const answer = await body(api.POST("/api/queue/operations", { body: { ...request, allProjects, reason: reason.trim() || undefined } }));
  lookAgain();
  if (!answer.operation) throw new Error("The answer has no operation.");
  return answer.operation.operationId;
}

export async function abort(operationId: string, reason: string) {
  const headers = reasonHeaders(reason);
  await body(api.POST("/api/queue/operations/{operationId}/abort", { params: { path: { operationId } }, headers }));
  lookAgain();
}

/** The header that carries a reason. It has ASCII only. */
export function reasonHeaders(reason: string): Record<string, string> {
  const text = reason.trim().replace(/[^\x20-\x7e]/g, "?");
  return text ? { "jobmesh-reason": text } : {};
}
