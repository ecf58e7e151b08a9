//! `jobmesh keys`: API keys from the command line.

use std::process::Command;

use serde_json::Value;

use crate::mesh::{Mesh, until};

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_managed_from_the_command_line() -> anyhow::Result<()> {
    let mesh = Mesh::start_with_arguments(&["--require-keys"], &[])?;
    let nats = mesh.nats_url()?;
    let run = async |arguments: &[&str], key: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tests"));
        command.args(arguments).env("JOBMESH_URL", mesh.url("")).env("JOBMESH_NATS_URL", &nats);
        command.envs(key.map(|key| ("JOBMESH_KEY", key)));
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        anyhow::Ok((output.status.code(), text))
    };
    let (code, text) = run(&["stats"], None).await?;
    assert_eq!((code, text.contains("key_missing")), (Some(3), true), "{text}");
    let (code, text) = run(&["keys", "bootstrap"], None).await?;
    assert_eq!(code, Some(0), "{text}");
    let admin = text.trim().lines().last().unwrap_or_default().to_owned();
    until("in force", async || {
        let (code, text) = run(&["stats"], Some(&admin)).await?;
        Ok(if code == Some(0) { Ok(()) } else { Err(text) })
    })
    .await?;
    until("recorded", async || {
        let answer = reqwest::Client::new().get(mesh.url("/api/audit")).bearer_auth(&admin);
        let answer = answer.send().await?.text().await?;
        Ok(if answer.contains("jobmesh keys bootstrap") { Ok(()) } else { Err(answer) })
    })
    .await?;
    let create = ["keys", "create", "--name", "ci", "--scope", "enqueue", "--project", "p"];
    let create: Vec<&str> = create.into_iter().chain(["--expires", "1d", "--json"]).collect();
    let (code, text) = run(&create, Some(&admin)).await?;
    assert_eq!(code, Some(0), "{text}");
    let made: Value = serde_json::from_str(&text)?;
    let (id, secret) = (&made["key"]["id"], &made["secret"]);
    let (id, secret) = (id.as_str().expect("id"), secret.as_str().expect("secret"));
    until("in force", async || {
        let (code, text) = run(&["enqueue", "--project", "p", "b"], Some(secret)).await?;
        Ok(if code == Some(0) { Ok(()) } else { Err(text) })
    })
    .await?;
    for (arguments, part) in [
        (&["enqueue", "--project", "q", "b"][..], "project_not_found"),
        (&["cancel", "--project", "p"], "forbidden"),
        (&["keys", "list"], "forbidden"),
    ] {
        let (code, text) = run(arguments, Some(secret)).await?;
        assert_eq!((code, text.contains(part)), (Some(3), true), "{arguments:?}: {text}");
    }
    let watch = ["enqueue", "--project", "p", "watched", "--watch", "--json"];
    let (code, text) = run(&watch, Some(secret)).await?;
    assert_eq!((code, text.contains("completed")), (Some(0), true), "{text}");
    let last: Value = serde_json::from_str(text.trim().lines().last().unwrap_or_default())?;
    let job = last["jobId"].as_str().expect("jobId");
    let (code, text) = run(&["watch", job], Some(secret)).await?;
    assert_eq!((code, text.contains("1 completed")), (Some(0), true), "{text}");
    let (_, text) = run(&["doctor"], Some(secret)).await?;
    assert!(text.contains("needs an API key for all projects"), "{text}");
    let (code, text) = run(&["keys", "rotate", id], Some(&admin)).await?;
    assert_eq!((code, text.contains("jm_")), (Some(0), true), "{text}");
    let (code, text) = run(&["keys", "list"], Some(&admin)).await?;
    assert!(code == Some(0) && text.contains("bootstrap") && text.contains(id), "{text}");
    let (code, text) = run(&["keys", "revoke", id], Some(&admin)).await?;
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = run(&["keys", "revoke", id], Some(&admin)).await?;
    assert_eq!((code, text.contains("key_not_found")), (Some(3), true), "{text}");
    until("reported by doctor", async || {
        let (code, text) = run(&["doctor"], Some(secret)).await?;
        let is_reported = code == Some(1) && text.contains("key_not_accepted");
        Ok(if is_reported { Ok(()) } else { Err(text) })
    })
    .await
}
