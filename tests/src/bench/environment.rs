//! The machine and the programs of a run.

use std::{fs, io::Write, time::Instant};

use super::{
    CONCURRENCY, DATA_BYTES, FSYNC_BYTES, FSYNCS, ROUNDS, load::Latencies, mesh::Mesh,
    peers::Peers, report::Report,
};

/// Reports the machine, the broker, the engine, the disk and the peers.
pub fn describe(report: &mut Report, mesh: &Mesh, peers: Option<&Peers>) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim_start_matches([':', ' ', '\t']).trim().to_owned()
    };
    let processor = field(&read("/proc/cpuinfo"), "model name");
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory = memory.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() >> 20;
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    report.labels("machine", format!("{cores} cores ({processor}), {memory} GB, Linux {kernel}"));
    report.labels(
        "broker and engine",
        format!("{}, chDB {}", mesh.nats_version()?, fetch::CHDB_VERSION),
    );
    let disk = fsync_times()?;
    let [p50, p99] = [0.5, 0.99].map(|share| disk.quantile(share));
    report.labels(
        "disk",
        format!("a write of {FSYNC_BYTES} bytes and its sync: p50 {p50:.2} ms, p99 {p99:.2} ms"),
    );
    if let Some(peers) = peers {
        report.labels("peers", peers.versions()?);
    }
    report.labels(
        "work",
        format!(
            "jobs of {DATA_BYTES} bytes, text without a pattern, the same for the same batch; \
             their handler does nothing; {CONCURRENCY} at once; everything on this machine; rates that \
             are compared, and pickup times, are medians of {ROUNDS}"
        ),
    );
    Ok(())
}

/// How long the disk takes to have a small write, in ms.
fn fsync_times() -> anyhow::Result<Latencies> {
    let mut file = tempfile::tempfile()?;
    let mut times = Vec::new();
    for _ in 0..FSYNCS {
        let started = Instant::now();
        file.write_all(&[b'x'; FSYNC_BYTES])?;
        file.sync_data()?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Latencies::new(times))
}
