import { useState } from "preact/hooks";
import { refusal, signIn } from "../lib/session";

export function SignIn() {
  const [text, setText] = useState("");
  const [keep, setKeep] = useState(false);
  return (
    <main id="main" class="sign-in">
      <h1>Jobmesh</h1>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          signIn(text.trim(), keep);
        }}
      >
        <label>
          API key
          <input
            type="password"
            autocomplete="current-password"
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
            placeholder="jm_…"
            required
          />
        </label>
        <label class="inline">
          <input type="checkbox" checked={keep} onChange={(event) => setKeep(event.currentTarget.checked)} />
          Keep it in this browser
        </label>
        {refusal.value && (
          <p class="problem" role="alert">
            {refusal.value}
          </p>
        )}
        <button type="submit">Sign in</button>
        <p class="faint">
          Each request needs a key: one that is missing, expired or revoked brings you here. An admin makes one with{" "}
          <code>jobmesh keys create</code>.
        </p>
      </form>
    </main>
  );
}
