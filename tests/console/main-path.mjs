// Enqueue by the API, see it finish without a reload, follow a failure to its jobs, retry, cancel, change a limit.

import assert from "node:assert/strict";
import { api, post, run, until } from "./browser.mjs";

await run(async ({ page, url }) => {
  await page.goto(url);
  const counted = (name) => page.locator(`[data-count="${name}"] strong`);
  await counted("completed").getByText("0", { exact: true }).waitFor();
  await page.evaluate(() => (window.isSamePage = true));
  const data = {
    a: { do: "done" },
    b: { do: "done" },
    c: { do: "reject" },
    d: { do: "wait" },
  };
  const enqueued = await post(url, "/api/queue/enqueue", { projectId: "p", batchIds: Object.keys(data), data });
  const [, , rejected, waiting] = enqueued.jobIds;
  await counted("completed").getByText("2", { exact: true }).waitFor();
  await counted("failed").getByText("1", { exact: true }).waitFor();
  await counted("running").getByText("1", { exact: true }).waitFor();
  // The group of the error comes with the rows in ClickHouse.
  await page.getByRole("link", { name: "answered 422 Unprocessable Entity: no such page" }).first().waitFor();
  assert.equal(await page.evaluate(() => window.isSamePage), true);

  // From the group to its job, and its retry with a reason.
  await page.getByRole("link", { name: "Failures", exact: true }).click();
  await page.getByRole("link", { name: "answered 422 Unprocessable Entity: no such page" }).click();
  await page.locator(`a[href*="${rejected}"]`).click();
  await page.getByRole("heading", { name: `Job ${rejected.slice(0, 8)}` }).waitFor();
  await page.getByText("answered 422").first().waitFor();
  await page.getByRole("button", { name: "Retry", exact: true }).click();
  await page.getByLabel(/Reason/).fill("the page is there now");
  await page.getByRole("dialog").getByRole("button", { name: "Retry" }).click();
  await until("retried", async () => {
    const { body } = await api(url, `/api/queue/status/${rejected}?history=true`);
    return body.job.history.filter((step) => step.status === "queued").length >= 2;
  });

  // A whole group is retried; the other errors of the project are not.
  const pages = Object.fromEntries(Array.from({ length: 30 }, (_, n) => [`page-${n}`, { do: n % 3 ? "reject" : "fail" }]));
  await post(url, "/api/queue/enqueue", { projectId: "group", batchIds: Object.keys(pages), maxAttempts: 1, data: pages });
  const failed = async () => (await api(url, "/api/queue/stats?projectId=group")).body.queue.failed;
  await until("failed", async () => (await failed()) === 30);
  await api(url, "/api/projects/group", { method: "PUT", body: { paused: true } });
  await page.goto(`${url}#/failures?projectId=group`);
  const group = page.getByRole("row").filter({ hasText: "answered 502" });
  await group.getByRole("cell", { name: "10", exact: true }).first().waitFor();
  await group.getByRole("button", { name: "Retry…" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Retry 10 jobs" }).click();
  await page.locator(".badge").getByText("finished").waitFor();
  assert.equal(await failed(), 20);

  // A running job is canceled.
  await page.goto(`${url}#/jobs/${waiting}`);
  await page.locator(".facts .badge.processing").waitFor();
  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  await page.getByRole("button", { name: "Cancel it" }).click();
  await page.locator(".facts .badge.canceled").waitFor();
  assert.equal((await api(url, `/api/queue/status/${waiting}`)).body.job.status, "canceled");

  // A limit is changed, and the project paused.
  await page.goto(`${url}#/projects/p`);
  const limit = page.getByRole("row", { name: /Jobs at once/ });
  await limit.getByRole("button", { name: "Change" }).click();
  await page.getByLabel(/Limit; 0 is none/).fill("7");
  await page.getByRole("button", { name: "Set", exact: true }).click();
  await limit.getByRole("cell", { name: "7", exact: true }).waitFor();
  await page.getByRole("button", { name: "Pause" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Pause" }).click();
  await page.getByRole("button", { name: "Resume" }).waitFor();
  const { project } = (await api(url, "/api/projects/p")).body;
  assert.deepEqual([project.maxConcurrency, project.paused], [7, true]);

  // Each change is in the audit log, with its reason.
  await page.getByRole("link", { name: "Audit" }).click();
  await page.getByRole("cell", { name: "the page is there now" }).waitFor();

  // Data is shown as it was sent: a double would round this number.
  const exact = `{"projectId":"p","batchId":"exact","data":{"id":12345678901234567890}}`;
  const answer = await fetch(`${url}/api/queue/enqueue`, { method: "POST", body: exact });
  const { jobId } = await answer.json();
  await page.goto(`${url}#/jobs/${jobId}`);
  await page.getByText("12345678901234567890").waitFor();
  await page.getByText("Its project is paused.").waitFor();
});
