//! What measurements cost: the whole life of jobs without and with them, on two meshes in turn.

use std::time::Duration;

use super::{
    LIFE_JOBS,
    client::Client,
    drain, median_by,
    mesh::{Durability, Mesh},
    report::Report,
};

/// Pairs of measurements, one without and one with.
const PAIRS: usize = 7;
/// How often the measurements are read: more often than Prometheus does by default.
const READ_EVERY: Duration = Duration::from_secs(1);

/// Measures the whole life of jobs without measurements and with them.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let plain = Mesh::start(Durability::Fast).await?;
    let measured = Mesh::start_with(Durability::Fast, &["--metrics"]).await?;
    let mut reading = tokio::task::JoinSet::new();
    for address in measured.measured()? {
        reading.spawn(async move {
            loop {
                // A service that restarts does not answer.
                let _ = read(&Client::new(address.clone())).await;
                tokio::time::sleep(READ_EVERY).await;
            }
        });
    }
    let mut round = 0;
    let mut life = async |mesh: &Mesh| {
        round += 1;
        anyhow::Ok(drain::whole_life(mesh, &format!("observed-{round}"), LIFE_JOBS).await?.rate)
    };
    let mut pairs = Vec::new();
    for n in 0..PAIRS {
        // Each side comes first as often as second: the machine is not the same for long.
        pairs.push(if n % 2 == 0 {
            (life(&plain).await?, life(&measured).await?)
        } else {
            let rate = life(&measured).await?;
            (life(&plain).await?, rate)
        });
    }
    let (without, with) = median_by(pairs, |(without, with)| with / without);
    report.rate("whole life, without measurements", without);
    report.rate("whole life, with measurements, median ratio of seven", with);
    report.ratio("whole life with measurements against without", Some(with), Some(without), 0.98);
    reading.shutdown().await;
    plain.stop().await?;
    measured.stop().await
}

/// Reads the measurements of one service.
async fn read(service: &Client) -> anyhow::Result<()> {
    service.connect().await?.ask("GET", "/metrics", "").await?;
    Ok(())
}
