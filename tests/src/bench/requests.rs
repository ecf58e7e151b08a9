//! What the worst requests of each endpoint cost: the largest that are legal, and the largest that
//! are refused, each made to be as much work as its size allows.

use std::fmt::{self, Write};

use anyhow::ensure;

use super::{
    mesh::Mesh,
    report::{Goal, Report},
};

/// Bytes of the largest body.
const BODY_BYTES: usize = 4 << 20;
/// Bytes of the largest data of a job.
const DATA_BYTES: usize = 256 << 10;
/// Bytes of the largest options of a project.
const OPTIONS_BYTES: usize = 64 << 10;
/// The most batches of a request.
const BATCHES: usize = 10_000;
/// Items of a list that is far too long.
const TOO_MANY: usize = 440_000;
/// How often each request is sent in a round; the mean counts.
const TIMES: u32 = 3;
/// Rounds over all requests; the median counts. In the first one the services are cold.
const ROUNDS: usize = 3;
/// What a request may take of the processor, in ms.
const CPU_MS_MAX: f64 = 100.0;

/// The services that the requests are work for.
const SERVICES: [&str; 2] = ["edge", "state"];

/// A request that is as much work as its size allows.
struct Worst {
    what: &'static str,
    method: &'static str,
    path: String,
    body: String,
    is_legal: bool,
}

impl Worst {
    async fn send(&self, mesh: &Mesh) -> anyhow::Result<()> {
        let Self { what, method, path, body, is_legal } = self;
        ensure!(body.len() <= BODY_BYTES, "{what} has {} bytes", body.len());
        let answer = mesh.client().connect().await?.ask(method, path, body).await?;
        let is_accepted = [200, 202].contains(&answer.status);
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(is_accepted == *is_legal, "{what} was answered with {}: {text}", answer.status);
        Ok(())
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, method, path, body, is_legal } = self;
        let path = path.split('?').next().unwrap_or_default();
        let kind = if *is_legal { "legal" } else { "refused" };
        let megabytes = body.len() as f64 / f64::from(1 << 20);
        write!(f, "{method} {path}, {kind}: {what} ({megabytes:.1} MB)")
    }
}

/// Sends each of them, and reports the processor time that they take.
pub async fn measure(mesh: &Mesh, report: &mut Report) -> anyhow::Result<()> {
    mesh.client().set("worst", serde_json::json!({ "paused": true })).await?;
    let requests = requests();
    // The edge's and state's times of each round, by request, in ms.
    let mut times = vec![[Vec::new(), Vec::new()]; requests.len()];
    for _ in 0..ROUNDS {
        for (request, times) in requests.iter().zip(&mut times) {
            let before = mesh.cpu_times()?;
            for _ in 0..TIMES {
                request.send(mesh).await?;
            }
            mesh.until_quiet().await?;
            let after = mesh.cpu_times()?;
            for (service, times) in SERVICES.into_iter().zip(times) {
                let taken = after[service].saturating_sub(before[service]) / TIMES;
                times.push(taken.as_secs_f64() * 1e3);
            }
        }
    }
    for (request, times) in requests.iter().zip(times) {
        // What state takes is the work of the jobs that it accepts.
        let goals = [Some(Goal::AtMost(CPU_MS_MAX)), None];
        for ((service, times), goal) in SERVICES.into_iter().zip(times).zip(goals) {
            report.ms(&format!("{request}, {service}"), median(times), goal);
        }
    }
    mesh.client().post("/api/queue/cancel", &serde_json::json!({ "projectId": "worst" })).await
}

/// The middle one of an odd number of values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn requests() -> Vec<Worst> {
    let post = |what, path: &str, body, is_legal| Worst {
        what,
        method: "POST",
        path: path.to_owned(),
        body,
        is_legal,
    };
    let put = |what, path: &str, body, is_legal| Worst {
        what,
        method: "PUT",
        path: path.to_owned(),
        body,
        is_legal,
    };
    let (enqueue, redo) = ("/api/queue/enqueue", "/api/queue/redo");
    let (cancel, retry) = ("/api/queue/cancel", "/api/queue/retry");
    let (project, schedule) = ("/api/projects/worst", "/api/projects/worst/schedules/s");
    let long_ids = batch_ids(BATCHES, 128);
    let short_ids = batch_ids(TOO_MANY, 6);
    vec![
        post("10,000 ids and data of numbers", enqueue, keyed_data("1,", ""), true),
        post("10,000 ids and data of escapes", enqueue, keyed_data(r#""\u00e9","#, ""), true),
        post("10,000 ids and data of objects", enqueue, keyed_data(r#"{"":{}},"#, ""), true),
        post(
            "10,000 ids of 128 bytes",
            enqueue,
            format!(r#"{{"projectId":"worst","batchIds":[{long_ids}]}}"#),
            true,
        ),
        post(
            "10,000 ids, the last data with half a surrogate pair",
            enqueue,
            keyed_data("1,", r#","\ud800""#),
            false,
        ),
        post(
            "440,000 ids",
            enqueue,
            format!(r#"{{"projectId":"worst","batchIds":[{short_ids}]}}"#),
            false,
        ),
        post(
            "data of 400,000 batches",
            enqueue,
            format!(r#"{{"projectId":"worst","batchIds":["b"],"data":{{{}}}}}"#, fields(400_000)),
            false,
        ),
        post(
            "an array of 2,000,000 levels",
            enqueue,
            format!(
                r#"{{"projectId":"worst","batchId":"b","data":{}{}}}"#,
                "[".repeat(2_000_000),
                "]".repeat(2_000_000)
            ),
            false,
        ),
        post(
            "a field with a name of 4 MB",
            enqueue,
            format!(r#"{{"{}":1}}"#, "x".repeat(BODY_BYTES - 10)),
            false,
        ),
        post(
            "numbers that never end",
            enqueue,
            format!(
                r#"{{"projectId":"worst","batchId":"b","data":{{"a":[{}"#,
                "1,".repeat(2_000_000)
            ),
            false,
        ),
        post(
            "an id of 4 MB of escapes",
            enqueue,
            format!(r#"{{"projectId":"{}"}}"#, r"\u00e9".repeat(690_000)),
            false,
        ),
        post(
            "columns and images of 256 KB",
            redo,
            redo_body(&batch_ids(9_000, 6), &images(6_000)),
            true,
        ),
        post("440,000 columns", redo, redo_body(&short_ids, ""), false),
        post("170,000 images", redo, redo_body(r#""c""#, &images(170_000)), false),
        post(
            "10,000 ids of 128 bytes",
            cancel,
            format!(r#"{{"projectId":"worst-too","batchIds":[{long_ids}]}}"#),
            true,
        ),
        post(
            "440,000 ids",
            cancel,
            format!(r#"{{"projectId":"worst-too","batchIds":[{short_ids}]}}"#),
            false,
        ),
        post(
            "an id of 4 MB",
            retry,
            format!(r#"{{"projectId":"worst","jobId":"{}"}}"#, "x".repeat(4_000_000)),
            false,
        ),
        post(
            "4 MB of spaces",
            retry,
            format!(r#"{{"projectId":"worst",{}"retryAll":true}}"#, " ".repeat(4_000_000)),
            true,
        ),
        put(
            "options of 64 KB",
            project,
            format!(
                r#"{{"handler":"llm","options":{{"prompt":"{}"}}}}"#,
                "{{a}}".repeat(1_000) + &"x".repeat(OPTIONS_BYTES - 6_000)
            ),
            true,
        ),
        put(
            "options of 4 MB of numbers",
            project,
            format!(r#"{{"options":{{"a":[{}1]}}}}"#, "1,".repeat(2_000_000)),
            false,
        ),
        put(
            "a webhook with 400,000 events",
            project,
            format!(
                r#"{{"webhook":{{"url":"http://h.example","secret":"s","events":[{}"failed"]}}}}"#,
                r#""failed","#.repeat(400_000)
            ),
            false,
        ),
        put(
            "data of 256 KB",
            schedule,
            format!(
                r#"{{"cron":"0 0 29 2 *","data":{{"a":[{}1]}}}}"#,
                "1,".repeat(DATA_BYTES / 2 - 10)
            ),
            true,
        ),
        put(
            "a pattern that comes only every 28 years",
            schedule,
            r#"{"cron":"59 23 29 */2 */6","data":{}}"#.to_owned(),
            true,
        ),
        put(
            "a pattern of 4 MB",
            schedule,
            format!(r#"{{"cron":"{}"}}"#, "0,".repeat(2_000_000)),
            false,
        ),
        put(
            "data of 4 MB of numbers",
            schedule,
            format!(r#"{{"cron":"* * * * *","data":{{"a":[{}1]}}}}"#, "1,".repeat(2_000_000)),
            false,
        ),
        Worst {
            what: "a query of 60 KB",
            method: "GET",
            path: format!("/api/queue/jobs?projectId={}", "%61".repeat(20_000)),
            body: String::new(),
            is_legal: false,
        },
    ]
}

/// Ids of so many bytes, as items of a list.
fn batch_ids(count: usize, bytes: usize) -> String {
    let mut items = String::with_capacity(count * (bytes + 3));
    for n in 0..count {
        let separator = if n == 0 { "" } else { "," };
        // Writing to a string cannot fail, here and below.
        let _ = write!(items, r#"{separator}"{n:0>bytes$}""#);
    }
    items
}

fn fields(count: usize) -> String {
    let mut fields = String::new();
    for n in 0..count {
        let separator = if n == 0 { "" } else { "," };
        let _ = write!(fields, r#"{separator}"{n:x}":0"#);
    }
    fields
}

fn images(count: usize) -> String {
    let mut images = String::new();
    for n in 0..count {
        let separator = if n == 0 { "" } else { "," };
        let _ = write!(images, r#"{separator}"{n}":"image-{n}""#);
    }
    images
}

fn redo_body(columns: &str, images: &str) -> String {
    format!(
        r#"{{"projectId":"worst","batchId":"b","rowIndex":0,"redoColumnIds":[{columns}],"croppedImageIds":{{{images}}}}}"#
    )
}

/// As many batches as a request takes, each with as much data as the body has room for.
fn keyed_data(item: &str, end: &str) -> String {
    let each = (BODY_BYTES - 100) / BATCHES - 2 * 10 - 14 - end.len() / BATCHES;
    let items = item.repeat(each / item.len());
    let items = items.trim_end_matches(',');
    let mut data = String::with_capacity(BODY_BYTES);
    for n in 0..BATCHES {
        let (separator, end) =
            (if n == 0 { "" } else { "," }, if n + 1 == BATCHES { end } else { "" });
        let _ = write!(data, r#"{separator}"{n:0>6}":{{"a":[{items}{end}]}}"#);
    }
    format!(r#"{{"projectId":"worst","batchIds":[{}],"data":{{{data}}}}}"#, batch_ids(BATCHES, 6))
}
