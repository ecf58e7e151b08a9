// Every view at two widths and in both color schemes: a screenshot, no finding of axe, nothing wider than the window.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { api, checkAccessibility, post, run, until } from "./browser.mjs";

await run(async ({ page, url, argument: folder }) => {
  mkdirSync(folder, { recursive: true });
  const data = { a: { do: "done" }, b: { do: "reject" }, c: { do: "wait", nested: [1, { x: "y" }] } };
  // The receiver does not exist: deliveries stay pending.
  const webhook = { url: "https://example.invalid/", secret: `whsec_${"A".repeat(43)}=` };
  assert.equal((await api(url, "/api/projects/a-project", { method: "PUT", body: { webhook } })).status, 200);
  const enqueued = await post(url, "/api/queue/enqueue", { projectId: "a-project", batchIds: Object.keys(data), data });
  const schedule = { method: "PUT", body: { cron: "0 4 * * 1-5", timeZone: "Europe/Berlin" } };
  assert.equal((await api(url, "/api/projects/a-project/schedules/nightly", schedule)).status, 200);
  await until("in ClickHouse", async () => (await api(url, "/api/queue/failures")).body.groups?.length === 1);
  const cancel = { action: "cancel", filter: { projectId: "a-project", status: "queued" }, reason: "a trial" };
  const { operationId } = (await post(url, "/api/queue/operations", cancel)).operation;
  const job = (n) => `jobs/${enqueued.jobIds[n]}`;
  const title = (n) => `Job ${enqueued.jobIds[n].slice(0, 8)}`;
  const views = {
    overview: ["", "Overview"],
    jobs: ["jobs", "Jobs"],
    job: [job(1), title(1)],
    running: [job(2), title(2)],
    failures: ["failures", "Failures"],
    operations: ["operations", "Operations"],
    operation: [`operations/${operationId}`, `Operation ${operationId.slice(0, 8)}`],
    projects: ["projects", "Projects"],
    project: ["projects/a-project?deliveries=pending", "Project a-project"],
    analytics: ["analytics?groupBy=model&hours=1", "Analytics"],
    processors: ["processors", "Processors"],
    audit: ["audit", "Audit"],
    keys: ["keys", "API keys"],
    "empty-list": ["jobs?status=canceled", "Jobs"],
  };
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    for (const width of [360, 1_440]) {
      await page.setViewportSize({ width, height: 900 });
      for (const [name, [path, heading]] of Object.entries(views)) {
        await page.goto(`${url}#/${path}`);
        await page.getByRole("heading", { level: 1, name: heading, exact: true }).waitFor();
        await until("loaded", async () => (await page.locator(".loading").count()) === 0);
        await page.screenshot({ path: `${folder}/${name}-${width}-${colorScheme}.png`, fullPage: true });
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(overflow <= 0, `${name} is ${overflow} px wider than ${width}`);
        await checkAccessibility(page, `${name} ${width} ${colorScheme}`);
        const problems = page.locator(".problem").filter({ hasNotText: "The last delivery failed" });
        assert.equal(await problems.count(), 0, name);
      }
      await page.goto(`${url}#/jobs?status=failed`);
      await page.getByLabel("Select all of this page").check();
      await page.getByRole("button", { name: "Retry…" }).click();
      await page.getByText("1 job matches now.").waitFor();
      await page.screenshot({ path: `${folder}/dialog-${width}-${colorScheme}.png` });
      await checkAccessibility(page, `dialog ${width} ${colorScheme}`);
      // The dialog returns the focus.
      await page.getByRole("button", { name: "Back" }).click();
      assert.match(await page.evaluate(() => document.activeElement.textContent), /Retry/);
    }
  }
});
