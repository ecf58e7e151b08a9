//! Every way to log in at NATS, from the URL, the environment and files, and that no secret is shown.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::Context;
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::Nats;

use crate::mesh::Mesh;

const SECRET: &str = "correct:horse@battery";
const SECRET_IN_URL: &str = "correct%3Ahorse%40battery";

/// What `doctor` says of NATS with these arguments and variables.
async fn nats_check(
    arguments: &[&str],
    environment: &[(&str, String)],
) -> anyhow::Result<(bool, String)> {
    let output = run("doctor", &[&["--json"], arguments].concat(), environment).await?;
    let shown = text(&output);
    assert!(!shown.contains("horse"), "the secret is shown: {shown}");
    let found: Value = serde_json::from_slice(&output.stdout).with_context(|| shown.clone())?;
    let checks = found["checks"].as_array().context("checks")?;
    let nats = checks.iter().find(|check| check["check"] == "nats").context("a check of NATS")?;
    Ok((nats["ok"] == true, nats["says"].to_string()))
}

async fn run(
    command: &str,
    arguments: &[&str],
    environment: &[(&str, String)],
) -> anyhow::Result<Output> {
    let mut jobmesh = Command::new(env!("CARGO_BIN_EXE_tests"));
    jobmesh.arg(command).args(arguments).env("JOBMESH_URL", "http://127.0.0.1:9");
    jobmesh.envs(environment.iter().map(|(name, value)| (name, value)));
    Ok(tokio::task::spawn_blocking(move || jobmesh.output()).await??)
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn file(dir: &TempDir, name: &str, content: &str) -> anyhow::Result<PathBuf> {
    let path = dir.path().join(name);
    fs::write(&path, content)?;
    Ok(path)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_login_works_from_the_url_the_environment_and_a_file() -> anyhow::Result<()> {
    let dir = TempDir::new()?;
    let password = file(&dir, "password", &format!("{SECRET}\n"))?;
    let nats = Nats::start_with(&format!("authorization {{ user: u, password: {SECRET:?} }}"))?;
    let (plain, address) = (nats.url(), nats.address());
    let url = format!("nats://u:{SECRET_IN_URL}@{address}");
    let no_environment: &[(&str, String)] = &[];
    assert!(!nats_check(&["--nats-url", &plain], no_environment).await?.0, "without a login");
    let wrong = format!("nats://u:horsefly@{address}");
    assert!(!nats_check(&["--nats-url", &wrong], no_environment).await?.0, "a wrong password");
    let by_file = ["--nats-url", &plain, "--nats-user", "u", "--nats-password-file"];
    let by_variable = [
        ("JOBMESH_NATS_URL", plain.clone()),
        ("JOBMESH_NATS_USER", "u".to_owned()),
        ("JOBMESH_NATS_PASSWORD", SECRET.to_owned()),
    ];
    let list = format!("nats://u:{SECRET_IN_URL}@127.0.0.1:9,{url}");
    for (arguments, environment) in [
        (&["--nats-url", &url][..], no_environment),
        (&["--nats-url", &list], no_environment),
        (&[], &[("JOBMESH_NATS_URL", url.clone())]),
        (&[], &by_variable),
        (&[&by_file[..], &[&shown(&password)]].concat(), no_environment),
    ] {
        let (ok, says) = nats_check(arguments, environment).await?;
        assert!(ok, "{arguments:?}: {says}");
    }
    let (ok, says) = nats_check(&["--nats-url", &url], &by_variable[1..]).await?;
    assert!(!ok && says.contains("keep one"), "{says}");

    let nats = Nats::start_with(&format!("authorization {{ token: {SECRET:?} }}"))?;
    let (plain, address) = (nats.url(), nats.address());
    let url = format!("nats://{SECRET_IN_URL}@{address}");
    for (arguments, environment) in [
        (&["--nats-url", &url][..], no_environment),
        (&["--nats-url", &plain], &[("JOBMESH_NATS_TOKEN", SECRET.to_owned())]),
        (&["--nats-url", &plain, "--nats-token-file", &shown(&password)], no_environment),
    ] {
        let (ok, says) = nats_check(arguments, environment).await?;
        assert!(ok, "{arguments:?}: {says}");
    }

    let key = KeyPair::new_user();
    let seed = key.seed()?;
    let nkey = file(&dir, "nkey", &seed)?;
    let users = format!("authorization {{ users: [{{ nkey: {} }}] }}", key.public_key());
    let nats = Nats::start_with(&users)?;
    let plain = nats.url();
    for (arguments, environment) in [
        (&["--nats-url", &plain][..], &[("JOBMESH_NATS_NKEY", seed.clone())][..]),
        (&["--nats-url", &plain, "--nats-nkey-file", &shown(&nkey)], no_environment),
    ] {
        let (ok, says) = nats_check(arguments, environment).await?;
        assert!(ok, "{arguments:?}: {says}");
    }
    Ok(())
}

/// A JWT of NATS: the claims of `kind` about `subject`, signed by `issuer`.
fn jwt(kind: &str, name: &str, subject: &KeyPair, issuer: &KeyPair) -> anyhow::Result<String> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name,
        "sub": subject.public_key(), "nats": { "type": kind, "version": 2, "subs": -1, "data": -1, "payload": -1,
        "limits": { "subs": -1, "data": -1, "payload": -1, "conn": -1, "imports": -1, "exports": -1,
        "wildcards": true, "leaf": -1 } },
    });
    let signed =
        format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
    let signature = BASE64.encode(issuer.sign(signed.as_bytes())?);
    Ok(format!("{signed}.{signature}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_works() -> anyhow::Result<()> {
    let dir = TempDir::new()?;
    let (operator, account, user) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let operator_jwt = jwt("operator", "o", &operator, &operator)?;
    let (system, account_jwt) = (KeyPair::new_account(), jwt("account", "a", &account, &operator)?);
    let system_jwt = jwt("account", "system", &system, &operator)?;
    let user_jwt = jwt("user", "u", &user, &account)?;
    let conf = format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nsystem_account: {}\n\
         resolver_preload: {{ {}: {account_jwt}, {}: {system_jwt} }}",
        system.public_key(),
        account.public_key(),
        system.public_key()
    );
    let nats = Nats::start_with(&conf)?;
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed()?
    );
    let file = shown(&file(&dir, "user.creds", &credentials)?);
    let url = nats.url();
    let no_environment: &[(&str, String)] = &[];
    assert!(!nats_check(&["--nats-url", &url], no_environment).await?.0, "without a login");
    let (ok, says) =
        nats_check(&["--nats-url", &url, "--nats-creds", &file], no_environment).await?;
    assert!(ok, "{says}");
    let (ok, says) = nats_check(&["--nats-url", &url], &[("JOBMESH_NATS_CREDS", file)]).await?;
    assert!(ok, "{says}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_both_sides_are_checked() -> anyhow::Result<()> {
    let dir = TempDir::new()?;
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate()?)?;
    let issue = |name: &str| -> anyhow::Result<(PathBuf, PathBuf)> {
        let key = rcgen::KeyPair::generate()?;
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        let certificate = params.signed_by(&key, &authority)?;
        let certificate = file(&dir, &format!("{name}.pem"), &certificate.pem())?;
        Ok((certificate, file(&dir, &format!("{name}.key"), &key.serialize_pem())?))
    };
    let ca = shown(&file(&dir, "ca.pem", &authority.pem())?);
    let ((certificate, key), (client, client_key)) = (issue("server")?, issue("client")?);
    let nats = Nats::start_with(&format!(
        "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}"
    ))?;
    let url = nats.url().replace("nats://", "tls://");
    let (client, client_key) = (shown(&client), shown(&client_key));
    let no_environment: &[(&str, String)] = &[];
    for refused in [
        &["--nats-url", &url][..],
        &["--nats-url", &url, "--nats-ca", &ca],
        &["--nats-url", &url, "--nats-cert", &client, "--nats-key", &client_key],
    ] {
        assert!(!nats_check(refused, no_environment).await?.0, "{refused:?}");
    }
    let all =
        ["--nats-url", &url, "--nats-ca", &ca, "--nats-cert", &client, "--nats-key", &client_key];
    let (ok, says) = nats_check(&all, no_environment).await?;
    assert!(ok, "{says}");
    let environment =
        [("JOBMESH_NATS_CA", ca), ("JOBMESH_NATS_CERT", client), ("JOBMESH_NATS_KEY", client_key)];
    let (ok, says) = nats_check(&["--nats-url", &url], &environment).await?;
    assert!(ok, "{says}");
    Ok(())
}

/// A whole mesh on a broker that asks for a password: jobs run, and neither arguments, environments
/// of those that do not need it, logs nor help show it.
#[tokio::test(flavor = "multi_thread")]
async fn every_service_logs_in_and_secrets_stay_where_they_are_needed() -> anyhow::Result<()> {
    let nats = Nats::start_with(&format!("authorization {{ user: u, password: {SECRET:?} }}"))?;
    let url = nats.url();
    let environment = [
        ("JOBMESH_NATS_PASSWORD", SECRET),
        ("JOBMESH_NATS_USER", "u"),
        ("JOBMESH_LLM_KEY", "sk-horse"),
        ("JOBMESH_LLM_URL", "http://127.0.0.1:9/v1?key=horse"),
        ("JOBMESH_CLICKHOUSE_PASSWORD", "clickhorse"),
        ("SOMEBODYS_TOKEN", "horse"),
    ];
    // dev takes the same variables, and says at once that it is refused.
    let data = TempDir::new()?;
    let wrong = [
        ("JOBMESH_NATS_URL", url.clone()),
        ("JOBMESH_NATS_USER", "u".to_owned()),
        ("JOBMESH_NATS_PASSWORD", "horsefly".to_owned()),
    ];
    let listen = crate::mesh::free_address()?.to_string();
    let arguments = ["--listen", &listen, "--data-dir", &shown(data.path())];
    let refused = text(&run("dev", &arguments, &wrong).await?);
    assert!(refused.contains("authorization violation"), "{refused}");
    let mesh = Mesh::start_with_arguments(&["--nats-url", &url], &environment)?;
    let jobs = mesh.enqueue("p", 5).await?;
    let (status, _) = mesh.get(&format!("/api/queue/status/{}?wait=60s", jobs[4])).await?;
    assert_eq!(status, 200);
    assert!(!mesh.logs().contains("horse"), "a log shows a secret");
    for child in mesh.children() {
        let line = fs::read_to_string(format!("/proc/{child}/cmdline"))?;
        assert!(!line.contains("horse"), "the arguments show a secret: {line}");
        let has = fs::read_to_string(format!("/proc/{child}/environ"))?;
        let has = |name: &str| has.split('\0').any(|entry| entry.starts_with(&format!("{name}=")));
        let service = line.split('\0').nth(2).unwrap_or_default().to_owned();
        let is_processor = service == "processor";
        assert_eq!(has("JOBMESH_LLM_KEY"), is_processor, "{service}");
        assert_eq!(has("JOBMESH_LLM_URL"), is_processor, "{service}");
        assert_eq!(has("SOMEBODYS_TOKEN"), is_processor, "{service}");
        // The engine of dev has a password of its own.
        assert!(!has("JOBMESH_CLICKHOUSE_PASSWORD"), "{service}");
        assert_eq!(has("JOBMESH_NATS_PASSWORD"), service != "olap", "{service}");
    }
    let environment = environment.map(|(name, value)| (name, value.to_owned()));
    for service in ["edge", "state", "processor", "metrics", "olap"] {
        let output = run("serve", &[service, "--help"], &environment).await?;
        assert!(output.status.success() && !text(&output).contains("horse"), "{}", text(&output));
    }
    Ok(())
}
