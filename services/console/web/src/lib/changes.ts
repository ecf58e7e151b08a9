// What the console changes. The reason goes to the audit log.

import api, { body } from "./api";
import { lookAgain } from "./live";
import { reasonHeaders as headers } from "./operations";

async function changed<T>(answered: Promise<T>): Promise<T> {
  const answer = await answered;
  lookAgain();
  return answer;
}

export function retryJob(projectId: string, jobId: string, reason: string) {
  return changed(body(api.POST("/api/queue/retry", { body: { projectId, jobId }, headers: headers(reason) })));
}

/** Changes a queued job. An empty time removes it; `expiresIn` is in seconds, null for never, and stays as it is if undefined. */
export function updateJob(jobId: string, priority: number, runAt: string, expiresIn: number | null | undefined, reason: string) {
  const request = { params: { path: { jobId } }, body: { priority, runAt: runAt || null, expiresIn }, headers: headers(reason) };
  return changed(body(api.PATCH("/api/queue/jobs/{jobId}", request)));
}

export function retryAll(projectId: string, reason: string) {
  return changed(body(api.POST("/api/queue/retry", { body: { projectId, retryAll: true }, headers: headers(reason) })));
}

/** Makes deliveries to a webhook again; all that were given up if none is named. */
export function retryDeliveries(projectId: string, deliveryIds: string[] | undefined, reason: string) {
  const request = { params: { path: { projectId } }, body: { deliveryIds }, headers: headers(reason) };
  return changed(body(api.POST("/api/projects/{projectId}/deliveries/retry", request)));
}

/** Mutes, resolves or opens an error group, in one project or all. */
export function markFailure(errorGroup: string, projectId: string, status: import("./api").Schemas["FailureMark"], reason: string) {
  const params = { path: { errorGroup }, query: { projectId: projectId || undefined } };
  return changed(body(api.PATCH("/api/queue/failures/{errorGroup}", { params, body: { status }, headers: headers(reason) })));
}

export function cancel(projectId: string, batchIds: string[] | null, reason: string) {
  const request = { body: { projectId, batchIds }, headers: headers(reason) };
  return changed(body(api.POST("/api/queue/cancel", request)));
}

export function createKey(key: import("./api").Schemas["NewKey"], reason: string) {
  return body(api.POST("/api/keys", { body: key, headers: headers(reason) }));
}

export function rotateKey(keyId: string, reason: string) {
  return body(api.POST("/api/keys/{keyId}/rotate", { params: { path: { keyId } }, body: {}, headers: headers(reason) }));
}

export function revokeKey(keyId: string, reason: string) {
  return body(api.DELETE("/api/keys/{keyId}", { params: { path: { keyId } }, headers: headers(reason) }));
}

export type Patch = Parameters<typeof put>[1];

function put(projectId: string, patch: import("./api").Schemas["Patch"], reason: string) {
  const request = { params: { path: { projectId } }, body: patch, headers: headers(reason) };
  return body(api.PUT("/api/projects/{projectId}", request));
}

export function setProject(projectId: string, patch: Patch, reason: string) {
  return changed(put(projectId, patch, reason));
}
