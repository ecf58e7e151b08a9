//! API keys: what each may do at each endpoint of the API document.

use std::collections::BTreeMap;

use reqwest::{Client, Method, header::HeaderMap};
use serde_json::{Value, json};

use crate::mesh::{Mesh, PATIENCE, until};

/// The endpoints that need no key.
const OPEN: [&str; 3] = ["/livez", "/healthz", "/readyz"];

/// What a key with `metadataOnly` cannot see.
const HIDDEN_FROM_METADATA: [&str; 4] = [
    "/api/queue/jobs/{jobId}/result",
    "/api/queue/events",
    "/api/projects/{projectId}/schedules",
    "/api/projects/{projectId}/schedules/{name}",
];

/// What concerns all projects: a key for some of them cannot see it.
const OF_ALL_PROJECTS: [&str; 3] = ["/api/processors", "/api/tasks", "/api/queue/scale"];
/// What shows each key what it is for.
const LISTS: [&str; 3] = ["/api/projects", "/api/access", "/api/queue/operations"];

/// A request of the matrix.
struct Route {
    method: Method,
    /// The path in the document.
    template: String,
    path: String,
    body: Option<Value>,
    /// The smallest scope that may make it.
    scope: &'static str,
    /// True if it is about one project.
    is_of_project: bool,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    /// Its JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// What a client can compare: without what differs between any two answers.
    fn shown(&self, names: &[&str]) -> (u16, BTreeMap<String, String>, String) {
        let headers = self.headers.iter().filter(|(name, _)| {
            !["date", "x-request-id", "content-length"].contains(&name.as_str())
        });
        let text = |value: &reqwest::header::HeaderValue| value.to_str().unwrap_or("?").to_owned();
        let headers = headers.map(|(name, value)| (name.to_string(), text(value))).collect();
        let body = names.iter().fold(self.body.clone(), |body, name| body.replace(name, "…"));
        (self.status, headers, body)
    }
}

/// Makes a request of a mesh.
pub async fn ask(
    mesh: &Mesh,
    method: &Method,
    path: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    ask_at(mesh.url(path), method, key, body).await
}

/// Makes a request of a URL.
pub async fn ask_at(
    url: String,
    method: &Method,
    key: Option<&str>,
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    let client = Client::builder().no_proxy().build()?;
    let mut request = client.request(method.clone(), url).timeout(PATIENCE);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let answer = request.send().await?;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    // A stream of events does not end.
    let is_stream = headers.get("content-type").is_some_and(|it| it == "text/event-stream");
    let body = if is_stream { String::new() } else { answer.text().await? };
    Ok(Answer { status, headers, body })
}

/// Makes a key; returns its id and its text.
pub async fn create(
    mesh: &Mesh,
    admin: Option<&str>,
    new: Value,
) -> anyhow::Result<(String, String)> {
    let answer = ask(mesh, &Method::POST, "/api/keys", admin, Some(&new)).await?;
    anyhow::ensure!(answer.status == 200, "{new}: {answer:?}");
    let answer = answer.json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&answer["key"]["id"]), text(&answer["secret"])))
}

/// The requests of the API document, about the project `own`.
fn routes(document: &Value, job: &str, key: &str, operation: &str) -> anyhow::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for (template, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, endpoint) in methods.as_object().into_iter().flatten() {
            let method: Method = method.to_uppercase().parse()?;
            let body = match (method.as_str(), template.as_str()) {
                ("GET" | "DELETE", _) => None,
                (_, "/api/queue/enqueue") => Some(json!({ "projectId": "own", "batchId": "m" })),
                (_, "/api/queue/redo") => Some(json!({ "projectId": "own", "batchId": "m",
                    "rowIndex": 1, "redoColumnIds": ["c"], "croppedImageIds": {} })),
                (_, "/api/queue/cancel") => {
                    Some(json!({ "projectId": "own", "batchIds": ["none"] }))
                }
                (_, "/api/queue/retry") => Some(json!({ "projectId": "own", "retryAll": true })),
                (_, "/api/projects/{projectId}/deliveries/retry") => Some(json!({})),
                ("PATCH", "/api/queue/failures/{errorGroup}") => Some(json!({ "status": "muted" })),
                ("PATCH", _) => Some(json!({ "priority": 3 })),
                (_, "/api/queue/operations") => Some(json!({ "action": "cancel",
                    "filter": { "projectId": "own", "batchId": "none" } })),
                (_, "/api/queue/operations/{operationId}/abort") => None,
                (_, "/api/projects/{projectId}") => Some(json!({ "weight": 2 })),
                (_, "/api/projects/{projectId}/schedules/{name}") => {
                    Some(json!({ "cron": "0 0 1 1 *" }))
                }
                (_, "/api/keys") => Some(json!({ "name": "made", "scope": "read" })),
                (_, "/api/keys/{keyId}/rotate") => Some(json!({})),
                (_, "/api/tickets") => None,
                (_, other) => anyhow::bail!("{method} {other} is new: add it to this test"),
            };
            let parameters = endpoint["parameters"].as_array().cloned().unwrap_or_default();
            let is_query =
                |name: &str| parameters.iter().any(|it| it["name"] == name && it["in"] == "query");
            let mut path = template
                .replace("{projectId}", "own")
                .replace("{batchId}", "b")
                .replace("{jobId}", job)
                .replace("{errorGroup}", "00000000000000ab")
                .replace("{keyId}", key)
                .replace("{operationId}", operation)
                .replace("{name}", "nightly");
            if is_query("projectId") {
                path.push_str("?projectId=own");
            }
            let scope = match (method.as_str(), template.as_str()) {
                (_, "/api/audit") => "admin",
                (_, keys) if keys.starts_with("/api/keys") => "admin",
                (_, "/api/queue/enqueue" | "/api/queue/redo") => "enqueue",
                ("GET", _) | (_, "/api/tickets") => "read",
                _ => "manage",
            };
            let template_is = |listed: &[&str]| listed.contains(&template.as_str());
            let is_general = template_is(&OPEN)
                || method == Method::GET && template_is(&LISTS)
                || template == "/api/tickets";
            let is_of_project = scope != "admin" && !is_general;
            let template = template.clone();
            routes.push(Route { method, template, path, body, scope, is_of_project });
        }
    }
    anyhow::ensure!(routes.len() >= 20, "the document has {} routes", routes.len());
    Ok(routes)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_may_do_at_each_endpoint_what_its_scope_says() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let job =
        mesh.post("/api/queue/enqueue", json!({ "projectId": "own", "batchId": "b" })).await?;
    let job = job["jobId"].as_str().expect("jobId").to_owned();
    let filter = json!({ "projectId": "own", "batchId": "none" });
    let operation =
        mesh.post("/api/queue/operations", json!({ "action": "cancel", "filter": filter })).await?;
    let operation = operation["operation"]["operationId"].as_str().expect("its id").to_owned();
    let (status, document) = mesh.get("/openapi.json").await?;
    assert_eq!(status, 200);
    // The first key is an admin's: others could lock everybody out.
    let first = json!({ "name": "first", "scope": "read" });
    let refused = ask(&mesh, &Method::POST, "/api/keys", None, Some(&first)).await?;
    assert_eq!((refused.status, &refused.json()["code"]), (400, &json!("invalid_field")));
    let (_, admin) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    until("in force", async || {
        let answer = ask(&mesh, &Method::GET, "/api/queue/stats", None, None).await?;
        Ok(if answer.status == 401 { Ok(()) } else { Err(format!("{answer:?}")) })
    })
    .await?;
    let make = async |new: Value| create(&mesh, Some(&admin), new).await;
    let own = json!(["own", "third"]);
    let key = |scope: &str| json!({ "name": scope, "scope": scope, "projects": own });
    let metadata =
        json!({ "name": "metadata", "scope": "read", "projects": own, "metadataOnly": true });
    let other = json!({ "name": "other", "scope": "manage", "projects": ["other"] });
    let soon = json!({ "name": "soon", "scope": "manage", "expiresIn": "1s" });
    let (revoked_id, revoked) = make(key("manage")).await?;
    let (_, expired) = make(soon).await?;
    let path = format!("/api/keys/{revoked_id}");
    let answer = ask(&mesh, &Method::DELETE, &path, Some(&admin), None).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut unknown = revoked.clone();
    unknown.replace_range(3..15, "000000000000");
    let keys: Vec<(&str, Option<String>)> = vec![
        ("no key", None),
        ("malformed", Some("jm_nonsense".into())),
        ("wrong check", Some(unknown)),
        ("revoked", Some(revoked)),
        ("expired", Some(expired.clone())),
        ("other", Some(make(other).await?.1)),
        ("read", Some(make(key("read")).await?.1)),
        ("metadata", Some(make(metadata).await?.1)),
        ("enqueue", Some(make(key("enqueue")).await?.1)),
        ("manage", Some(make(key("manage")).await?.1)),
        ("admin", Some(admin.clone())),
    ];
    until("expired", async || {
        let answer = ask(&mesh, &Method::GET, "/api/queue/stats", Some(&expired), None).await?;
        Ok(if answer.status == 401 { Ok(()) } else { Err(format!("{answer:?}")) })
    })
    .await?;
    let scopes = ["read", "enqueue", "manage", "admin"];
    let rank = |scope: &str| scopes.iter().position(|it| *it == scope);
    let mut violations = Vec::new();
    let mut cells = 0;
    let (spare, _) = make(json!({ "name": "spare", "scope": "read" })).await?;
    for route in routes(&document, &job, &spare, &operation)? {
        for (name, text) in &keys {
            let (method, path) = (&route.method, &route.path);
            let answer = ask(&mesh, method, path, text.as_deref(), route.body.as_ref()).await?;
            let scope = match *name {
                "metadata" => "read",
                "other" => "manage",
                name => name,
            };
            let is_hidden = *name == "metadata"
                && route.method == Method::GET
                && HIDDEN_FROM_METADATA.contains(&route.template.as_str());
            let concerns_all =
                *name != "admin" && OF_ALL_PROJECTS.contains(&route.template.as_str());
            let expected = if OPEN.contains(&route.template.as_str()) {
                "open"
            } else if rank(scope).is_none() {
                "401"
            } else if rank(scope) < rank(route.scope) || is_hidden || concerns_all {
                "403"
            } else if *name == "other" && route.is_of_project {
                "404"
            } else {
                "allowed"
            };
            let code = answer.json()["code"].clone();
            let is_right = match expected {
                "401" => answer.status == 401 && answer.headers.contains_key("www-authenticate"),
                "403" => answer.status == 403 && code == "forbidden",
                "404" => {
                    let codes = ["project_not_found", "job_not_found", "operation_not_found"];
                    answer.status == 404 && codes.iter().any(|known| code == *known)
                }
                _ => ![401, 403].contains(&answer.status) && code != "project_not_found",
            };
            cells += 1;
            if !is_right {
                violations.push(format!(
                    "{method} {path} with {name}: {} {code}, not {expected}",
                    answer.status
                ));
            }
        }
    }
    // What a project may use of the mesh is for admins.
    for (key, expected) in [(&keys[9].1, 403), (&keys[10].1, 200)] {
        let limit = json!({ "maxActiveJobs": 1_000 });
        let path = "/api/projects/own";
        let answer = ask(&mesh, &Method::PUT, path, key.as_deref(), Some(&limit)).await?;
        assert_eq!(answer.status, expected, "{answer:?}");
    }
    println!("{cells} cells");
    assert!(violations.is_empty(), "{violations:#?}");
    // Without a project, a mark is for all, and the key is not.
    let mark = ("/api/queue/failures/00000000000000ab", json!({ "status": "muted" }));
    let answer = ask(&mesh, &Method::PATCH, mark.0, keys[9].1.as_deref(), Some(&mark.1)).await?;
    assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("missing_field")));
    hidden_is_like_missing(&mesh, keys[5].1.as_deref(), &job).await
}

/// Another project's things look like things that do not exist.
async fn hidden_is_like_missing(mesh: &Mesh, other: Option<&str>, job: &str) -> anyhow::Result<()> {
    let nothing = "00000000-0000-7000-8000-000000000000";
    for (hidden, missing) in [
        (format!("/api/queue/status/{job}"), format!("/api/queue/status/{nothing}")),
        (format!("/api/queue/jobs/{job}/result"), format!("/api/queue/jobs/{nothing}/result")),
        ("/api/queue/stats?projectId=own".into(), "/api/queue/stats?projectId=none".into()),
        ("/api/queue/metrics?projectId=own".into(), "/api/queue/metrics?projectId=none".into()),
        ("/api/queue/jobs?projectId=own".into(), "/api/queue/jobs?projectId=none".into()),
        ("/api/queue/failures?projectId=own".into(), "/api/queue/failures?projectId=none".into()),
        ("/api/queue/analytics?projectId=own".into(), "/api/queue/analytics?projectId=none".into()),
        ("/api/queue/events?projectId=own".into(), "/api/queue/events?projectId=none".into()),
        ("/api/queue/batches/b?projectId=own".into(), "/api/queue/batches/b?projectId=none".into()),
        ("/api/projects/own".into(), "/api/projects/none".into()),
        ("/api/projects/own/schedules".into(), "/api/projects/none/schedules".into()),
        (
            "/api/projects/own/schedules/nightly".into(),
            "/api/projects/none/schedules/nightly".into(),
        ),
    ] {
        let hidden = ask(mesh, &Method::GET, &hidden, other, None).await?;
        let missing = ask(mesh, &Method::GET, &missing, other, None).await?;
        let names = [job, nothing, "\\\"own\\\"", "\\\"none\\\""];
        assert_eq!(hidden.shown(&names), missing.shown(&names));
        assert_eq!(hidden.status, 404, "{hidden:?}");
    }
    Ok(())
}
