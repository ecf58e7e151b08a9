//! The HTTP interface where clients differ: how they write numbers, ids and bodies, and how they
//! send.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    clients,
    mesh::{Mesh, PATIENCE, until},
};

const ENQUEUE: &str = "/api/queue/enqueue";
const STATS: &str = "/api/queue/stats";

async fn sent(request: reqwest::RequestBuilder) -> anyhow::Result<(u16, Value)> {
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_ids_and_bodies_are_read_as_they_are_meant() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    for priority in ["10.0", "1e1", "1E0", "-0", "1e3", "0.0", "1000"] {
        let body = format!(r#"{{"projectId":"p","batchId":"b","priority":{priority}}}"#);
        let (status, answer) = mesh.post_raw(ENQUEUE, body).await?;
        assert_eq!(status, 200, "{priority}: {answer}");
    }
    for priority in ["10.5", "1e4", "-1.0", "1e300", "1000.0000001", "\"10\"", "[10]"] {
        let body = format!(r#"{{"projectId":"p","batchId":"b","priority":{priority}}}"#);
        let (status, answer) = mesh.post_raw(ENQUEUE, body).await?;
        assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")), "{priority}");
        assert!(answer["error"].as_str().is_some_and(|text| text.contains("priority")), "{answer}");
    }
    let body =
        r#"{"projectId":"p","batchId":"b","maxAttempts":3.0,"retry":{"baseMs":1e3,"factor":2}}"#;
    let (status, answer) = mesh.post_raw(ENQUEUE, format!("\u{feff} {body}")).await?;
    assert_eq!(status, 200, "a byte order mark: {answer}");
    let settings = r#"{"weight":2.0,"retention":1e3,"tokensPerMinute":1e6}"#;
    let (status, answer) = mesh.put_raw("/api/projects/p", settings.to_owned()).await?;
    assert_eq!((status, &answer["project"]["tokensPerMinute"]), (200, &json!(1_000_000)));

    // An array has no field names.
    for (path, body) in [
        (
            "/api/projects/p",
            r#"{"webhook":["https://h.example/","whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"]}"#,
        ),
        ("/api/projects/p", r#"{"retry":[1000,2,60000,0]}"#),
        ("/api/projects/p/schedules/s", r#"{"cron":"0 0 * * *","ifLive":{"skip":null}}"#),
    ] {
        let (status, answer) = mesh.put_raw(path, body.to_owned()).await?;
        assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")), "{body}: {answer}");
    }
    let body = r#"{"projectId":"p","batchId":"b","retry":[1000,2,60000,0]}"#;
    let (status, answer) = mesh.post_raw(ENQUEUE, body.to_owned()).await?;
    assert_eq!(status, 400, "{answer}");

    // The replacement character is a character like others.
    let answer =
        mesh.post(ENQUEUE, json!({ "projectId": "a\u{fffd}", "batchId": "\u{fffd}" })).await?;
    let id = answer["jobId"].as_str().expect("jobId").to_owned();
    let (status, listed) =
        mesh.get("/api/queue/jobs?projectId=a%EF%BF%BD&batchId=%ef%bf%bd").await?;
    assert_eq!((status, &listed["jobs"][0]["id"]), (200, &json!(id)), "{listed}");
    let (status, answer) = mesh.get("/api/queue/stats?projectId=a%ff").await?;
    assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")), "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ambiguous_encoded_or_from_another_site_is_refused() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = mesh.url(ENQUEUE);
    let body = r#"{"projectId":"p","batchId":"b"}"#;
    let keys = client.post(&url).body(body);
    let keys = keys.header("Idempotency-Key", "one").header("Idempotency-Key", "two");
    let (status, answer) = sent(keys).await?;
    assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")), "{answer}");

    let gzip = client.post(&url).body(vec![0x1f, 0x8b, 8, 0]).header("Content-Encoding", "gzip");
    let (status, answer) = sent(gzip).await?;
    assert_eq!((status, &answer["code"]), (415, &json!("unsupported_encoding")), "{answer}");
    let identity = client.post(&url).body(body).header("Content-Encoding", "identity");
    assert_eq!(sent(identity).await?.0, 200);

    for (name, value) in [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
        let foreign = client.post(&url).body(body).header(name, value);
        let (status, answer) = sent(foreign.header("Content-Type", "text/plain")).await?;
        assert_eq!((status, &answer["code"]), (403, &json!("cross_origin")), "{answer}");
    }
    let own = || client.post(&url).body(body).header("Origin", mesh.url("").trim_end_matches('/'));
    assert_eq!(sent(own().header("Content-Type", "application/json")).await?.0, 200);
    let (status, answer) = sent(own().header("Content-Type", "text/plain")).await?;
    assert_eq!((status, &answer["code"]), (415, &json!("unsupported_content_type")), "{answer}");
    // A site that points its name at this address.
    for host in ["evil.example", "evil.example:8080"] {
        let (status, answer) = sent(client.get(mesh.url(STATS)).header("Host", host)).await?;
        assert_eq!((status, &answer["code"]), (421, &json!("host_not_allowed")), "{answer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn allowed_names_and_pages_of_allowed_sites_are_answered() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[
        ("JOBMESH_ALLOW_HOSTS", "queue.example,other.example"),
        ("JOBMESH_ALLOW_ORIGINS", "https://console.example"),
    ])?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let stats = || client.get(mesh.url(STATS));
    assert_eq!(sent(stats().header("Host", "queue.example")).await?.0, 200);
    assert_eq!(sent(stats().header("Host", "evil.example")).await?.0, 421);
    let header = |answer: &reqwest::Response, name: &str| {
        answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let from = |request: reqwest::RequestBuilder, site: &str| {
        request.header("Origin", format!("https://{site}")).header("Sec-Fetch-Site", "cross-site")
    };
    let answer = from(stats(), "console.example").send().await?;
    assert_eq!(answer.status(), StatusCode::OK);
    let origin = header(&answer, "access-control-allow-origin");
    assert_eq!(origin.as_deref(), Some("https://console.example"));
    assert_eq!(header(&answer, "vary").as_deref(), Some("origin"));
    let asks = |site: &str| {
        let asks = client.request(reqwest::Method::OPTIONS, mesh.url(ENQUEUE));
        from(asks, site).header("Access-Control-Request-Method", "POST")
    };
    let answer = asks("console.example").send().await?;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let headers = header(&answer, "access-control-allow-headers").unwrap_or_default();
    assert!(headers.contains("idempotency-key"), "{headers}");
    for foreign in [from(stats(), "evil.example"), asks("evil.example")] {
        let answer = foreign.send().await?;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(header(&answer, "access-control-allow-origin"), None);
    }
    for path in [STATS, "/docs/", "/openapi.json", "/no-such-path"] {
        let answer = client.get(mesh.url(path)).send().await?;
        for (name, value) in [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY")] {
            assert_eq!(header(&answer, name).as_deref(), Some(value), "{path}");
        }
        let policy = header(&answer, "content-security-policy").unwrap_or_default();
        assert!(policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_needs_a_password_and_the_reader_only_reads() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let url = mesh.clickhouse_url()?;
    let (_, address) = url.rsplit_once('@').expect("the URL has a password");
    let file = mesh.data_dir().join("olap.password");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file)?.permissions());
    assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    let client = reqwest::Client::builder().no_proxy().build()?;
    let ask = async |request: reqwest::RequestBuilder| {
        let answer = request.send().await?;
        anyhow::Ok((answer.status().as_u16(), answer.text().await?))
    };
    let (status, text) = ask(client.post(format!("http://{address}/")).body("SELECT 1")).await?;
    assert_eq!((status, text.contains("Code: 516")), (403, true), "{text}");
    let wrong = format!("http://reader:wrong@{address}/?query=SELECT%201");
    assert_eq!(ask(client.get(wrong)).await?.0, 403);
    let (status, text) = ask(client.get(format!("{url}/?query=SELECT%201"))).await?;
    assert_eq!((status, text.trim()), (200, "1"), "{text}");
    let writer = mesh.writer_url()?;
    for drop in ["DROP%20TABLE%20jobmesh.job_runs", "SELECT%201;DROP%20TABLE%20jobmesh.job_runs"] {
        let (status, text) = ask(client.get(format!("{writer}/?query={drop}"))).await?;
        let is_refused = text.contains("Code: 164") && status == 403
            || text.contains("Code: 48") && status == 501;
        assert!(is_refused, "{drop}: {status} {text}");
    }
    std::fs::write(mesh.data_dir().join("secret.csv"), "secret")?;
    let csv = mesh.data_dir().join("secret.csv").display().to_string();
    let outfile = format!("{writer}/?query=SELECT%201%20INTO%20OUTFILE%20'{csv}.out'");
    assert_eq!(ask(client.get(outfile)).await?.0, 403, "GET writes no file");
    for statement in [
        "DROP TABLE jobmesh.job_runs".to_owned(),
        "SELECT 1; DROP TABLE jobmesh.job_runs".to_owned(),
        "SELECT 1; SET readonly = 0".to_owned(),
        "SET readonly = 0".to_owned(),
        "SELECT 1 SETTINGS readonly = 0, max_threads = 2".to_owned(),
        format!("SELECT * FROM file('{csv}', 'LineAsString') SETTINGS readonly = DEFAULT"),
        format!("SELECT file('{csv}')"),
        format!("SELECT `f\\x69le`('{csv}')"),
        format!("DESCRIBE TABLE file('{csv}', 'CSVWithNames')"),
        "DESCRIBE TABLE url('http://127.0.0.1:1/', 'CSVWithNames')".to_owned(),
        "/* SELECT */ DESCRIBE TABLE url('http://127.0.0.1:1/', 'CSVWithNames')".to_owned(),
        "# SELECT\nUSE system".to_owned(),
        "EXPLAIN SELECT * FROM url('http://127.0.0.1:1/', 'CSVWithNames')".to_owned(),
        "SELECT * FROM (SELECT * FROM s3('http://127.0.0.1:1/bucket/b.csv', 'CSVWithNames'))"
            .to_owned(),
        format!("SELECT * FROM sqlite('{csv}', 't')"),
        format!("SELECT * FROM file('{csv}', 'LineAsString')"),
        format!("SELECT * FROM `f\\x69le`('{csv}', 'LineAsString')"),
        format!("SELECT * FROM '{csv}'"),
        format!("SELECT $a$b$a$, * FROM file('{csv}', 'LineAsString')"),
        format!("SELECT 1 INTO OUTFILE '{csv}.out'"),
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')".to_owned(),
        "SELECT * FROM remote('127.0.0.1:1', system.one)".to_owned(),
        "SELECT * FROM executable('sh', 'CSV', 'a String')".to_owned(),
    ] {
        let (status, text) = ask(client.post(format!("{url}/")).body(statement.clone())).await?;
        // 404: the engine takes the name of a file for that of a table.
        let is_refused = matches!(status, 403 | 404 | 501) && !text.contains("secret\n");
        let is_sent = statement.contains("127.0.0.1") && status == 404;
        assert!(is_refused && !is_sent, "{statement}: {status} {text}");
    }
    assert!(!std::path::Path::new(&format!("{csv}.out")).exists());
    // What one statement sets does not stay.
    let (status, text) = ask(client.post(format!("{url}/?max_threads=1")).body("SELECT 2")).await?;
    assert_eq!((status, text.trim()), (200, "2"), "{text}");
    assert_eq!(mesh.sql("SELECT count() FROM job_runs").await?, "0");
    Ok(())
}

/// clickhouse-connect and @clickhouse/client: what they cannot do here is refused by name.
#[tokio::test(flavor = "multi_thread")]
async fn public_clients_of_clickhouse_read_and_write() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let url = mesh.clickhouse_url()?;
    let (_, port) = url.rsplit_once(':').expect("the URL has a port");
    for (user, file) in [("reader", "olap.password"), ("writer", "olap.writer.password")] {
        let file = mesh.data_dir().join(file).display().to_string();
        clients::run_python("sql.py", &[port, user, &file])?;
        clients::run_node("sql.mjs", &[port, user, &file])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_never_finish_a_request_are_closed() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let address = mesh.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let heads = [
        "POST /api/queue/enqueue HTTP/1.1\r\nHost: localhost\r\n",
        "POST /api/queue/enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"projectId\"",
        "P",
    ];
    let mut open = Vec::new();
    for head in heads {
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(head.as_bytes()).await?;
        open.push(stream);
    }
    // One that sends a little now and then is no better.
    let mut slow = TcpStream::connect(&address).await?;
    let mut answers = Vec::new();
    let drips = async {
        loop {
            if slow.write_all(b"X").await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let closed = async {
        for mut stream in open {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok();
            answers.push(String::from_utf8_lossy(&answer).into_owned());
        }
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(drips, closed) }).await?;
    assert!(answers[1].starts_with("HTTP/1.1 408"), "{answers:?}");
    assert!(answers[1].contains("request_timeout"), "{answers:?}");
    assert_eq!((answers[0].as_str(), answers[2].as_str()), ("", ""));
    // An idle connection between two requests stays open.
    let client = reqwest::Client::builder().no_proxy().build()?;
    assert_eq!(client.get(mesh.url("/healthz")).send().await?.status(), StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limits_get_an_error_and_health_checks_an_answer()
-> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[
        ("JOBMESH_MAX_CONNECTIONS", "30"),
        ("JOBMESH_MAX_CONNECTIONS_PER_ADDRESS", "20"),
    ])?;
    let address = mesh.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    // Each client has connections of its own.
    let ask = async |from: &str, path: &str| {
        let client = reqwest::Client::builder().no_proxy().local_address(from.parse().ok());
        sent(client.build()?.get(mesh.url(path))).await
    };
    let hold = async |from: &str, count: usize| {
        let mut held = Vec::new();
        for _ in 0..count {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(format!("{from}:0").parse()?)?;
            held.push(socket.connect(address.parse()?).await?);
        }
        anyhow::Ok(held)
    };
    let held = hold("127.0.0.1", 20).await?;
    until("refused", async || {
        let (status, answer) = ask("127.0.0.1", STATS).await?;
        let is_refused = (status, &answer["code"]) == (429, &json!("too_many_connections"));
        Ok(if is_refused { Ok(()) } else { Err(format!("{status} {answer}")) })
    })
    .await?;
    assert_eq!(ask("127.0.0.1", "/healthz").await?.0, 200);
    assert_eq!(ask("127.0.0.2", STATS).await?.0, 200, "other addresses are served");
    let others = hold("127.0.0.2", 10).await?;
    until("refused", async || {
        let (status, answer) = ask("127.0.0.3", STATS).await?;
        let is_refused = (status, &answer["code"]) == (503, &json!("too_many_connections"));
        Ok(if is_refused { Ok(()) } else { Err(format!("{status} {answer}")) })
    })
    .await?;
    assert_eq!(ask("127.0.0.3", "/healthz").await?.0, 200);
    drop((held, others));
    until("served again", async || {
        let statuses = [ask("127.0.0.1", STATS).await?.0, ask("127.0.0.3", STATS).await?.0];
        Ok(if statuses == [200, 200] { Ok(()) } else { Err(format!("{statuses:?}")) })
    })
    .await
}
