// JSON as a tree, from its text: no number changes.

import { useState } from "preact/hooks";
import type { Node } from "../lib/json";

/** Entries of an object or array that are shown before all are asked for. */
const SHOWN_MAX = 100;

export function JsonTree({ node, label }: { node: Node; label: string }) {
  return (
    <div class="json" role="group" aria-label={label}>
      <Value node={node} depth={0} />
    </div>
  );
}

function Value({ node, depth }: { node: Node; depth: number }) {
  switch (node.kind) {
    case "string":
      return <span class="json-string">{JSON.stringify(node.value)}</span>;
    case "number":
    case "literal":
      return <span class="json-number">{node.text}</span>;
    case "array":
      return <Branch depth={depth} open="[" close="]" entries={node.items.map((item, n) => [String(n), item])} isArray />;
    case "object":
      return <Branch depth={depth} open="{" close="}" entries={node.entries} />;
  }
}

function Branch({ depth, open, close, entries, isArray }: {
  depth: number;
  open: string;
  close: string;
  entries: [string, Node][];
  isArray?: boolean;
}) {
  const [isOpen, setOpen] = useState(depth < 2);
  const [isWhole, setWhole] = useState(false);
  if (entries.length === 0) return <span>{open + close}</span>;
  const shown = isWhole ? entries : entries.slice(0, SHOWN_MAX);
  return (
    <details open={isOpen} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        {open}
        <span class="faint">{isOpen ? "" : ` ${entries.length} `}</span>
        {isOpen ? "" : close}
      </summary>
      {isOpen && (
        <ul>
          {shown.map(([name, value]) => (
            <li key={name}>
              <span class={isArray ? "faint" : "json-name"}>{isArray ? name : JSON.stringify(name)}</span>:{" "}
              <Value node={value} depth={depth + 1} />
            </li>
          ))}
          {shown.length < entries.length && (
            <li>
              <button type="button" onClick={() => setWhole(true)}>
                Show all {entries.length}
              </button>
            </li>
          )}
        </ul>
      )}
      {isOpen && close}
    </details>
  );
}
