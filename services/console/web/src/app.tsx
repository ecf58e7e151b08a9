// The frame around all views: sign-in, navigation, keyboard.

import { useEffect, useState } from "preact/hooks";
import api, { ApiError, body } from "./lib/api";
import { connect, connection } from "./lib/live";
import { go, href, view } from "./lib/router";
import { access, key, may, needsKey, seesAll, signOut } from "./lib/session";
import { Palette } from "./components/palette";
import { Page, Problem } from "./components/ui";
import { zone } from "./lib/format";
import { AnalyticsPage } from "./pages/analytics";
import { AuditPage } from "./pages/audit";
import { FailuresPage } from "./pages/failures";
import { JobPage } from "./pages/job";
import { JobsPage } from "./pages/jobs";
import { KeysPage } from "./pages/keys";
import { OperationPage, OperationsPage } from "./pages/operations";
import { OverviewPage } from "./pages/overview";
import { ProcessorsPage } from "./pages/processors";
import { ProjectPage } from "./pages/project";
import { ProjectsPage } from "./pages/projects";
import { SignIn } from "./pages/sign-in";

interface Entry {
  name: string;
  label: string;
  /** Follows `g` on the keyboard. */
  letter: string;
  isShown?: () => boolean;
}

const ENTRIES: Entry[] = [
  { name: "", label: "Overview", letter: "o" },
  { name: "jobs", label: "Jobs", letter: "j" },
  { name: "failures", label: "Failures", letter: "f" },
  { name: "operations", label: "Operations", letter: "e" },
  { name: "projects", label: "Projects", letter: "p" },
  { name: "analytics", label: "Analytics", letter: "a" },
  { name: "processors", label: "Processors", letter: "r", isShown: seesAll },
  { name: "audit", label: "Audit", letter: "u", isShown: () => may("admin") && seesAll() },
  { name: "keys", label: "API keys", letter: "k", isShown: () => may("admin") && seesAll() },
];

function entries(): Entry[] {
  return ENTRIES.filter(({ isShown }) => isShown?.() ?? true);
}

export function App() {
  const [error, setError] = useState<ApiError | null>(null);
  const [dialog, setDialog] = useState<"palette" | "help" | null>(null);
  const [attempt, setAttempt] = useState(0);
  const current = key.value;
  useEffect(() => {
    setError(null);
    // The answer would be that a key is needed.
    if (needsKey.value) return;
    body(api.GET("/api/access"))
      .then((answer) => (access.value = answer.access))
      .catch((error: ApiError) => error.status !== 401 && setError(error));
  }, [current, attempt]);
  const isKnown = access.value !== null;
  useEffect(() => (isKnown ? connect() : undefined), [isKnown, current]);
  useEffect(() => keyboard(setDialog), []);
  // The event of one dialog that closed can come after another has opened.
  const close = (closed: typeof dialog) => setDialog((shown) => (shown === closed ? null : shown));
  if (needsKey.value) return <SignIn />;
  if (error) {
    return (
      <main id="main">
        <h1>Jobmesh</h1>
        <Problem error={error} retry={() => setAttempt((n) => n + 1)} />
      </main>
    );
  }
  if (!isKnown) return <p class="faint loading">Loading…</p>;
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), document.getElementById("main")?.focus())}>
        Skip to the content
      </a>
      <Navigation onPalette={() => setDialog("palette")} onHelp={() => setDialog("help")} />
      <Current />
      {dialog === "palette" && <Palette entries={entries()} onClose={() => close("palette")} />}
      {dialog === "help" && <Help onClose={() => close("help")} />}
    </>
  );
}

function Navigation({ onPalette, onHelp }: { onPalette: () => void; onHelp: () => void }) {
  const current = view.value.path[0] ?? "";
  const state = connection.value;
  const own = access.value;
  return (
    <nav aria-label="Views">
      <a class="brand" href={href([])}>
        Jobmesh
      </a>
      <ul>
        {entries().map(({ name, label, letter }) => (
          <li key={name}>
            <a href={href(name ? [name] : [])} aria-current={name === current ? "page" : undefined} title={`g ${letter}`}>
              {label}
            </a>
          </li>
        ))}
      </ul>
      <div class="nav-foot">
        <button type="button" onClick={onPalette} title="Ctrl K">
          Find…
        </button>
        <button type="button" onClick={onHelp} title="?">
          Keyboard
        </button>
        <a href="docs/">API</a>
        {key.value && (
          <button type="button" onClick={() => signOut()}>
            Sign out
          </button>
        )}
        <p class={`connection ${state}`} role="status">
          {state}
        </p>
        {own?.name && (
          <p class="faint" title={own.projects ? `projects ${own.projects.join(", ")}` : "all projects"}>
            {own.name} ({own.scope})
          </p>
        )}
        <p class="faint">Times in {zone}</p>
      </div>
    </nav>
  );
}

function Current() {
  const { path } = view.value;
  const [name = "", id] = path;
  switch (name) {
    case "":
      return <OverviewPage />;
    case "jobs":
      return id ? <JobPage key={id} id={id} /> : <JobsPage />;
    case "failures":
      return <FailuresPage />;
    case "operations":
      return id ? <OperationPage key={id} id={id} /> : <OperationsPage />;
    case "projects":
      return id ? <ProjectPage key={id} id={id} /> : <ProjectsPage />;
    case "analytics":
      return <AnalyticsPage />;
    case "processors":
      return <ProcessorsPage />;
    case "audit":
      return <AuditPage />;
    case "keys":
      return <KeysPage />;
    default:
      return (
        <Page title="Not found">
          <p>
            There is no view of this name. <a href={href([])}>Overview</a>
          </p>
        </Page>
      );
  }
}

const KEYS: [string, string][] = [
  ["Ctrl K", "find a view, a job or a project"],
  ["/", "go to the first filter"],
  ["j, k", "select the next row, the previous one"],
  ["Enter", "open the selected row"],
  ["?", "show these keys"],
];

function Help({ onClose }: { onClose: () => void }) {
  return (
    <dialog ref={(element) => void (element && !element.open && element.showModal())} onClose={onClose} aria-label="Keyboard">
      <h2>Keyboard</h2>
      <dl class="facts">
        {[...KEYS, ...entries().map(({ letter, label }): [string, string] => [`g ${letter}`, label])].map(([keys, what]) => (
          <div key={keys}>
            <dt>
              <kbd>{keys}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <form method="dialog">
        <button>Close</button>
      </form>
    </dialog>
  );
}

/** How long after `g` its letter may follow, in ms. */
const GOING_MS = 1_500;

/** Handles keys that no field takes. */
function keyboard(show: (dialog: "palette" | "help") => void): () => void {
  let goingUntil = 0;
  const onKey = (event: KeyboardEvent) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "k") {
      event.preventDefault();
      return show("palette");
    }
    const target = event.target as HTMLElement;
    // A field of a dialog that has just closed can still have the focus.
    const isField = target.closest("dialog")?.open ?? target.matches("input:not([type=checkbox]), select, textarea");
    if (isField || event.ctrlKey || event.metaKey || event.altKey) return;
    if (performance.now() < goingUntil) {
      goingUntil = 0;
      const entry = entries().find(({ letter }) => letter === event.key);
      if (entry) go(href(entry.name ? [entry.name] : []));
      return;
    }
    switch (event.key) {
      case "g":
        goingUntil = performance.now() + GOING_MS;
        return;
      case "?":
        return show("help");
      case "/":
        event.preventDefault();
        return document.querySelector<HTMLElement>(".filters input, .filters select")?.focus();
      case "j":
        return select(1);
      case "k":
        return select(-1);
      case "Enter": {
        const to = document.querySelector<HTMLElement>("tr.at")?.dataset.href;
        if (to && target === document.body) go(to);
      }
    }
  };
  document.addEventListener("keydown", onKey);
  return () => document.removeEventListener("keydown", onKey);
}

/** Selects another row of the first table whose rows can be opened. */
function select(step: number) {
  const rows = [...document.querySelectorAll<HTMLElement>("main tr[data-href]")];
  const at = rows.findIndex((row) => row.classList.contains("at"));
  const next = rows[Math.min(rows.length - 1, Math.max(0, at + step))];
  rows[at]?.classList.remove("at");
  next?.classList.add("at");
  next?.scrollIntoView({ block: "nearest" });
}
