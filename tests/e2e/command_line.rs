//! The commands of clients, as they are typed at a terminal and called by scripts.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::{
    mesh::{Mesh, until},
    receiver::Receiver,
};

async fn jobmesh(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tests"));
    command.args(arguments).env("JOBMESH_URL", mesh.url("")).env_remove("JOBMESH_NATS_URL");
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

async fn json_of(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = jobmesh(mesh, &[arguments, &["--json"]].concat()).await?;
    anyhow::ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_shows_its_answer_and_exits_with_what_it_means() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    let data = r#"{"do":"done"}"#;
    let enqueued =
        json_of(&mesh, &["enqueue", "--project", "p", "a", "b", "--data", data, "--priority", "3"])
            .await?;
    let job = enqueued["jobIds"][0].as_str().unwrap();
    let shown = json_of(&mesh, &["status", job, "--wait", "30s", "--history"]).await?;
    assert_eq!(
        (&shown["job"]["status"], &shown["job"]["priority"]),
        (&json!("completed"), &json!(3))
    );
    let plain = jobmesh(&mesh, &["status", job, "--history"]).await?;
    let text = said(&plain);
    assert!(
        text.contains("status") && text.contains("completed") && text.contains("ATTEMPT"),
        "{text}"
    );
    // Followed to the end: well, and not well.
    let output =
        jobmesh(&mesh, &["enqueue", "--project", "p", "c", "d", "--data", data, "--watch"]).await?;
    assert!(output.status.success() && said(&output).contains("2 completed"), "{}", said(&output));
    let output = jobmesh(
        &mesh,
        &["enqueue", "--project", "p", "e", "--data", r#"{"do":"reject"}"#, "--watch"],
    )
    .await?;
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    let output = jobmesh(&mesh, &["watch", "--project", "p", "--batch", "e"]).await?;
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    let output = jobmesh(&mesh, &["watch", job]).await?;
    assert!(output.status.success(), "{}", said(&output));
    let retried = json_of(&mesh, &["retry", "--project", "p", "--all"]).await?;
    assert_eq!(retried["retriedCount"], 1);
    let project = json_of(
        &mesh,
        &[
            "projects",
            "p/q",
            "--set",
            "maxConcurrency=4",
            "--set",
            "handler=http",
            "--set",
            "paused=true",
        ],
    )
    .await?;
    assert_eq!(project["project"]["maxConcurrency"], 4);
    let text = said(&jobmesh(&mesh, &["projects", "p/q"]).await?);
    assert!(text.contains("maxConcurrency") && text.contains("http"), "{text}");
    json_of(&mesh, &["enqueue", "--project", "p/q", "x"]).await?;
    let canceled = json_of(&mesh, &["cancel", "--project", "p/q", "--batch", "x"]).await?;
    assert_eq!(canceled["canceledCount"], 1);
    assert_eq!(json_of(&mesh, &["stats", "--project", "p/q"]).await?["queue"]["canceled"], 1);
    let text = said(&jobmesh(&mesh, &["stats"]).await?);
    assert!(text.contains("COMPLETED") && text.contains("PROCESSORS"), "{text}");
    until("metrics", async || {
        let metrics = json_of(&mesh, &["metrics", "--project", "p", "--range", "all"]).await?;
        let total = metrics["stats"]["successful"] == 4;
        Ok(if total { Ok(()) } else { Err(metrics.to_string()) })
    })
    .await?;
    let text = said(&jobmesh(&mesh, &["metrics"]).await?);
    assert!(text.contains("totalTokens") && text.contains("MODEL"), "{text}");
    // What went wrong, and whose turn it is.
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    let output = jobmesh(&mesh, &["status", unknown]).await?;
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("job_not_found"), "{}", said(&output));
    let output = jobmesh(&mesh, &["metrics", "--range", "1y"]).await?;
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let output = jobmesh(&mesh, &["stats", "--url", "http://127.0.0.1:9"]).await?;
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("jobmesh dev"), "{}", said(&output));
    let output = jobmesh(&mesh, &["status"]).await?;
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let output = jobmesh(&mesh, &["completions", "bash"]).await?;
    assert!(said(&output).contains("enqueue"), "no completions");
    doctor(&mesh).await
}

/// Data and answers pass through the commands unchanged, a proxy is for other hosts, and what could
/// not be written is an error.
#[tokio::test(flavor = "multi_thread")]
async fn data_passes_unchanged_and_what_is_not_written_is_an_error() -> anyhow::Result<()> {
    let odd = r#"{"s":"\ud800","n":1e400}"#;
    let command = format!(r#"printf '%s' '{{"result":{odd}}}'"#);
    let mesh = Mesh::start_with(&[("JOBMESH_COMMAND", &command)])?;
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let data = format!(
        r#"{{"z":1,"big":9007199254740993,"n":12345678901234567890123,"f":1.10,"a":{deep}}}"#
    );
    let enqueue = ["enqueue", "--project", "p", "b", "--data", &data, "--json"];
    let output = jobmesh(&mesh, &enqueue).await?;
    assert!(output.status.success(), "{}", said(&output));
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let job = answer["jobIds"][0].as_str().unwrap().to_owned();
    let url = mesh.url(&format!("/api/queue/status/{job}?wait=60s"));
    let direct =
        reqwest::Client::builder().no_proxy().build()?.get(url).send().await?.text().await?;
    assert!(direct.contains(&format!(r#""data":{data}"#)), "{direct}");
    let output = jobmesh(&mesh, &["status", &job, "--json"]).await?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), direct);
    let output = jobmesh(&mesh, &["status", &job]).await?;
    assert!(said(&output).contains(&data), "{}", said(&output));

    // What a handler returns may be odder than what is accepted as data.
    mesh.set("odd", json!({ "handler": "command" })).await?;
    let job = mesh.enqueue("odd", 1).await?.remove(0);
    let url = mesh.url(&format!("/api/queue/status/{job}?wait=60s"));
    reqwest::Client::builder().no_proxy().build()?.get(url).send().await?.text().await?;
    for arguments in [&["status", &job, "--json"][..], &["status", &job]] {
        let output = jobmesh(&mesh, arguments).await?;
        assert!(output.status.success() && said(&output).contains(odd), "{}", said(&output));
    }

    let url = mesh.url("");
    let in_a_shell = async |command: &'static str| {
        let url = url.clone();
        let output = move || {
            let mut shell = Command::new("sh");
            shell.args(["-c", command]).env("JOBMESH", env!("CARGO_BIN_EXE_tests"));
            shell.env("JOBMESH_URL", url).output()
        };
        anyhow::Ok(tokio::task::spawn_blocking(output).await??)
    };
    let command = r#"printf '\357\273\277{"a":1}' | "$JOBMESH" enqueue --project p b --data -"#;
    let output = in_a_shell(command).await?;
    assert!(output.status.success(), "{}", said(&output));
    let output = in_a_shell(r#""$JOBMESH" stats > /dev/full"#).await?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("standard output"), "{}", said(&output));
    let output = in_a_shell(r#""$JOBMESH" stats | true"#).await?;
    assert!(output.status.success(), "{}", said(&output));
    for proxy in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        let mut stats = Command::new(env!("CARGO_BIN_EXE_tests"));
        stats.arg("stats").env("JOBMESH_URL", mesh.url("")).env(proxy, "http://127.0.0.1:9");
        let output = tokio::task::spawn_blocking(move || stats.output()).await??;
        assert!(output.status.success(), "{proxy}: {}", said(&output));
    }
    Ok(())
}

async fn doctor(mesh: &Mesh) -> anyhow::Result<()> {
    let nats = mesh.nats_url()?;
    let clickhouse = mesh.clickhouse_url()?;
    let arguments = ["doctor", "--nats-url", &nats, "--clickhouse-url", &clickhouse];
    let found = json_of(mesh, &arguments).await?;
    assert_eq!(found["ok"], true, "{found}");
    let checks: Vec<&str> = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["check"].as_str().unwrap())
        .collect();
    for check in [
        "version",
        "edge",
        "state",
        "processors",
        "metrics",
        "clock",
        "nats",
        "streams",
        "bucket",
        "clickhouse",
    ] {
        assert!(checks.contains(&check), "{check} is not among {checks:?}");
    }
    mesh.signal("olap", libc::SIGSTOP)?;
    // The edge checks its services at most once a second.
    until("noticed", async || {
        let output = jobmesh(mesh, &["doctor"]).await?;
        let (code, text) = (output.status.code(), said(&output));
        let is_noticed =
            code == Some(1) && text.contains("NOT OK") && text.contains("jobmesh serve metrics");
        Ok(if is_noticed { Ok(()) } else { Err(text) })
    })
    .await?;
    mesh.signal("olap", libc::SIGCONT)
}

/// At a terminal a batch is followed with a bar.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_followed_with_a_bar_at_a_terminal() -> anyhow::Result<()> {
    const PTY: &str =
        "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mesh = Mesh::start()?;
    let mut python = Command::new("python3");
    python.args(["-c", PTY, env!("CARGO_BIN_EXE_tests"), "enqueue", "--project", "p"]);
    python.args((0..20).map(|n| format!("b{n}")));
    python.args(["--watch", "--url", &mesh.url("")]).env("TERM", "xterm").env("COLUMNS", "100");
    let output = tokio::task::spawn_blocking(move || python.output()).await??;
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("20/20") && text.contains("█") && text.contains("20 completed"),
        "{text}"
    );
    Ok(())
}
