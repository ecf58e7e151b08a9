//! Tickets: event streams for clients that send no headers.

use futures_util::StreamExt;
use reqwest::{Client, Method};
use serde_json::json;

use crate::{
    keys::{ask, create},
    mesh::{Mesh, PATIENCE, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_the_streams_that_its_key_may_open_until_the_key_ends() -> anyhow::Result<()>
{
    let mesh = Mesh::start()?;
    let open = ask(&mesh, &Method::POST, "/api/tickets", None, None).await?;
    assert_eq!((open.status, open.json().get("ticket")), (200, None), "no key is needed yet");
    let (_, admin) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    let reader = json!({ "name": "reader", "scope": "read", "projects": ["own"] });
    let (id, reader) = create(&mesh, Some(&admin), reader).await?;
    until("in force", async || {
        let answer = ask(&mesh, &Method::POST, "/api/tickets", None, None).await?;
        Ok(if answer.status == 401 { Ok(()) } else { Err(format!("{answer:?}")) })
    })
    .await?;
    let made = ask(&mesh, &Method::POST, "/api/tickets", Some(&reader), None).await?.json();
    let ticket = made["ticket"].as_str().expect("a ticket").to_owned();
    let get = async |path: String| ask(&mesh, &Method::GET, &path, None, None).await;
    for (path, status, code) in [
        (format!("/api/queue/events?projectId=other&ticket={ticket}"), 404, "project_not_found"),
        (format!("/api/queue/events?projectId=own&ticket={ticket}0"), 401, "ticket_not_accepted"),
        ("/api/queue/events?projectId=own&ticket=jt_x".to_owned(), 401, "ticket_not_accepted"),
        (format!("/api/queue/stats?projectId=own&ticket={ticket}"), 401, "key_missing"),
        (format!("/api/queue/live?projectId=other&ticket={ticket}"), 404, "project_not_found"),
    ] {
        let answer = get(path.clone()).await?;
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{path}");
    }
    let client = Client::builder().no_proxy().build()?;
    let mut streams = Vec::new();
    for path in ["events", "live"] {
        let url = mesh.url(&format!("/api/queue/{path}?projectId=own&ticket={ticket}"));
        let answer = client.get(url).send().await?;
        assert_eq!(answer.status(), 200);
        let mut stream = answer.bytes_stream();
        assert!(stream.next().await.is_some(), "{path} begins");
        streams.push(stream);
    }
    let body = json!({ "projectId": "own", "batchId": "b" });
    ask(&mesh, &Method::POST, "/api/queue/enqueue", Some(&admin), Some(&body)).await?;
    let mut seen = String::new();
    while !seen.contains("completed") {
        let chunk = tokio::time::timeout(PATIENCE, streams[0].next()).await?;
        seen.push_str(&String::from_utf8_lossy(&chunk.expect("the stream goes on")?));
    }
    let path = format!("/api/keys/{id}");
    assert_eq!(ask(&mesh, &Method::DELETE, &path, Some(&admin), None).await?.status, 200);
    for stream in &mut streams {
        let rest = async { while stream.next().await.is_some() {} };
        tokio::time::timeout(PATIENCE, rest).await?;
    }
    let again = get(format!("/api/queue/events?projectId=own&ticket={ticket}")).await?;
    assert_eq!((again.status, &again.json()["code"]), (401, &json!("ticket_not_accepted")));
    Ok(())
}
