// Filter a list, select all that match, count them in a dry run, and change them; other jobs stay as they are.

import assert from "node:assert/strict";
import { api, post, run, until } from "./browser.mjs";

const JOBS = 10_000;

await run(async ({ page, url }) => {
  const counts = async (project) => (await api(url, `/api/queue/stats?projectId=${project}`)).body.queue;
  const set = (project, body) => api(url, `/api/projects/${project}`, { method: "PUT", body });
  for (const [project, jobs] of [["many", JOBS], ["few", 3]]) {
    await set(project, { handler: "missing", maxAttempts: 1 });
    const batchIds = Array.from({ length: jobs }, (_, n) => `batch-${n}`);
    await post(url, "/api/queue/enqueue", { projectId: project, batchIds });
    await until(`failed in ${project}`, async () => (await counts(project)).failed === jobs);
    await set(project, { paused: true });
  }

  // The page, then all that match; the number must be typed.
  await page.goto(`${url}#/jobs?status=failed&projectId=many`);
  await page.getByLabel("Select all of this page").check();
  await page.getByText("50 jobs selected.").waitFor();
  await page.getByRole("button", { name: "Select all 10,000 that match" }).click();
  await page.getByRole("button", { name: "Retry…" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByText("10,000 jobs match now.").waitFor();
  await dialog.getByText("10,000 failed in many").waitFor();
  const confirm = dialog.getByRole("button", { name: "Retry 10,000 jobs" });
  assert.equal(await confirm.isDisabled(), true);
  assert.equal((await counts("many")).failed, JOBS, "a dry run changes nothing");
  await dialog.getByLabel(/to go on/).fill("10,000");
  await dialog.getByLabel(/Reason/).fill("the handler is there");
  await confirm.click();
  await page.getByRole("heading", { name: /^Operation / }).waitFor();
  await page.locator(".badge").getByText("finished").waitFor();
  await page.getByText("10,000 of 10,000").waitFor();
  const [many, few] = [await counts("many"), await counts("few")];
  assert.deepEqual([many.failed, many.queued, few.failed], [0, JOBS, 3]);

  // All that match, and one of them not: then only the selected ones.
  await page.goto(`${url}#/jobs?status=queued&projectId=many`);
  await page.getByLabel("Select all of this page").check();
  await page.getByRole("button", { name: "Select all 10,000 that match" }).click();
  await page.getByText("All jobs that match are selected.").waitFor();
  await page.getByLabel(/^Select job /).first().uncheck();
  await page.getByText("49 jobs selected.").waitFor();
  await page.getByRole("button", { name: "Cancel…" }).click();
  await dialog.getByText("49 jobs match now.").waitFor();
  await dialog.getByRole("button", { name: "Back" }).click();
  // A box that has the focus takes no shortcuts away.
  await page.keyboard.press("g");
  await page.keyboard.press("o");
  await page.getByRole("heading", { name: "Overview" }).waitFor();

  // Two jobs of a page.
  await page.goto(`${url}#/jobs?projectId=many&status=queued`);
  const boxes = page.getByLabel(/^Select job /);
  await boxes.nth(0).check();
  await boxes.nth(1).check();
  await page.getByText("2 jobs selected.").waitFor();
  await page.getByRole("button", { name: "Set priority…" }).click();
  const priority = dialog.getByLabel(/^Priority/);
  await priority.fill("5000");
  await dialog.getByText("It must be an integer from 0 to 1000.").waitFor();
  await priority.fill("3");
  await dialog.getByRole("button", { name: "Set priority of 2 jobs" }).click();
  await page.locator(".badge").getByText("finished").waitFor();
  const { jobs } = (await api(url, "/api/queue/jobs?projectId=many&limit=200")).body;
  assert.equal(jobs.filter(({ priority }) => priority === 3).length, 2);

  // A group of failures is muted for all projects, and opened again.
  await page.goto(`${url}#/failures`);
  await page.getByRole("button", { name: "Mute…" }).click();
  await page.getByLabel(/Reason/).fill("known");
  await dialog.getByRole("button", { name: "Mute", exact: true }).click();
  await page.getByText("No such error group was seen in this time.").waitFor();
  const { groups } = (await api(url, "/api/queue/failures?status=muted")).body;
  assert.equal(groups.length, 1);
  await page.getByLabel("Show").selectOption("muted");
  await page.getByRole("button", { name: "Open…" }).click();
  await dialog.getByRole("button", { name: "Open", exact: true }).click();
  await page.getByText("No such error group was seen in this time.").waitFor();
  await page.getByLabel("Show").selectOption("active");

  // It is retried in all its projects.
  await page.getByRole("button", { name: "Retry…" }).click();
  await dialog.getByText("3 jobs match now.").waitFor();
  await dialog.getByRole("button", { name: "Retry 3 jobs" }).click();
  await page.locator(".badge").getByText("finished").waitFor();
  assert.equal((await counts("few")).queued, 3);

  // An abort reaches the edge; this operation has finished, and is shown as running.
  const path = "**/api/queue/operations/*";
  await page.route(path, async (route) => {
    const response = await route.fetch();
    const shown = await response.json();
    shown.operation.status = "running";
    await route.fulfill({ response, json: shown });
  });
  await page.getByRole("button", { name: "Abort…" }).click();
  const answered = page.waitForResponse((response) => response.url().endsWith("/abort"));
  await dialog.getByRole("button", { name: "Abort it" }).click();
  assert.equal((await answered).status(), 200);
  // An answer may be under way.
  await page.unrouteAll({ behavior: "wait" });

  // What was done, and why; a dry run is not listed.
  await page.getByRole("link", { name: "Operations", exact: true }).click();
  await page.getByText("3 operations, the last first").waitFor();
  await page.getByRole("cell", { name: "the handler is there" }).waitFor();
});
