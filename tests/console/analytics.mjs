// The console shows the numbers of the API and of SQL. The argument has those of SQL, as JSON.

import assert from "node:assert/strict";
import { api, run } from "./browser.mjs";

await run(async ({ page, url, argument }) => {
  const expected = JSON.parse(argument);
  const { analytics } = (await api(url, "/api/queue/analytics?groupBy=project")).body;
  const sums = analytics.totals.map(({ group, jobs, completed, failed, inputTokens }) => [
    group, jobs, completed, failed, inputTokens,
  ]);
  assert.deepEqual(sums, expected);
  await page.goto(`${url}#/analytics?groupBy=project&hours=24`);
  await page.getByRole("cell", { name: expected[0][0], exact: true }).waitFor();
  const names = await page.locator(".panel:has-text('Totals') thead th").allTextContents();
  const column = (name) => names.indexOf(name);
  for (const [group, jobs, completed, failed, tokens] of expected) {
    const row = page.locator("tbody tr").filter({ has: page.getByRole("cell", { name: group, exact: true }) });
    const cells = await row.getByRole("cell").allTextContents();
    const shown = ["Jobs", "Completed", "Failed", "Tokens in"].map((name) => cells[column(name)]);
    assert.deepEqual(shown, [jobs, completed, failed, tokens].map(String), group);
  }
  // The table under the chart has the same jobs.
  await page.getByText("Table: Jobs that ended").click();
  const cells = await page.locator("figure td.number").allTextContents();
  const jobs = cells.reduce((sum, cell) => sum + (Number(cell) || 0), 0);
  assert.equal(jobs, expected.reduce((sum, row) => sum + row[1], 0));
  const download = page.waitForEvent("download");
  await page.getByRole("button", { name: "CSV" }).click();
  const stream = await (await download).createReadStream();
  let csv = "";
  for await (const chunk of stream) csv += chunk;
  const lines = csv.trim().split("\r\n");
  assert.ok(lines[0].startsWith("start,group,jobs"), csv);
  assert.equal(lines.length - 1, analytics.rows.length, csv);
});
