// API keys, with which clients use the API. A secret is shown once.

import { signal } from "@preact/signals";
import { useState } from "preact/hooks";
import { Command, Confirm, Empty, Loaded, Page, Panel, Select, Table, Time } from "../components/ui";
import api, { body, type Schemas } from "../lib/api";
import { createKey, revokeKey, rotateKey } from "../lib/changes";
import { count } from "../lib/format";
import { key as ownKey, signIn } from "../lib/session";
import { useQuery } from "../lib/use-query";

type Key = Schemas["Key"];
type Asked = { action: "create" } | { action: "rotate" | "revoke"; key: Key };

const SCOPES: [Schemas["KeyScope"], string][] = [
  ["read", "read"],
  ["enqueue", "enqueue: also enqueue jobs"],
  ["manage", "manage: also cancel, retry and change settings"],
  ["admin", "admin: everything"],
];

/**
 * The last secret that was made, and the key that it is shown to. It is not part of the page: when the first key is made, the
 * sign-in can replace the page before the answer is there.
 */
const made = signal<{ name: string; secret: string; owner: string } | null>(null);

export function KeysPage() {
  const [asked, setAsked] = useState<Asked | null>(null);
  const query = useQuery("keys", (signal) => body(api.GET("/api/keys", { signal })));
  const show = (answer: Schemas["KeyAnswer"]) => {
    const secret = answer.secret ?? "";
    // From the first key on, each request needs one.
    if (!ownKey.value) signIn(secret, false);
    made.value = { name: answer.key.name, secret, owner: ownKey.value };
    query.reload();
  };
  // Another key that signs in afterwards must not see it.
  const shown = made.value?.owner === ownKey.value ? made.value : null;
  const close = () => setAsked(null);
  const create = (
    <button type="button" onClick={() => setAsked({ action: "create" })}>
      New key…
    </button>
  );
  return (
    <Page title="API keys" aside={create}>
      {shown && (
        <Panel title={`The secret of ${shown.name}`}>
          <p>Copy it now: it is stored nowhere, and is not shown again.</p>
          <Command>{shown.secret}</Command>
          <button type="button" onClick={() => (made.value = null)}>
            Done
          </button>
        </Panel>
      )}
      <Loaded query={query}>
        {({ keys }) =>
          keys.length === 0 ? (
            <Empty>
              <p>There is no API key, and requests need none. The first key must have the scope admin; from then on each request needs a key.</p>
            </Empty>
          ) : (
            <Table
              caption={count(keys.length, "API key", "API keys")}
              rows={keys}
              id={(key) => key.id}
              columns={[
                { name: "Name", cell: ({ name }) => name },
                { name: "Id", cell: ({ id }) => <span class="mono">{id}</span> },
                { name: "Scope", cell: ({ scope, metadataOnly }) => (metadataOnly ? `${scope}, metadata only` : scope) },
                { name: "Projects", cell: ({ projects }) => projects?.join(", ") ?? "all" },
                { name: "Created", cell: ({ createdAt }) => <Time at={createdAt} /> },
                { name: "Last used", cell: ({ lastUsedAt }) => <Time at={lastUsedAt} /> },
                { name: "Expires", cell: ({ expiresAt }) => (expiresAt ? <Time at={expiresAt} /> : "never") },
                { name: "Old secret until", cell: ({ oldSecretUntil }) => <Time at={oldSecretUntil} /> },
                {
                  name: "Change",
                  cell: (key) => (
                    <>
                      <button type="button" onClick={() => setAsked({ action: "rotate", key })}>
                        Rotate…
                      </button>
                      <button type="button" class="danger" onClick={() => setAsked({ action: "revoke", key })}>
                        Revoke…
                      </button>
                    </>
                  ),
                },
              ]}
            />
          )
        }
      </Loaded>
      {asked?.action === "create" && <Create onClose={close} onMade={show} />}
      {asked?.action === "rotate" && (
        <Confirm
          title={`Rotate ${asked.key.name}?`}
          action="Rotate"
          isDangerous={false}
          onClose={close}
          onConfirm={async (reason) => show(await rotateKey(asked.key.id, reason))}
        >
          <p>It gets a new secret. The one before is accepted for 24 hours.</p>
        </Confirm>
      )}
      {asked?.action === "revoke" && (
        <Confirm
          title={`Revoke ${asked.key.name}?`}
          action="Revoke"
          onClose={close}
          onConfirm={async (reason) => {
            await revokeKey(asked.key.id, reason);
            query.reload();
          }}
        >
          <p>Requests with it are refused within a second, and its event streams end.</p>
        </Confirm>
      )}
    </Page>
  );
}

function Create({ onClose, onMade }: { onClose: () => void; onMade: (answer: Schemas["KeyAnswer"]) => void }) {
  const [name, setName] = useState("");
  const [scope, setScope] = useState<Schemas["KeyScope"]>(ownKey.value ? "read" : "admin");
  const [projects, setProjects] = useState("");
  const [expiresIn, setExpiresIn] = useState("");
  const [metadataOnly, setMetadataOnly] = useState(false);
  const named = projects.split(",").map((id) => id.trim()).filter((id) => id !== "");
  return (
    <Confirm
      title="Make an API key?"
      action="Make it"
      isReady={name !== ""}
      isDangerous={false}
      onClose={onClose}
      onConfirm={async (reason) => {
        const request = { name, scope, metadataOnly, projects: named.length > 0 ? named : null, expiresIn: expiresIn || null };
        onMade(await createKey(request, reason));
      }}
    >
      <Field label="Name" value={name} onInput={setName} />
      <Select label="Scope" value={scope} options={SCOPES} onChange={(scope) => setScope(scope as Schemas["KeyScope"])} />
      <Field label="Projects, separated by commas (empty for all)" value={projects} onInput={setProjects} />
      <Field label="Expires in, such as 90d or 12h (empty for never)" value={expiresIn} onInput={setExpiresIn} />
      <label>
        <input type="checkbox" checked={metadataOnly} onChange={(event) => setMetadataOnly(event.currentTarget.checked)} />
        Hide data, results and progress
      </label>
    </Confirm>
  );
}

function Field({ label, value, onInput }: { label: string; value: string; onInput: (value: string) => void }) {
  return (
    <label class="field">
      <span>{label}</span>
      <input value={value} onInput={(event) => onInput(event.currentTarget.value.trim())} autocomplete="off" />
    </label>
  );
}
