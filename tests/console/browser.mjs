// A browser on the console of a mesh. A test fails if the page reports an error, one of its content security policy included.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

const WITHIN = 60_000;

/** Runs a scenario on the mesh at the URL of the first argument. */
export async function run(scenario) {
  const url = process.argv[2];
  const browser = await chromium.launch({
    executablePath: execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim(),
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"],
  });
  try {
    const context = await browser.newContext({ viewport: { width: 1_440, height: 900 } });
    const errors = [];
    const page = await open(context, errors);
    await scenario({ page, url, context, open: () => open(context, errors), argument: process.argv[3] });
    assert.deepEqual(errors, []);
  } finally {
    await browser.close();
  }
}

async function open(context, errors) {
  const page = await context.newPage();
  page.setDefaultTimeout(WITHIN);
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => {
    // The browser reports every answer above 399 as an error.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) errors.push(message.text());
  });
  return page;
}

/** A request of the API; its body. */
export async function api(url, path, { key, ...request } = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const body = request.body && JSON.stringify(request.body);
  const answer = await fetch(`${url}${path}`, { ...request, headers, body });
  return { status: answer.status, body: await answer.json() };
}

export async function post(url, path, body) {
  const answer = await api(url, path, { method: "POST", body });
  assert.ok(answer.status < 300, JSON.stringify(answer.body));
  return answer.body;
}

/** Waits until `check` returns something true; fails with its last value. */
export async function until(what, check) {
  const start = Date.now();
  for (;;) {
    const value = await check();
    if (value) return value;
    assert.ok(Date.now() - start < WITHIN, `not ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

/** Asserts that a page has no serious finding of axe. */
export async function checkAccessibility(page, name) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const shown = serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  assert.deepEqual(shown, [], name);
}
