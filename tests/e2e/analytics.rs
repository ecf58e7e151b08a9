//! Sums over any time and groups of errors, compared with SQL of the test's own.

use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::sql,
    keys::{ask, create},
    mesh::{Mesh, until},
    receiver::Receiver,
    services::program,
};

/// A mesh in which jobs of two projects have completed and failed.
pub async fn ended(receiver: &Receiver) -> anyhow::Result<Mesh> {
    let mesh = receiver.mesh(&[("JOBMESH_MAX_ATTEMPTS", "2")])?;
    for (project, kinds) in
        [("one", ["done", "done", "done", "reject"]), ("two", ["done", "fail", "reject", "reject"])]
    {
        let batches: Vec<String> = (0..4).map(|n| format!("b{n}")).collect();
        let data: serde_json::Map<String, Value> = batches
            .iter()
            .zip(kinds)
            .map(|(batch, kind)| (batch.clone(), json!({ "do": kind })))
            .collect();
        let body = json!({ "projectId": project, "batchIds": batches, "data": data });
        mesh.post("/api/queue/enqueue", body).await?;
    }
    until("in ClickHouse", async || {
        let mut found = Vec::new();
        for sums in [
            "count() FROM job_runs",
            "sum(runs) FROM failures_by_hour",
            "sum(runs) FROM runs_by_group_hour WHERE dimension = 'all'",
        ] {
            found.push(mesh.sql(&format!("SELECT {sums}")).await?);
        }
        Ok(if found == ["9", "5", "9"] { Ok(()) } else { Err(found.join(", ")) })
    })
    .await?;
    Ok(mesh)
}

async fn get(mesh: &Mesh, path: &str) -> anyhow::Result<Value> {
    let (status, answer) = mesh.get(path).await?;
    anyhow::ensure!(status == 200, "{path}: {answer}");
    Ok(answer)
}

/// Some fields of each item of a list.
fn fields(items: &Value, names: &[&str]) -> Value {
    let items = items.as_array().unwrap().iter();
    items.map(|item| names.iter().map(|name| item[name].clone()).collect::<Value>()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn analytics_sum_up_as_sql_does_in_each_bucket_and_group() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = ended(&receiver).await?;
    let counts = ["jobs", "completed", "failed", "retries", "runs"];
    for bucket in ["minute", "hour", "day", "week"] {
        let path = format!("/api/queue/analytics?bucket={bucket}");
        let analytics = &get(&mesh, &path).await?["analytics"];
        assert_eq!(fields(&analytics["totals"], &counts), json!([[8, 4, 4, 1, 9]]), "{bucket}");
        let tokens = fields(&analytics["totals"], &["inputTokens", "outputTokens", "wastedTokens"]);
        assert_eq!(tokens, json!([[40, 12, 0]]));
        let sum: u64 = analytics["rows"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|row| row["jobs"].as_u64())
            .sum();
        assert_eq!(sum, 8, "{analytics}");
        let buckets = analytics["buckets"].as_array().unwrap();
        for row in analytics["rows"].as_array().unwrap() {
            assert!(buckets.contains(&row["start"]), "{bucket}: {row} is in no bucket");
        }
        let sql = "SELECT max(duration_ms) FROM job_runs WHERE ran";
        let longest: f64 = mesh.sql(sql).await?.parse()?;
        let duration = &analytics["totals"][0]["duration"];
        let [avg, p50, p99] = ["avg", "p50", "p99"].map(|it| duration[it].as_f64().unwrap());
        assert!(p50 <= p99 && p99 <= longest && avg <= longest, "{duration} of {longest}");
        assert!(analytics["totals"][0]["wait"]["p95"].as_f64().unwrap() > 0.0, "{analytics}");
    }
    let grouped = async |query: &str| -> anyhow::Result<Value> {
        let path = format!("/api/queue/analytics?{query}");
        let analytics = get(&mesh, &path).await?["analytics"].clone();
        Ok(fields(&analytics["totals"], &["group", "jobs", "completed", "failed"]))
    };
    let by_project = json!([["one", 4, 3, 1], ["two", 4, 1, 3]]);
    assert_eq!(grouped("groupBy=project").await?, by_project);
    assert_eq!(grouped("groupBy=project&bucket=minute").await?, by_project);
    assert_eq!(grouped("groupBy=project&projectId=two").await?, json!([["two", 4, 1, 3]]));
    let by_model = json!([["", 4, 0, 4], ["small", 4, 4, 0]]);
    assert_eq!(grouped("groupBy=model").await?, by_model);
    assert_eq!(grouped("groupBy=type").await?, json!([["process_batch", 8, 4, 4]]));
    let by_outcome = json!([["completed", 4, 4, 0], ["failed", 4, 0, 4], ["retry", 0, 0, 0]]);
    assert_eq!(grouped("groupBy=outcome").await?, by_outcome);
    let others = grouped("groupBy=project&groups=1").await?;
    assert_eq!(others, json!([["one", 4, 3, 1], ["other", 4, 1, 3]]));
    // A time zone that is not whole hours off is summed from the runs.
    assert_eq!(grouped("timeZone=asia/kolkata&bucket=day").await?, json!([[null, 8, 4, 4]]));
    let before = "from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z";
    assert_eq!(grouped(before).await?, json!([[null, 0, 0, 0]]));
    let csv = reqwest::get(mesh.url("/api/queue/analytics?groupBy=project&format=csv")).await?;
    assert_eq!(csv.headers()["content-type"], "text/csv; charset=utf-8");
    let csv = csv.text().await?;
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].starts_with("start,group,jobs,completed"), "{csv}");
    assert!(lines[1].contains(",one,4,3,1,0,"), "{csv}");
    for (query, names) in [
        ("bucket=year", "bucket"),
        ("groupBy=odd", "groupBy"),
        ("timeZone=Mars/Base", "timeZone"),
        ("groups=0", "groups"),
        ("format=xml", "format"),
        ("bucket=minute&from=2026-01-01T00:00:00Z", "buckets"),
        ("bucket=minute&groupBy=model&groups=100", "rows"),
        ("from=2999-01-01T00:00:00Z", "to must be after from"),
    ] {
        let (status, answer) = mesh.get(&format!("/api/queue/analytics?{query}")).await?;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(names), "{query}: {answer}");
    }
    Ok(())
}

/// Sums by group are read from their own table as far as it is whole, else from the runs: a mesh of an earlier version, or
/// an older backup, has no sums by group of its first hours.
#[tokio::test(flavor = "multi_thread")]
async fn sums_by_group_are_the_same_from_each_table() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = ended(&receiver).await?;
    let all = [
        "group",
        "jobs",
        "completed",
        "failed",
        "canceled",
        "runs",
        "retries",
        "duration",
        "wait",
        "inputTokens",
        "outputTokens",
        "wastedTokens",
        "successRate",
    ];
    let groups = ["", "project", "model", "type", "outcome", "errorGroup", "processor"];
    let sums = async |bucket: &str| -> anyhow::Result<Vec<Value>> {
        let mut found = Vec::new();
        for group in groups {
            let group = if group.is_empty() { String::new() } else { format!("&groupBy={group}") };
            let path = format!("/api/queue/analytics?bucket={bucket}{group}");
            let analytics = get(&mesh, &path).await?["analytics"].clone();
            found.push(fields(&analytics["totals"], &all));
        }
        Ok(found)
    };
    let from_runs = sums("minute").await?;
    assert_eq!(from_runs[4].as_array().map(Vec::len), Some(3), "{}", from_runs[4]);
    assert_eq!(sums("hour").await?, from_runs);
    // Without the runs, only sums can answer.
    let hidden =
        "ALTER TABLE jobmesh.job_runs DELETE WHERE project = 'two' SETTINGS mutations_sync = 2";
    mesh.write_sql(hidden).await?;
    // The same question within a second gets the same answer.
    until("from the runs that are left: completed and failed", async || {
        let found = sums("minute").await?.swap_remove(4);
        Ok(if found.as_array().map(Vec::len) == Some(2) { Ok(()) } else { Err(found.to_string()) })
    })
    .await?;
    assert_eq!(sums("day").await?, from_runs, "from sums alone");
    // A table that begins later than the sums by hour.
    mesh.write_sql("TRUNCATE TABLE jobmesh.runs_by_group_hour").await?;
    mesh.signal("metrics", libc::SIGKILL)?;
    until("from the tables that have all", async || {
        let (status, answer) = mesh.get("/api/queue/analytics?bucket=day&groupBy=model").await?;
        let is_same = || fields(&answer["analytics"]["totals"], &all) == from_runs[2];
        Ok(if status == 200 && is_same() { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    assert_eq!(sums("hour").await?[4], sums("minute").await?[4], "from the runs");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_grouped_by_what_their_errors_have_in_common() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = ended(&receiver).await?;
    let answer = get(&mesh, "/api/queue/failures?sort=jobs").await?;
    let groups = &answer["groups"];
    let shown = fields(groups, &["pattern", "jobs", "runs"]);
    let expected = json!([
        ["answered 422 Unprocessable Entity: no such page", 3, 3],
        ["answered 502 Bad Gateway: try later", 1, 2],
    ]);
    assert_eq!(shown, expected, "{answer}");
    let rejected = &groups[0];
    assert!(!rejected["sampleJobs"].as_array().unwrap().is_empty(), "{rejected}");
    assert_eq!(rejected["projects"].as_array().map(Vec::len), Some(2));
    let hours = rejected["hours"].as_array().unwrap().iter();
    assert_eq!(hours.map(|hour| hour["runs"].as_u64()).sum::<Option<u64>>(), Some(3));
    let group = rejected["errorGroup"].as_str().unwrap();
    let jobs = get(&mesh, &format!("/api/queue/jobs?errorGroup={group}")).await?;
    assert_eq!(
        fields(&jobs["jobs"], &["status", "error"]),
        json!(vec![json!(["failed", "answered 422 Unprocessable Entity: no such page"]); 3])
    );
    let of_two = get(&mesh, "/api/queue/failures?projectId=two&limit=1&sort=jobs").await?;
    assert_eq!(fields(&of_two["groups"], &["errorGroup", "jobs"]), json!([[group, 2]]));
    assert_eq!(of_two["nextCursor"], "1");
    let next = get(&mesh, "/api/queue/failures?projectId=two&limit=1&sort=jobs&cursor=1").await?;
    assert_eq!(fields(&next["groups"], &["jobs", "runs"]), json!([[1, 2]]));
    let path = format!("/api/queue/analytics?errorGroup={group}&groupBy=errorGroup");
    let analytics = &get(&mesh, &path).await?["analytics"];
    assert_eq!(fields(&analytics["totals"], &["group", "failed"]), json!([[group, 3]]));
    let none = get(&mesh, "/api/queue/failures?to=2026-01-01T00:00:00Z").await?;
    assert_eq!(none["groups"], json!([]));
    key_sees_its_project_alone(&mesh).await
}

/// Marks hide a group from the active ones until it is opened or, if it was resolved, seen again.
#[tokio::test(flavor = "multi_thread")]
async fn error_groups_are_muted_resolved_and_reopened() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let fail = async |hour: u32, project: &str| {
        let sql = format!(
            "INSERT INTO job_runs (sequence, idx, at, project, batch, job, type, class, run, attempt, outcome, final, ran, error, error_group)
            SELECT 0, {hour}, now64(3) - toIntervalHour({hour}), '{project}', 'b', generateUUIDv4(), 'process_batch', 'normal', 1, 1, 'failed',
                1, 1, 'no', 171"
        );
        mesh.write_sql(&sql).await
    };
    fail(2, "one").await?;
    let group = "00000000000000ab";
    let mark = async |query: &str, status: &str| {
        let path = format!("/api/queue/failures/{group}{query}");
        let body = json!({ "status": status });
        ask(&mesh, &Method::PATCH, &path, None, Some(&body)).await.map(|answer| answer.status)
    };
    let statuses = async |query: &str| {
        let answer = get(&mesh, &format!("/api/queue/failures{query}")).await?;
        let groups = answer["groups"].as_array().cloned().unwrap_or_default();
        let statuses = groups.iter().filter_map(|group| group["status"].as_str());
        anyhow::Ok(statuses.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(statuses("?status=active").await?, "open");
    assert_eq!(mark("", "closed").await?, 400);
    assert_eq!(mark("", "resolved").await?, 200);
    assert_eq!(statuses("?status=active").await?, "");
    assert_eq!(statuses("?status=resolved").await?, "resolved");
    assert_eq!(statuses("?projectId=one").await?, "resolved");
    // A project opens what is resolved for all.
    assert_eq!(mark("?projectId=one", "open").await?, 200);
    assert_eq!(statuses("?projectId=one&status=active").await?, "open");
    assert_eq!(statuses("").await?, "resolved");
    // It is seen again.
    fail(0, "two").await?;
    // Answers of the last second are given again: metrics does not know of this row.
    until("reopened", async || {
        let active = statuses("?status=active").await?;
        Ok(if active == "reopened" { Ok(()) } else { Err(active) })
    })
    .await?;
    assert_eq!(mark("", "muted").await?, 200);
    fail(0, "three").await?;
    assert_eq!(statuses("?status=active").await?, "");
    assert_eq!(statuses("?status=muted").await?, "muted");
    // The later mark counts.
    assert_eq!(statuses("?projectId=one").await?, "muted");
    assert_eq!(mark("", "open").await?, 200);
    assert_eq!(statuses("").await?, "open");
    assert_eq!(statuses("?status=muted").await?, "");
    Ok(())
}

/// A key for one project gets sums and failures of that project, without naming it.
async fn key_sees_its_project_alone(mesh: &Mesh) -> anyhow::Result<()> {
    let (_, admin) = create(mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    let own = json!({ "name": "own", "scope": "read", "projects": ["two", "two"] });
    let (_, own) = create(mesh, Some(&admin), own).await?;
    let list = async |path: &str| -> anyhow::Result<Value> {
        let answer = ask(mesh, &Method::GET, path, Some(&own), None).await?;
        anyhow::ensure!(answer.status == 200, "{path}: {answer:?}");
        Ok(answer.json())
    };
    until("in force", async || {
        let (status, answer) = mesh.get("/api/queue/failures").await?;
        Ok(if status == 401 { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    for bucket in ["minute", "hour"] {
        let path = format!("/api/queue/analytics?groupBy=project&bucket={bucket}");
        let totals = &list(&path).await?["analytics"]["totals"];
        assert_eq!(fields(totals, &["group", "jobs"]), json!([["two", 4]]));
    }
    let failures = list("/api/queue/failures?sort=jobs").await?;
    let expected = json!([[["two"], 2], [["two"], 1]]);
    assert_eq!(fields(&failures["groups"], &["projects", "jobs"]), expected, "{failures}");
    Ok(())
}

/// The tables of the first version, as operators may have them.
const FIRST_SCHEMA: &str = include_str!("../../deploy/clickhouse/schema/0001_runs.sql");

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_an_earlier_version_are_upgraded_and_keep_their_rows() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    let url = mesh.writer_url()?;
    // What the first version left behind: one run.
    let tables = sql(&url, "SELECT name FROM system.tables WHERE database = 'jobmesh'").await?;
    for table in tables.lines() {
        sql(&url, &format!("DROP TABLE `{table}`")).await?;
    }
    let lines = FIRST_SCHEMA.lines().filter(|line| !line.starts_with("--"));
    let schema = lines.collect::<Vec<_>>().join("\n");
    for statement in schema.split(';').filter(|text| !text.trim().is_empty()) {
        sql(&url, statement).await?;
    }
    let row = "INSERT INTO job_runs (at, project, type, outcome, final, ran, duration_ms)
        SELECT now(), 'old', 'process_batch', 'completed', 1, 1, 40";
    sql(&url, row).await?;
    mesh.signal("metrics", libc::SIGKILL)?;
    until("upgraded", async || {
        let version = sql(&url, "SELECT max(version) FROM schema_versions").await?;
        Ok(if version == "4" { Ok(()) } else { Err(version) })
    })
    .await?;
    let enqueue = json!({ "projectId": "new", "batchId": "b", "data": { "do": "reject" } });
    mesh.post("/api/queue/enqueue", enqueue).await?;
    until("summed", async || {
        let answer = get(&mesh, "/api/queue/analytics?groupBy=project").await?;
        let totals = fields(&answer["analytics"]["totals"], &["group", "completed", "failed"]);
        let is_summed = totals == json!([["new", 0, 1], ["old", 1, 0]]);
        Ok(if is_summed { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    until("grouped", async || {
        let answer = get(&mesh, "/api/queue/failures").await?;
        let is_grouped = fields(&answer["groups"], &["jobs"]) == json!([[1]]);
        Ok(if is_grouped { Ok(()) } else { Err(answer.to_string()) })
    })
    .await
}

/// deploy/clickhouse/users.sql, which the engine of `dev` parses but cannot run: it has no access management.
#[tokio::test(flavor = "multi_thread")]
async fn users_for_a_server_are_sql() -> anyhow::Result<()> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/clickhouse/users.sql");
    let text = std::fs::read_to_string(file)?;
    let lines = text.lines().filter(|line| !line.starts_with("--"));
    let text = lines.collect::<Vec<_>>().join(" ");
    let statements: Vec<&str> =
        text.split(';').map(str::trim).filter(|statement| !statement.is_empty()).collect();
    assert_eq!(statements.len(), 5);
    let mesh = Mesh::start()?;
    let url = mesh.writer_url()?;
    for statement in statements {
        let quoted = statement.replace('\'', "\\'");
        let parsed = sql(&url, &format!("SELECT formatQuerySingleLine('{quoted}')")).await?;
        assert!(parsed.starts_with("CREATE") || parsed.starts_with("GRANT"), "{parsed}");
    }
    assert!(sql(&url, "SELECT formatQuerySingleLine('GRANT SELECT TO')").await.is_err());
    Ok(())
}

/// What makes the tables on a cluster, which the engine of `dev` parses but cannot run: it has no servers beside it.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_a_cluster_are_sql() -> anyhow::Result<()> {
    let mut schema = Command::new(program());
    schema.args(["clickhouse-schema", "--cluster", "main"]);
    let written = tokio::task::spawn_blocking(move || schema.output()).await??;
    let text = String::from_utf8(written.stdout)?;
    let statements = text.split(';').map(str::trim).filter(|statement| !statement.is_empty());
    let mesh = Mesh::start()?;
    let url = mesh.writer_url()?;
    let (mut count, mut tables) = (0, 0);
    for statement in statements {
        let quoted = statement.replace('\\', "\\\\").replace('\'', "\\'");
        let parsed = sql(&url, &format!("SELECT formatQuerySingleLine('{quoted}')")).await?;
        let is_of_all = ["CREATE", "ALTER"].iter().any(|kind| parsed.starts_with(kind));
        assert_eq!(parsed.contains("ON CLUSTER main"), is_of_all, "{parsed}");
        if parsed.starts_with("CREATE TABLE") {
            assert!(parsed.contains("ENGINE = Replicated"), "{parsed}");
            tables += 1;
        }
        count += 1;
    }
    assert!(count > 20 && tables == 7, "{count} statements, {tables} tables");
    Ok(())
}
