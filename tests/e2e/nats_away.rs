//! Services without NATS: they stop on a signal, and an invalid address ends them with a message.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    mesh::{free_address, send, until},
    services::{ROLES, Services},
};

const SIGTERM: i32 = 15;
const SIGSTOP: i32 = 19;
/// How long a service without work may take to stop.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// Stops all services at once, and checks how they end.
async fn stop_all(services: &mut Services, within: Duration) -> anyhow::Result<()> {
    let told_at = Instant::now();
    for role in ROLES {
        services.signal(role, SIGTERM)?;
    }
    for role in ROLES {
        let mut ended = None;
        until("stopped", async || {
            ended = services.ended(role)?;
            Ok(if ended.is_some() { Ok(()) } else { Err(services.log(role)) })
        })
        .await?;
        let took = told_at.elapsed();
        println!("{role} had stopped {took:?} after SIGTERM: {ended:?}");
        assert!(ended.is_some_and(|status| status.success()), "{role}: {ended:?}");
        assert!(took < within, "{role} took {took:?}:\n{}", services.log(role));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_stops_while_nats_is_away() -> anyhow::Result<()> {
    let mut services = Services::start(1, &[("JOBMESH_HANDLERS", "process_batch=noop")]).await?;
    services.cluster.kill(0)?;
    for role in ROLES {
        until("without NATS", async || {
            let log = services.log(role);
            let is_lost = log.contains("connection to NATS lost");
            Ok(if is_lost { Ok(()) } else { Err(format!("{role}: {log}")) })
        })
        .await?;
    }
    stop_all(&mut services, STOPS_WITHIN).await
}

/// A server that is frozen keeps its connections, and answers nothing on them.
#[tokio::test(flavor = "multi_thread")]
async fn each_service_stops_while_nats_does_not_answer() -> anyhow::Result<()> {
    let mut services = Services::start(1, &[("JOBMESH_HANDLERS", "process_batch=noop")]).await?;
    send(services.cluster.id(0), SIGSTOP)?;
    stop_all(&mut services, 2 * STOPS_WITHIN).await
}

/// A server that was never there.
#[tokio::test(flavor = "multi_thread")]
async fn each_service_stops_before_nats_was_there() -> anyhow::Result<()> {
    let url = format!("nats://{}", free_address()?);
    for role in ROLES {
        let mut service = Command::new(env!("CARGO_BIN_EXE_tests"))
            .args(["serve", role, "--nats-url", &url])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(service.stderr.take().expect("it is piped")).lines();
        let is_waiting = log.any(|line| line.is_ok_and(|line| line.contains("not reachable")));
        assert!(is_waiting, "{role} ended instead of waiting");
        let told_at = Instant::now();
        send(service.id(), SIGTERM)?;
        let ended = service.wait()?;
        assert!(ended.success() && told_at.elapsed() < STOPS_WITHIN, "{role}: {ended:?}");
    }
    Ok(())
}

#[test]
fn an_address_that_is_none_ends_the_service_with_a_message() -> anyhow::Result<()> {
    for (url, part) in [
        ("http://127.0.0.1:4222", "http"),
        ("nats://", "host"),
        ("nats://127.0.0.1:99999", "port"),
        ("nats://127.0.0.1:4222,redis://127.0.0.1", "number 2"),
        (",", "empty"),
    ] {
        for role in ROLES {
            let mut service = Command::new(env!("CARGO_BIN_EXE_tests"))
                .args(["serve", role, "--nats-url", url])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let asked_at = Instant::now();
            while service.try_wait()?.is_none() {
                if asked_at.elapsed() > STOPS_WITHIN {
                    service.kill()?;
                }
                std::thread::yield_now();
            }
            let output = service.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{role} with {url:?}: {text}");
            assert!(text.contains(part), "{role} with {url:?} does not say {part}: {text}");
        }
    }
    Ok(())
}
