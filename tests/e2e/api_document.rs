//! The document of the API, and whether the edge keeps to it.

use serde_json::Value;

use crate::{clients::Client, mesh::Mesh};

/// What is asked of every answer, to requests that are right and to such as are not.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,negative_data_rejection,\
    unsupported_method";

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_keeps_to_its_document_and_shows_it_to_people() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[("JOBMESH_HANDLERS", "process_batch=noop,process_redo=noop")])?;
    let document = mesh.get("/openapi.json").await?.1;
    let kept: Value = serde_json::from_str(include_str!("../../docs/openapi.json"))?;
    assert!(document == kept, "docs/openapi.json is another document");
    let page = mesh.follow("/docs/").await?.text().await?;
    assert!(page.contains("swagger-ui"), "{page}");
    for link in ["swagger-ui-bundle.js", "swagger-ui.css", "swagger-initializer.js"] {
        let text = mesh.follow(&format!("/docs/{link}")).await?.text().await?;
        assert!(!text.is_empty(), "{link}");
        // The page is whole by itself: nothing of it comes from elsewhere.
        assert!(!page.contains("src=\"http") && !page.contains("href=\"http"), "{page}");
    }
    // Streams without an end are tested elsewhere.
    let (kept, said) = Client::schemathesis(&[
        "run",
        &mesh.url("/openapi.json"),
        "--exclude-path=/api/queue/events",
        "--exclude-path=/api/queue/live",
        "--phases=examples,coverage,fuzzing",
        "--max-examples=25",
        "--seed=1",
        // Other tests share the cores.
        "--request-timeout=60",
        "--checks",
        CHECKS,
        "--no-color",
    ])?;
    assert!(kept, "{said}");
    let cases = said.lines().find(|line| line.contains("generated")).unwrap_or_default();
    println!("schemathesis: {}", cases.trim());
    Ok(())
}
