// The client of the API. Its types are generated from docs/openapi.json.

import createClient from "openapi-fetch";
import type { components, paths } from "../../types/api";
import { key, signOut } from "./session";

export type Schemas = components["schemas"];
export type Job = Schemas["Job"];

/** The URL of the API: beside the page, so that it works under any path of a proxy. */
export const base = new URL(".", location.href).href.replace(/\/$/, "");

/** An error of the API, or of the connection to it. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string,
    readonly requestId: string | null,
  ) {
    super(message);
  }
}

const client = createClient<paths>({ baseUrl: base });

client.use({
  onRequest({ request }) {
    if (key.value) request.headers.set("authorization", `Bearer ${key.value}`);
    return request;
  },
});

/** The error that an answer has; `used` is the key of its request. */
export function errorOf(body: unknown, response: Response, used: string): ApiError {
  const { error, code } = (body ?? {}) as { error?: string; code?: string };
  const message = error ?? `The server answered ${response.status}.`;
  const requestId = response.headers.get("x-request-id");
  // A late answer says nothing about a key that was entered since.
  if (response.status === 401 && used === key.value) signOut(used ? message : "");
  return new ApiError(message, response.status, code ?? "unknown", requestId);
}

type Answered<T> = Promise<{ data?: T; error?: unknown; response: Response }>;

/** The body of an answer; throws an `ApiError` if it is an error. */
export async function body<T>(answered: Answered<T>): Promise<T> {
  const used = key.value;
  let answer;
  try {
    answer = await answered;
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("The edge cannot be reached.", 0, "unreachable", null);
  }
  if (answer.error !== undefined || answer.data === undefined) {
    throw errorOf(answer.error, answer.response, used);
  }
  return answer.data;
}

/** The headers of a request that is not made with the client. */
export function authorization(): Record<string, string> {
  return key.value ? { authorization: `Bearer ${key.value}` } : {};
}

/** A request as text, for what must be shown exactly as it was sent. */
export async function text(path: string, signal?: AbortSignal): Promise<string> {
  const used = key.value;
  const response = await fetch(base + path, { headers: authorization(), signal });
  const answer = await response.text();
  if (!response.ok) {
    let parsed: unknown = null;
    try {
      parsed = JSON.parse(answer);
    } catch {
      // A proxy answers with a page of its own.
    }
    throw errorOf(parsed, response, used);
  }
  return answer;
}

type AnalyticsQuery = paths["/api/queue/analytics"]["get"]["parameters"]["query"];

/** Sums by bucket and group. */
export async function analytics(query: AnalyticsQuery, signal: AbortSignal): Promise<Schemas["Analytics"]> {
  const answer = await body(client.GET("/api/queue/analytics", { params: { query }, signal }));
  // The endpoint has a second format.
  if (typeof answer === "string") throw new ApiError("The answer is not JSON.", 200, "unknown", null);
  return answer.analytics;
}

export default client;
