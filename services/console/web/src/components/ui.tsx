// Small parts that all views use.

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "../lib/api";
import { ago, localTime, time } from "../lib/format";
import { href } from "../lib/router";
import type { Query } from "../lib/use-query";

export type Status = "queued" | "processing" | "completed" | "failed" | "canceled";
export const STATUSES: Status[] = ["queued", "processing", "completed", "failed", "canceled"];

export function StatusBadge({ status }: { status: string }) {
  return <span class={`badge ${status}`}>{status}</span>;
}

/** A time; its exact value is shown on hover. */
export function Time({ at }: { at: string | undefined | null }) {
  if (!at) return <>–</>;
  return (
    <time dateTime={at} title={time(at)}>
      {ago(at)}
    </time>
  );
}

export function JobLink({ id }: { id: string }) {
  return (
    <a class="mono" href={href(["jobs", id])} title={id}>
      {id.slice(0, 8)}…{id.slice(-4)}
    </a>
  );
}

export function ProjectLink({ id }: { id: string }) {
  return <a href={href(["projects", id])}>{id}</a>;
}

export function Page({ title, aside, children }: { title: string; aside?: ComponentChildren; children: ComponentChildren }) {
  useEffect(() => {
    document.title = `${title} – Jobmesh`;
  }, [title]);
  return (
    <main id="main" tabIndex={-1}>
      <header class="page-head">
        <h1>{title}</h1>
        <div class="aside">{aside}</div>
      </header>
      {children}
    </main>
  );
}

export function Panel({ title, aside, children }: { title: string; aside?: ComponentChildren; children: ComponentChildren }) {
  return (
    <section class="panel" aria-label={title}>
      <header>
        <h2>{title}</h2>
        <div class="aside">{aside}</div>
      </header>
      {children}
    </section>
  );
}

/** What the API said was wrong, with the id by which its logs know the request. */
export function Problem({ error, retry }: { error: Error; retry?: () => void }) {
  const requestId = error instanceof ApiError ? error.requestId : null;
  return (
    <div class="problem" role="alert">
      <p>{error.message}</p>
      {requestId && <p class="faint mono">request {requestId}</p>}
      {retry && (
        <button type="button" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Empty({ children }: { children: ComponentChildren }) {
  return <div class="empty">{children}</div>;
}

/** The data of a query, or what stands for it while there is none. */
export function Loaded<T>({ query, children }: { query: Query<T>; children: (data: T) => ComponentChildren }) {
  if (query.data !== null) {
    return (
      <>
        {query.error && <Problem error={query.error} retry={query.reload} />}
        {children(query.data)}
      </>
    );
  }
  if (query.error) return <Problem error={query.error} retry={query.reload} />;
  return <p class="faint loading">Loading…</p>;
}

/** Names with their values. */
export function Facts({ facts }: { facts: [name: string, value: ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

export interface Column<T> {
  name: string;
  /** A number is aligned to the right. */
  isNumber?: boolean;
  cell: (row: T) => ComponentChildren;
}

/** A table whose rows keep their elements while their cells change. */
export function Table<T>({ caption, columns, rows, id, selected, href: to, marks }: {
  caption: string;
  columns: Column<T>[];
  rows: T[];
  id: (row: T) => string;
  selected?: string | null;
  href?: (row: T) => string;
  /** Rows can be marked. */
  marks?: { ids: Set<string>; onChange: (ids: string[]) => void; label: (row: T) => string };
}) {
  const isMarked = (row: T) => marks?.ids.has(id(row)) ?? false;
  const mark = (marked: T[], isOn: boolean) => {
    const ids = new Set(marks?.ids);
    for (const row of marked) if (isOn) ids.add(id(row)); else ids.delete(id(row));
    marks?.onChange([...ids]);
  };
  return (
    <div class="table-scroll" tabIndex={0} role="region" aria-label={caption}>
      <table>
        <caption>{caption}</caption>
        <thead>
          <tr>
            {marks && (
              <th scope="col">
                <input type="checkbox" aria-label="Select all of this page" checked={rows.length > 0 && rows.every(isMarked)} onChange={(event) => mark(rows, event.currentTarget.checked)} />
              </th>
            )}
            {columns.map(({ name, isNumber }) => (
              <th key={name} scope="col" class={isNumber ? "number" : undefined}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={id(row)} data-href={to?.(row)} class={selected === id(row) ? "selected" : undefined}>
              {marks && (
                <td>
                  <input type="checkbox" aria-label={marks.label(row)} checked={isMarked(row)} onChange={(event) => mark([row], event.currentTarget.checked)} />
                </td>
              )}
              {columns.map(({ name, isNumber, cell }) => (
                <td key={name} class={isNumber ? "number" : undefined}>
                  {cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function Command({ children }: { children: string }) {
  const [isCopied, setCopied] = useState(false);
  const copy = () => navigator.clipboard?.writeText(children).then(() => setCopied(true));
  return (
    <div class="command">
      <pre>
        <code>{children}</code>
      </pre>
      <button type="button" onClick={copy}>
        {isCopied ? "Copied" : "Copy"}
      </button>
    </div>
  );
}

/** Gives the focus back, once a dialog is gone, to the element that had it. */
export function useFocusReturn() {
  useLayoutEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    return () => before?.isConnected && before.focus();
  }, []);
}

/** A question before something that cannot be undone. */
export function Confirm({ title, children, action, requiredText, isReady = true, isDangerous = true, onConfirm, onClose }: {
  title: string;
  children: ComponentChildren;
  action: string;
  /** Text that must be typed first. */
  requiredText?: string;
  /** False while something that is asked about is not known. */
  isReady?: boolean;
  /** False for what can be changed back. */
  isDangerous?: boolean;
  onConfirm: (reason: string) => Promise<unknown>;
  onClose: () => void;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [typed, setTyped] = useState("");
  const [reason, setReason] = useState("");
  const [error, setError] = useState<Error | null>(null);
  const [isBusy, setBusy] = useState(false);
  useFocusReturn();
  useLayoutEffect(() => dialog.current?.showModal(), []);
  // The number is shown with separators.
  const isTyped = requiredText === undefined || typed.replace(/[,.\s]/g, "") === requiredText;
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await onConfirm(reason);
      onClose();
    } catch (error) {
      setError(error as Error);
      setBusy(false);
    }
  };
  return (
    <dialog ref={dialog} onClose={onClose} aria-label={title}>
      <form onSubmit={submit}>
        <h2>{title}</h2>
        {children}
        {requiredText !== undefined && (
          <label>
            <span>
              Type <strong>{requiredText}</strong> to go on
            </span>
            <input value={typed} onInput={(event) => setTyped(event.currentTarget.value)} autocomplete="off" />
          </label>
        )}
        <label>
          Reason, for the audit log (optional)
          <input value={reason} maxLength={500} onInput={(event) => setReason(event.currentTarget.value)} />
        </label>
        {error && <Problem error={error} />}
        <div class="buttons">
          <button type="button" onClick={onClose}>
            Back
          </button>
          <button type="submit" class={isDangerous ? "danger" : undefined} disabled={isBusy || !isReady || !isTyped}>
            {action}
          </button>
        </div>
      </form>
    </dialog>
  );
}

/** A priority; `onChange` gets what is typed at once. */
export function PriorityField({ value, onChange }: { value: string; onChange: (value: string) => void }) {
  return (
    <label class="field">
      <span>Priority, 0 to 1000, lower first</span>
      <input
        value={value}
        inputMode="numeric"
        aria-invalid={!isPriority(value)}
        onInput={(event) => onChange(event.currentTarget.value.trim())}
      />
      {!isPriority(value) && <span role="alert">It must be an integer from 0 to 1000.</span>}
    </label>
  );
}

export function isPriority(text: string): boolean {
  return /^\d{1,4}$/.test(text) && Number(text) <= 1_000;
}

/** A share of a limit; nothing without a limit. */
export function Meter({ used, limit, label }: { used: number; limit: number; label: string }) {
  if (limit === 0) return null;
  const share = Math.min(1, used / limit);
  return (
    <progress class={share >= 0.9 ? "high" : undefined} value={share} max={1} aria-label={label} title={label} />
  );
}

export function Select({ label, value, options, onChange }: {
  label: string;
  value: string;
  options: [value: string, label: string][];
  onChange: (value: string) => void;
}) {
  return (
    <label class="field">
      <span>{label}</span>
      <select value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {options.map(([value, label]) => (
          <option key={value} value={value}>
            {label}
          </option>
        ))}
      </select>
    </label>
  );
}

/** A text field that takes effect on Enter or when it is left. */
export function TextField({ label, value, onChange, ...input }: {
  label: string;
  value: string;
  onChange: (value: string) => void;
} & Omit<JSX.InputHTMLAttributes<HTMLInputElement>, "onChange" | "label" | "value">) {
  // What is being typed stays when the view is loaded again.
  const [typed, setTyped] = useState(value);
  useEffect(() => setTyped(value), [value]);
  const commit = () => typed.trim() !== value && onChange(typed.trim());
  return (
    <label class="field">
      <span>{label}</span>
      <input
        {...input}
        value={typed}
        onInput={(event) => setTyped(event.currentTarget.value)}
        onChange={commit}
        onKeyDown={(event) => event.key === "Enter" && commit()}
      />
    </label>
  );
}

/** A time in the zone of the browser; as RFC 3339 outside. */
export function TimeField({ label, value, onChange }: { label: string; value: string; onChange: (value: string) => void }) {
  return (
    <label class="field">
      <span>{label}</span>
      <input
        type="datetime-local"
        step={1}
        value={value ? localTime(value) : ""}
        onChange={(event) => {
          const text = event.currentTarget.value;
          onChange(text ? new Date(text).toISOString() : "");
        }}
      />
    </label>
  );
}

export function Pager({ next, params }: { next: string | null | undefined; params: (cursor: string | null) => void }) {
  if (!next) return null;
  return (
    <p class="pager">
      <button type="button" onClick={() => params(next)}>
        Next page
      </button>
    </p>
  );
}
