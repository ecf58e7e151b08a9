// The view that the URL names: `#/jobs?status=failed`. The part behind `#` works under any path of a proxy, and a link
// that is opened in another tab shows the same view.

import { signal } from "@preact/signals";

export interface View {
  /** The parts of the path: `["jobs", "<id>"]`. */
  path: string[];
  params: URLSearchParams;
}

/** A part of a path; as it is if it is not encoded. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function read(): View {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return {
    path: path.split("/").filter(Boolean).map(decoded),
    params: new URLSearchParams(query),
  };
}

export const view = signal(read());
addEventListener("hashchange", () => (view.value = read()));

/** The URL of a view. Parameters without a value are left out. */
export function href(path: string[], params: Record<string, string | number | undefined | null> = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== null && value !== "") query.set(name, String(value));
  }
  const text = query.toString();
  return `#/${path.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

export function go(url: string) {
  location.hash = url;
}

/** Changes parameters of the current view; `null` removes one. */
export function setParams(change: Record<string, string | null | undefined>) {
  const params = Object.fromEntries(view.value.params);
  go(href(view.value.path, { ...params, ...change }));
}
