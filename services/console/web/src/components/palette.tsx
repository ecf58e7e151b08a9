// The command palette: a view by its name, or a job or project by its id.

import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import api, { body } from "../lib/api";
import { go, href } from "../lib/router";
import { useFocusReturn } from "./ui";

const JOB = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const GROUP = /^[0-9a-f]{16}$/i;

interface Choice {
  label: string;
  to: string;
}

export function Palette({ entries, onClose }: { entries: { name: string; label: string }[]; onClose: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [text, setText] = useState("");
  const [projects, setProjects] = useState<string[]>([]);
  useFocusReturn();
  // At once: what is typed next belongs to the field.
  useLayoutEffect(() => dialog.current?.showModal(), []);
  useEffect(() => {
    if (!text) return setProjects([]);
    const abort = new AbortController();
    body(api.GET("/api/projects", { params: { query: { search: text, limit: 8 } }, signal: abort.signal }))
      .then((answer) => setProjects(answer.projects.map((project) => project.projectId)))
      .catch(() => {});
    return () => abort.abort();
  }, [text]);
  const choices = useMemo((): Choice[] => {
    const found = text.toLowerCase();
    const views = entries.filter(({ label }) => label.toLowerCase().includes(found));
    return [
      ...(JOB.test(text) ? [{ label: `Job ${text}`, to: href(["jobs", text.toLowerCase()]) }] : []),
      ...(GROUP.test(text) ? [{ label: `Error group ${text}`, to: href(["jobs"], { errorGroup: text }) }] : []),
      ...views.map(({ name, label }) => ({ label, to: href(name ? [name] : []) })),
      ...projects.map((id) => ({ label: `Project ${id}`, to: href(["projects", id]) })),
      ...(text ? [{ label: `Jobs of batch ${text}`, to: href(["jobs"], { batchId: text }) }] : []),
    ];
  }, [text, projects]);
  const open = (choice: Choice | undefined) => {
    if (!choice) return;
    onClose();
    go(choice.to);
  };
  return (
    <dialog ref={dialog} class="palette" onClose={onClose} aria-label="Find">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          open(choices[0]);
        }}
      >
        <label>
          Find a view, or a job, project, batch or error group by its id
          <input value={text} onInput={(event) => setText(event.currentTarget.value.trim())} autocomplete="off" />
        </label>
        <ul>
          {choices.map((choice) => (
            <li key={choice.to}>
              <button type="button" onClick={() => open(choice)}>
                {choice.label}
              </button>
            </li>
          ))}
        </ul>
      </form>
    </dialog>
  );
}
