//! Schedules over HTTP, and one that fires by the real clock.

use serde_json::json;

use crate::mesh::{Mesh, until};

const PATH: &str = "/api/projects/p/schedules";

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_set_shown_fires_each_minute_and_is_removed() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let body = json!({
        "cron": "0 9 * * MON", "timeZone": "Europe/Berlin", "batchId": "weekly",
        "maxAttempts": 2, "ifLive": "replace",
    });
    let (status, weekly) = mesh.put_raw(&format!("{PATH}/a.b"), body.to_string()).await?;
    assert_eq!(status, 200, "{weekly}");
    let (_, listed) = mesh.get(PATH).await?;
    assert_eq!(listed["schedules"], json!([weekly["schedule"]]));
    let (_, one) = mesh.get(&format!("{PATH}/a.b")).await?;
    assert_eq!(one["schedule"], weekly["schedule"]);
    refused(&mesh).await?;
    let body = json!({ "cron": "* * * * *", "data": { "text": "tick" }, "priority": 4 });
    let (status, set) = mesh.put_raw(&format!("{PATH}/tick"), body.to_string()).await?;
    assert_eq!(status, 200, "{set}");
    let next = set["schedule"]["nextAt"].as_str().unwrap().to_owned();
    let times = &set["schedule"]["nextTimes"];
    assert_eq!((times.as_array().map(Vec::len), &times[0]), (Some(5), &json!(next)), "{set}");
    let expected = json!({
        "name": "tick", "cron": "* * * * *", "timeZone": "UTC", "batchId": "tick", "priority": 4,
        "data": { "text": "tick" }, "ifLive": "skip", "nextAt": next, "nextTimes": times,
    });
    assert_eq!(set["schedule"], expected);
    until("fired", async || {
        let counts = mesh.counts("p").await?;
        Ok(if counts["completed"].as_u64() >= Some(1) { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    let (_, fired) = mesh.get(&format!("{PATH}/tick")).await?;
    assert_eq!(fired["schedule"]["lastAt"], next);
    let job = mesh.job(fired["schedule"]["lastJobId"].as_str().unwrap()).await?;
    assert_eq!((&job["batchId"], &job["priority"]), (&json!("tick"), &json!(4)));
    assert_eq!(job["data"], json!({ "text": "tick" }));
    assert!(job["createdAt"].as_str().unwrap() >= next.as_str());
    for name in ["tick", "a.b"] {
        let (status, answer) = mesh.delete(&format!("{PATH}/{name}")).await?;
        assert_eq!(status, 200, "{answer}");
        let (status, answer) = mesh.delete(&format!("{PATH}/{name}")).await?;
        assert_eq!((status, &answer["code"]), (404, &json!("schedule_not_found")));
    }
    assert_eq!(mesh.get(PATH).await?.1["schedules"], json!([]));
    Ok(())
}

async fn refused(mesh: &Mesh) -> anyhow::Result<()> {
    for (body, names) in [
        (json!({}), "cron"),
        (json!({ "cron": 5 }), "cron"),
        (json!({ "cron": "* * * *" }), "five"),
        (json!({ "cron": ", * * * *" }), "cron"),
        (json!({ "cron": "* , * * *" }), "cron"),
        (json!({ "cron": "0 0 31 2 *" }), "never"),
        (json!({ "cron": "* * * * *", "timeZone": "Mars" }), "timeZone"),
        (json!({ "cron": "* * * * *", "batchId": "" }), "batchId"),
        (json!({ "cron": "* * * * *", "priority": 1001 }), "priority"),
        (json!({ "cron": "* * * * *", "maxAttempts": 0 }), "maxAttempts"),
        (json!({ "cron": "* * * * *", "data": [] }), "data"),
        (json!({ "cron": "* * * * *", "ifLive": "wait" }), "ifLive"),
        (json!({ "cron": "* * * * *", "every": 5 }), "every"),
    ] {
        let (status, answer) = mesh.put_raw(&format!("{PATH}/bad"), body.to_string()).await?;
        assert_eq!((status, &answer["success"]), (400, &json!(false)), "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(names), "{body}: {answer}");
    }
    let (status, answer) = mesh.get(&format!("{PATH}/bad")).await?;
    assert_eq!((status, &answer["code"]), (404, &json!("schedule_not_found")));
    Ok(())
}
