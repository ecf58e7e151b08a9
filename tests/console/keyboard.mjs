// The main path with the keyboard alone.

import assert from "node:assert/strict";
import { post, run } from "./browser.mjs";

await run(async ({ page, url }) => {
  const { jobId } = await post(url, "/api/queue/enqueue", { projectId: "typed", batchId: "b", data: {} });
  await page.goto(url);
  await page.getByRole("heading", { name: "Overview" }).waitFor();
  await page.keyboard.press("g");
  await page.keyboard.press("j");
  await page.getByRole("heading", { name: "Jobs" }).waitFor();
  await page.locator("tr[data-href]").first().waitFor();
  await page.keyboard.press("j");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: `Job ${jobId.slice(0, 8)}` }).waitFor();
  await page.keyboard.press("g");
  await page.keyboard.press("j");
  await page.locator("tr[data-href]").first().waitFor();
  await page.keyboard.press("/");
  assert.equal(await page.evaluate(() => document.activeElement.closest(".filters") !== null), true);
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press("Control+k");
  await page.keyboard.type(jobId);
  await page.getByRole("button", { name: `Job ${jobId}` }).waitFor();
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: `Job ${jobId.slice(0, 8)}` }).waitFor();
  await page.keyboard.press("Control+k");
  await page.keyboard.type("typ");
  await page.getByRole("button", { name: "Project typed" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "hidden" });
  await page.keyboard.press("?");
  await page.getByRole("heading", { name: "Keyboard" }).waitFor();
});
