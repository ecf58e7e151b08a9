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
  assert.equal(await links.filter({ hasText: /Audit|Processors/ }).count(), 0);

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

  // A key that is revoked leads back to the sign-in.
  const { body } = await api(url, "/api/keys", { key: admin });
  const own = body.keys.find(({ name }) => name === "reader");
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("API key").fill(reader);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.locator(".facts").first().waitFor();
  await api(url, `/api/keys/${own.id}`, { key: admin, method: "DELETE" });
  await page.getByLabel("API key").waitFor();
});
