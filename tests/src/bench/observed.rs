//! What measurements and traces cost: the whole life of jobs without and with them, on meshes in turn.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use super::{
    LIFE_JOBS, drain, median_by,
    mesh::{Durability, Mesh},
    report::Report,
};

/// Pairs of measurements, one without and one with.
const PAIRS: usize = 7;

/// Measures the whole life of jobs without measurements and traces, and with both.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let collector = take_spans()?;
    let plain = Mesh::start(Durability::Fast).await?;
    let measured = Mesh::start_with(Durability::Fast, &["--metrics"], &[]).await?;
    let otlp = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.as_str())];
    let traced = Mesh::start_with(Durability::Fast, &[], &otlp).await?;
    let mut round = 0;
    let mut life = async |mesh: &Mesh| {
        round += 1;
        anyhow::Ok(drain::whole_life(mesh, &format!("observed-{round}"), LIFE_JOBS).await?.rate)
    };
    for (what, observed, least) in [
        ("measurements", &measured, 0.98),
        ("traces of all requests, many jobs each", &traced, 0.9),
    ] {
        let mut pairs = Vec::new();
        for n in 0..PAIRS {
            // Each side comes first as often as second: the machine is not the same for long.
            pairs.push(if n % 2 == 0 {
                (life(&plain).await?, life(observed).await?)
            } else {
                let rate = life(observed).await?;
                (life(&plain).await?, rate)
            });
        }
        let (without, with) = median_by(pairs, |(without, with)| with / without);
        report.rate(&format!("whole life, without {what}"), without);
        report.rate(&format!("whole life, with {what}, median ratio of seven"), with);
        let what = format!("whole life with {what} against without");
        report.ratio(&what, Some(with), Some(without), least);
    }
    for mesh in [plain, measured, traced] {
        mesh.stop().await?;
    }
    Ok(())
}

/// A collector that takes spans and looks at none; returns its address.
fn take_spans() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || take(stream));
        }
    });
    Ok(url)
}

/// Answers every request of a connection with 200.
fn take(mut stream: TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let (mut bytes, mut chunk) = (Vec::new(), [0; 65_536]);
    loop {
        let read = stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&chunk[..read]);
        let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.and_then(|length| length.trim().parse().ok())?;
        if bytes.len() >= head + 4 + length {
            bytes.drain(..head + 4 + length);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
        }
    }
}
