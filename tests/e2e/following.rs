//! Changes of jobs as server-sent events.

use serde_json::Value;

use crate::mesh::Mesh;

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_of_a_project_hears_of_each_change_of_its_jobs_once() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let mut stream = mesh.follow("/api/queue/events?projectId=mine").await?;
    mesh.enqueue("theirs", 3).await?;
    let jobs = mesh.enqueue("mine", 20).await?;
    let mut text = String::new();
    while text.matches("event: completed").count() < jobs.len() {
        let chunk = tokio::time::timeout(crate::mesh::PATIENCE, stream.chunk()).await??;
        text.push_str(std::str::from_utf8(&chunk.expect("the stream goes on"))?);
    }
    let mut last = (0, 0);
    let mut heard = Vec::new();
    for event in text.split("\n\n").filter(|event| event.starts_with("id:")) {
        let field = |name: &str| {
            let line = event.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let id = field("id:");
        let (sequence, index) = id.split_once('.').unwrap();
        let position: (u64, u32) = (sequence.parse()?, index.parse()?);
        assert!(position > last, "{position:?} comes after {last:?}");
        last = position;
        let data: Value = serde_json::from_str(&field("data:"))?;
        assert_eq!(
            (&data["projectId"], &data["status"]),
            (&"mine".into(), &field("event:").into())
        );
        heard.push((data["jobId"].as_str().unwrap().to_owned(), field("event:")));
    }
    for job in &jobs {
        let steps = heard.iter().filter(|(id, _)| id == job).map(|(_, status)| status.as_str());
        let steps: Vec<&str> = steps.collect();
        // An outcome implies that the run started: the word of the start may come too late.
        let whole = steps == ["queued", "processing", "completed"];
        assert!(whole || steps == ["queued", "completed"], "{steps:?}");
    }
    Ok(())
}
