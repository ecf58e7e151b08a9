// What a key may not do is absent, and refused by the server. The argument has an admin's key.

import assert from "node:assert/strict";
import { api, run, until } from "./browser.mjs";

await run(async ({ page, url, argument: admin }) => {
  const create = async (body) => (await api(url, "/api/keys", { key: admin, method: "POST", body })).body.secret;
  const reader = await create({ name: "reader", scope: "read", projects: ["own"] });
  const enqueue = (projectId) =>
    api(url, "/api/queue/enqueue", { key: admin, method: "POST", body: { projectId, batchId: "b", data: { do: "reject" } } });
  const { jobId } = (await enqueue("own")).body;
  await enqueue("other");
  await until("failed", async () => (await api(url, `/api/queue/status/${jobId}`, { key: reader })).body.job?.status === "failed");

  await page.goto(url);
  await page.getByLabel("API key").fill("jm_wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("alert").waitFor();
  await page.getByLabel("API key").fill(reader);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("heading", { name: "Overview" }).waitFor();
  const links = page.getByRole("navigation").getByRole("link");
  assert.equal(await links.filter({ hasText: /Audit|Processors|API keys/ }).count(), 0);

  await page.goto(`${url}#/projects`);
  await page.getByRole("link", { name: "own" }).waitFor();
  assert.equal(await page.getByRole("link", { name: "other" }).count(), 0);
  await page.goto(`${url}#/jobs/${jobId}`);
  await page.locator(".facts .badge.failed").waitFor();
  assert.equal(await page.getByRole("button", { name: /Retry|Cancel/ }).count(), 0);
  await page.goto(`${url}#/jobs?status=failed`);
  await page.getByRole("cell", { name: "failed" }).waitFor();
  assert.equal(await page.getByRole("checkbox").count(), 0);
  const operation = { key: reader, method: "POST", body: { action: "retry", filter: {} } };
  assert.equal((await api(url, "/api/queue/operations", operation)).status, 403);
  await page.goto(`${url}#/projects/own`);
  await page.getByRole("heading", { name: "Limits" }).waitFor();
  assert.equal(await page.getByRole("button", { name: /Change|Pause|Retry|Cancel/ }).count(), 0);
  const retry = { key: reader, method: "POST", body: { projectId: "own", jobId } };
  assert.equal((await api(url, "/api/queue/retry", retry)).status, 403);

  // The admin sees the button.
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("API key").fill(admin);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.goto(`${url}#/jobs/${jobId}`);
  await page.getByRole("button", { name: "Retry", exact: true }).waitFor();

  // A key is made and rotated here; its secrets are shown once and accepted.
  await page.goto(`${url}#/keys`);
  await page.getByRole("button", { name: "New key…" }).click();
  await page.getByLabel("Name", { exact: true }).fill("made here");
  await page.getByLabel(/^Projects/).fill("own, other");
  await page.getByRole("button", { name: "Make it" }).click();
  const secret = async () => (await page.locator(".command code").textContent()).trim();
  const made = await secret();
  assert.equal((await api(url, "/api/queue/stats?projectId=own", { key: made })).status, 200);
  const row = page.getByRole("row").filter({ hasText: "made here" });
  await row.getByRole("cell", { name: "own, other" }).waitFor();
  await row.getByRole("button", { name: "Rotate…" }).click();
  await page.getByRole("button", { name: "Rotate", exact: true }).click();
  await until("another secret", async () => (await secret()) !== made);
  assert.equal((await api(url, "/api/queue/stats?projectId=own", { key: await secret() })).status, 200);
  await row.getByRole("button", { name: "Revoke…" }).click();
  await page.getByRole("button", { name: "Revoke", exact: true }).click();
  await row.waitFor({ state: "detached" });
  await page.goto(`${url}#/jobs/${jobId}`);
  assert.equal((await api(url, "/api/queue/stats?projectId=own", { key: made })).status, 401);

  // A key that is revoked leads back to the sign-in.
  const { body } = await api(url, "/api/keys", { key: admin });
  const own = body.keys.find(({ name }) => name === "reader");
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("API key").fill(reader);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.locator(".facts").first().waitFor();
  // The secret that the admin made is not shown to another key.
  await page.goto(`${url}#/keys`);
  await page.getByRole("heading", { name: "API keys" }).waitFor();
  assert.equal(await page.locator(".command code").count(), 0);
  await page.goto(`${url}#/jobs/${jobId}`);
  await page.locator(".facts").first().waitFor();
  await api(url, `/api/keys/${own.id}`, { key: admin, method: "DELETE" });
  await page.getByLabel("API key").waitFor();
});
