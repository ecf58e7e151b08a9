// The API key of this tab, and what it allows.

import { signal } from "@preact/signals";
import type { components } from "../../types/api";

type Access = components["schemas"]["Access"];
export type Scope = Access["scope"];

const STORED = "jobmesh.key";

/** The API key; empty while none is required. */
export const key = signal(sessionStorage.getItem(STORED) ?? localStorage.getItem(STORED) ?? "");
/** What the key allows; null until the server has answered. */
export const access = signal<Access | null>(null);
/** True if the server requires a key, and the one that was sent is not accepted. */
export const needsKey = signal(false);

/** Why a key was not accepted. */
export const refusal = signal("");

/** Uses a key from now on, and keeps it beyond this tab if that is wanted. */
export function signIn(text: string, keep: boolean) {
  (keep ? localStorage : sessionStorage).setItem(STORED, text);
  refusal.value = "";
  key.value = text;
  needsKey.value = false;
}

/** Forgets the key; `why` is shown at the sign-in. */
export function signOut(why = "") {
  refusal.value = why;
  sessionStorage.removeItem(STORED);
  localStorage.removeItem(STORED);
  key.value = "";
  access.value = null;
  needsKey.value = true;
}

const SCOPES: Scope[] = ["read", "enqueue", "manage", "admin"];

/** True if the key has a scope. The server checks it again. */
export function may(scope: Scope): boolean {
  const own = access.value?.scope;
  return own !== undefined && SCOPES.indexOf(own) >= SCOPES.indexOf(scope);
}

/** True if the key is for all projects. */
export function seesAll(): boolean {
  return access.value !== null && !access.value.projects;
}
