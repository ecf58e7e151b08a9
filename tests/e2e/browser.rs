//! Web pages in a browser: what a page of another site can do to a mesh on the same machine.

use std::net::SocketAddr;

use axum::{Router, response::Html, routing::get};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::mesh::{Mesh, PATIENCE, until};

/// How long the page may take, in ms of the browser's own time.
const PAGE_MS: u32 = 8_000;

/// A page that tries everything against the edge and shows the results.
fn page(edge: &str) -> String {
    let script = r#"
const results = {};
const attempt = (name, promise) => promise.then((it) => (results[name] = it), (e) => (results[name] = "blocked"));
const enqueue = (batch) => JSON.stringify({ projectId: "evil", batchId: batch });
const plain = { "content-type": "text/plain" };
const form = () => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.name = "frame";
  document.body.append(frame);
  const form = document.createElement("form");
  Object.assign(form, { method: "post", action: EDGE + "/api/queue/enqueue", enctype: "text/plain", target: "frame" });
  const input = document.createElement("input");
  input.name = '{"projectId":"evil","batchId":"form","data":{"x":"';
  input.value = '"}}';
  form.append(input);
  document.body.append(form);
  form.submit();
  setTimeout(() => done("sent"), 1000);
});
const events = () => new Promise((done, refused) => {
  const source = new EventSource(EDGE + "/api/queue/events?after=0.0");
  // An open stream would keep the browser waiting.
  source.onopen = () => { source.close(); done("open"); };
  source.onerror = refused;
});
const text = (answer) => answer.text();
Promise.all([
  attempt("read", fetch(EDGE + "/api/queue/stats").then(text)),
  attempt("simple post", fetch(EDGE + "/api/queue/enqueue", { method: "POST", mode: "no-cors", headers: plain, body: enqueue("simple") }).then((it) => it.type)),
  attempt("json post", fetch(EDGE + "/api/queue/enqueue", { method: "POST", headers: { "content-type": "application/json" }, body: enqueue("json") }).then(text)),
  attempt("put", fetch(EDGE + "/api/projects/evil", { method: "PUT", headers: { "content-type": "application/json" }, body: '{"weight":7}' }).then(text)),
  attempt("delete", fetch(EDGE + "/api/projects/victim/schedules/nightly", { method: "DELETE" }).then(text)),
  attempt("events", events()),
  attempt("form", form()),
]).then(() => (document.getElementById("results").textContent = JSON.stringify(results)));
"#;
    let script = script.replace("EDGE", &format!("{edge:?}"));
    format!("<!doctype html><body><pre id=results></pre><script>{script}</script></body>")
}

/// The document of a page after its scripts have run, in a browser for which each of `names` is at an
/// address of this machine.
async fn document(names: &[(&str, SocketAddr)], url: &str) -> anyhow::Result<String> {
    let profile = TempDir::new()?;
    let rules: Vec<String> =
        names.iter().map(|(name, address)| format!("MAP {name} {address}")).collect();
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    chromium.args(["--disable-extensions", "--no-first-run", "--no-proxy-server"]);
    chromium.arg(format!("--user-data-dir={}", profile.path().display()));
    chromium.arg(format!("--host-resolver-rules={}", rules.join(",")));
    chromium.arg(format!("--virtual-time-budget={PAGE_MS}")).args(["--dump-dom", url]);
    let output = tokio::time::timeout(PATIENCE, chromium.kill_on_drop(true).output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// What the page of a site at `name` achieves against the edge.
async fn attempts(mesh: &Mesh, name: &str) -> anyhow::Result<Value> {
    let edge = mesh.url("").trim_end_matches('/').to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/", get(async move || Html(page(&edge))));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let shown = document(&[(name, address)], &format!("http://{name}/")).await?;
    server.abort();
    let results = shown.split("<pre id=\"results\">").nth(1).and_then(|it| it.split('<').next());
    let results = results.unwrap_or_default().replace("&quot;", "\"").replace("&amp;", "&");
    serde_json::from_str(&results).map_err(|error| anyhow::anyhow!("{error}: {shown}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_another_site_neither_reads_nor_changes_anything() -> anyhow::Result<()> {
    let origin = "http://console.example";
    let mesh = Mesh::start_with(&[("JOBMESH_ALLOW_ORIGINS", origin)])?;
    let schedule = json!({ "cron": "0 0 1 1 *" }).to_string();
    let path = "/api/projects/victim/schedules/nightly";
    assert_eq!(mesh.put_raw(path, schedule.clone()).await?.0, 200);
    let foreign = attempts(&mesh, "evil.example").await?;
    for (attempt, result) in foreign.as_object().into_iter().flatten() {
        // The browser does not tell the page what became of a form.
        let expected = if attempt == "form" { "sent" } else { "blocked" };
        assert_eq!(result, expected, "{attempt}: {foreign}");
    }
    assert_eq!(foreign.as_object().map(serde_json::Map::len), Some(7), "{foreign}");
    assert_eq!(mesh.counts("evil").await?["totalJobs"], 0, "nothing was enqueued");
    assert_eq!(mesh.get("/api/projects/evil").await?.1["project"]["weight"], 1);
    assert_eq!(mesh.get(path).await?.0, 200, "the schedule is still there");
    // A site whose name was pointed at the edge: the browser takes the edge for that site.
    let address: SocketAddr =
        mesh.url("").trim_start_matches("http://").trim_end_matches('/').parse()?;
    for path in ["api/queue/stats", "api/queue/events?after=0.0", "openapi.json", "docs/"] {
        let url = format!("http://rebound.example:{}/{path}", address.port());
        let shown = document(&[("rebound.example", address)], &url).await?;
        assert!(shown.contains("host_not_allowed"), "{path}: {shown}");
    }
    // The site that an operator allows.
    let allowed = attempts(&mesh, "console.example").await?;
    for attempt in ["read", "json post", "put"] {
        let answer = allowed[attempt].as_str().unwrap_or_default();
        assert!(answer.contains("\"success\":true"), "{attempt}: {allowed}");
    }
    assert_eq!(allowed["events"], "open", "{allowed}");
    until("enqueued", async || {
        let counts = mesh.counts("evil").await?;
        Ok(if counts["totalJobs"] == 1 { Ok(()) } else { Err(counts.to_string()) })
    })
    .await
}
