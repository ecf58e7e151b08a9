//! `bench`: measures meshes of its own as their users meet them, beside what the broker could do
//! and beside other queues, and prints the tables that docs/benchmark.md shows. Its figures are
//! those of one run on one machine; what can be compared with another machine's are their ratios.

mod ceiling;
mod client;
mod compare;
mod crowd;
mod drain;
mod environment;
mod gauge;
mod keys;
mod load;
mod mesh;
mod observed;
mod options;
mod parts;
mod peers;
pub mod pickup;
mod report;
mod requests;
mod rows;
mod scale;

use std::{fs, process::ExitCode, time::Duration};

use anyhow::Context;

use compare::compare;
use drain::Drained;
use gauge::{Gauge, Traffic};
use load::Latencies;
use mesh::{Durability, Mesh, Usage};
use options::{Options, USAGE};
use peers::Peers;
use report::{Goal, Report};

/// Runs of everything that is compared with others; the median counts.
const ROUNDS: usize = 3;
/// Jobs of each drain that is measured beside others.
const DRAIN_JOBS: usize = 100_000;
/// The numbers of slots of small processors, and the jobs of each of three drains with them.
const SLOTS: [(usize, usize); 2] = [(1, 2_000), (8, 8_000)];
/// Jobs of a drain that is measured beside another of ours.
const PART_JOBS: usize = 40_000;
/// Jobs of one drain behind a backlog: enough to reach all of the broker's blocks.
const BEHIND_DRAIN_JOBS: usize = 50_000;
/// Jobs that are enqueued one by one, by each number of callers.
const SINGLES: [(usize, usize); 4] = [(1, 2_000), (16, 10_000), (64, 20_000), (256, 20_000)];
/// The callers whose rate is compared with a peer's, and its jobs.
const PEER_CALLERS: usize = 64;
const PEER_SINGLES: usize = 20_000;
/// Jobs that are enqueued and run at the same time, to their rows in ClickHouse.
const LIFE_JOBS: usize = 100_000;
/// Jobs whose pickup is timed, and how often one is enqueued.
const PICKUP_JOBS: usize = 1_000;
/// Jobs before them, which warm up the mesh and the engine.
const PICKUP_WARM_JOBS: usize = 400;
const PICKUP_EVERY: Duration = Duration::from_millis(5);
/// How often a job is enqueued while answers are timed, and how often one is asked for.
const UNDER_LOAD_EVERY: Duration = Duration::from_millis(5);
/// Jobs that are cancelled, and queued again, by one request.
const MANY_JOBS: usize = 100_000;
/// Followers of events while answers are timed.
const FOLLOWERS: usize = 200;
/// Followers of a batch each while jobs are drained.
const BATCH_FOLLOWERS: usize = 2_000;
/// How long answers are timed.
const TIMED: Duration = Duration::from_secs(5);
/// Jobs of one enqueue beside a backlog.
const ENQUEUE_JOBS: usize = 100_000;
/// Jobs of one request.
const REQUEST_JOBS: usize = 1_000;
/// Requests at the same time.
const CALLERS: usize = 4;
/// Jobs that a processor runs at once.
const CONCURRENCY: usize = 256;
/// Bytes of each job's data.
const DATA_BYTES: usize = 256;
/// The number of projects in the parts with many.
const PROJECTS: usize = 1_000;
/// The worker's name when only the bare loops run.
const BARE: [&str; 2] = ["nats-server", "the client"];
/// How many jobs wait in the small backlog.
const SMALL_BACKLOG_JOBS: usize = 10_000;
/// How many jobs wait in the medium backlog.
const MEDIUM_BACKLOG_JOBS: usize = 100_000;
/// Writes that are synced to know the disk, and their size.
const FSYNCS: usize = 500;
const FSYNC_BYTES: usize = 512;
/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// The page with the tables.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmark.md");
const PAGE_BEGIN: &str = "<!-- what `bench --write` found -->\n";
const PAGE_END: &str = "<!-- end -->\n";
const JSON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmark.json");

/// Runs the benchmark with the arguments behind its name.
pub fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(2)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("bench: {error}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let report = runtime.block_on(run(&options))?;
        println!("{}", report.markdown());
        keep(&options, &report)
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn keep(options: &Options, report: &Report) -> anyhow::Result<()> {
    let json = format!("{:#}\n", report.json());
    if let Some(file) = &options.json {
        fs::write(file, &json)?;
    }
    if options.write {
        let page = fs::read_to_string(PAGE)?;
        let (before, rest) = page.split_once(PAGE_BEGIN).context("the page has a place")?;
        let (_, after) = rest.split_once(PAGE_END).context("the place has an end")?;
        fs::write(PAGE, format!("{before}{PAGE_BEGIN}\n{}\n{PAGE_END}{after}", report.markdown()))?;
        fs::write(JSON, &json)?;
    }
    Ok(())
}

/// What a mesh did, as far as it is compared with others.
#[derive(Default)]
struct Ours {
    bulk: Option<f64>,
    single: Option<f64>,
    drain: Option<f64>,
    life: Option<f64>,
    /// The drains with few slots, in the order of [`SLOTS`].
    slots: Vec<f64>,
    pickup: Option<Latencies>,
    /// What enqueueing and draining moved through the broker.
    traffic: Option<(Traffic, Traffic)>,
}

async fn run(options: &Options) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let peers = if options.has("peers") { Peers::install()? } else { None };
    if options.has("peers") && peers.is_none() {
        report.missing("BullMQ and graphile-worker were not measured: npm or node is missing");
    }
    let mesh = Mesh::start(Durability::Fast).await?;
    environment::describe(&mut report, &mesh, peers.as_ref())?;
    report.section("Synced each second (`fast`)");
    let processor = mesh.start_processor()?;
    mesh.until_processor(PATIENCE).await?;
    report.memory("idle", &mesh.usage(Some(&processor))?, [None, Some(80.0)]);
    processor.stop().await?;
    // First, on a mesh at rest: what comes later leaves work behind for its broker and its engine.
    let pickup = time_pickup(&mesh, options, Durability::Fast, &mut report).await?;
    if options.has("answers") {
        parts::answers(&mesh, &mut report).await?;
    }
    let ours = Ours { pickup, ..measure(&mesh, options, &mut report).await? };
    compare_with_bare_loops(&mesh, &ours, &mut report)?;
    if options.has("answers") {
        parts::followed(&mesh, &mut report).await?;
    }
    if options.has("many") {
        report.section("Many jobs by one request");
        parts::many(&mesh, &mut report).await?;
    }
    if options.has("projects") {
        report.section("Limits and projects");
        parts::projects(&mesh, &mut report).await?;
    }
    if options.has("backlog") {
        report.section("Backlogs");
        parts::backlog(&mesh, options.backlog, &mut report).await?;
    }
    if options.has("requests") {
        report.section("The worst requests");
        requests::measure(&mesh, &mut report).await?;
    }
    // Once more: no row came twice since.
    check(&mesh, options).await?;
    mesh.stop().await?;
    if options.has("keys") {
        report.section("API keys");
        keys::measure(&mut report).await?;
    }
    if options.has("observed") {
        report.section("Measurements");
        observed::measure(&mut report).await?;
    }
    if options.has("crowd") {
        report.section("Many connections, and a project beyond its limits");
        crowd::measure(&mut report).await?;
    }
    if options.has("rows") {
        report.section("Twenty million rows");
        rows::measure(&mut report).await?;
    }
    if options.has("replicas") {
        report.section("Copies on three servers");
        scale::replicas(&mut report).await?;
    }
    if options.has("followers") {
        report.section("Many edges and processors");
        scale::followers(&mut report).await?;
    }
    report.section("Other queues, synced each second");
    compare(&ours, peers.as_ref(), Durability::Fast, &mut report)?;

    if options.has("always") {
        report.section("Synced before each ack (`always`)");
        let mesh = Mesh::start(Durability::Always).await?;
        let pickup = time_pickup(&mesh, options, Durability::Always, &mut report).await?;
        let ours = Ours { pickup, ..measure(&mesh, options, &mut report).await? };
        check(&mesh, options).await?;
        mesh.stop().await?;
        report.section("Other queues, synced before each answer");
        compare(&ours, peers.as_ref(), Durability::Always, &mut report)?;
    }
    Ok(report)
}

/// Runs the bare loops with the traffic of a mesh, and reports what share of their rates it reaches.
fn compare_with_bare_loops(mesh: &Mesh, ours: &Ours, report: &mut Report) -> anyhow::Result<()> {
    let Some((enqueue, drain)) = &ours.traffic else { return Ok(()) };
    let mut runs = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let bare = ceiling::measure(mesh, DRAIN_JOBS, enqueue, drain)?;
        for (runs, run) in runs.iter_mut().zip([bare.bulk, bare.drain, bare.life]) {
            runs.push(run);
        }
    }
    let ours = [("bulk enqueue", ours.bulk), ("drain", ours.drain), ("whole life", ours.life)];
    for ((what, ours), runs) in ours.into_iter().zip(runs) {
        let bare = median_by(runs, |run| run.rate);
        let [before, after] = &bare.usage;
        // The broker, and the loops themselves.
        let busy: Vec<Usage> =
            after.iter().filter(|it| BARE.contains(&it.name.as_str())).cloned().collect();
        report.rate(&format!("{what}, bare loops"), bare.rate);
        report.usage(&format!("{what}, bare loops"), before, &busy, DRAIN_JOBS);
        report.ratio(&format!("{what} against the bare loops"), ours, Some(bare.rate), 0.5);
    }
    Ok(())
}

/// Checks that each accepted job ended once.
async fn check(mesh: &Mesh, options: &Options) -> anyhow::Result<()> {
    let singles = |round: usize| -> usize {
        let measured = SINGLES.iter().filter(|(callers, _)| round < rounds_of(*callers));
        measured.map(|(callers, jobs)| jobs / callers * callers).sum()
    };
    let mut projects = vec![(
        "slots",
        "slots".to_owned(),
        ROUNDS * SLOTS.iter().map(|(_, jobs)| jobs).sum::<usize>(),
    )];
    for round in 0..ROUNDS {
        projects.extend([
            ("life", of_round("bulk", round), DRAIN_JOBS),
            ("life", of_round("life", round), LIFE_JOBS),
            ("singles", of_round("single", round), singles(round)),
            ("pickup", of_round("pickup", round), PICKUP_WARM_JOBS + PICKUP_JOBS),
        ]);
    }
    for (_, project, jobs) in projects.iter().filter(|(part, ..)| options.has(part)) {
        mesh.check_once(project, *jobs as u64).await?;
    }
    Ok(())
}

/// How long jobs wait for their handlers, one by one.
async fn time_pickup(
    mesh: &Mesh,
    options: &Options,
    how: Durability,
    report: &mut Report,
) -> anyhow::Result<Option<Latencies>> {
    if !options.has("pickup") {
        return Ok(None);
    }
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let project = of_round("pickup", round);
        rounds.push(pickup::measure(mesh, &project).await?);
        mesh.check_once(&project, (PICKUP_WARM_JOBS + PICKUP_JOBS) as u64).await?;
    }
    let times = median_by(rounds, |times| times.quantile(0.99));
    let goals = match how {
        Durability::Fast => [1.0, 4.0],
        Durability::Always => [3.0, 8.0],
    };
    let goals = goals.map(|ms| Some(Goal::AtMost(ms)));
    report.latency(&format!("pickup, `{}`", how.name()), &times, goals);
    Ok(Some(times))
}

/// What else is measured of each durability: enqueue, drain, whole life, singles.
async fn measure(mesh: &Mesh, options: &Options, report: &mut Report) -> anyhow::Result<Ours> {
    let mut ours = Ours::default();
    if options.has("life") {
        let (mut bulk, mut drains, mut lives) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (before, gauge) = (mesh.usage(None)?, Gauge::start(mesh.nats_url()).await?);
            let project = of_round("bulk", round);
            let rate = load::bulk(mesh.client(), &[&project], DRAIN_JOBS).await?;
            bulk.push(Drained { rate, usage: [before, mesh.usage(None)?] });
            let enqueue = gauge.end(DRAIN_JOBS, 0).await?;
            let gauge = Gauge::start(mesh.nats_url()).await?;
            let (drained, work_bytes) =
                tokio::try_join!(drain::all(mesh, DRAIN_JOBS), gauge.work_bytes())?;
            drains.push(drained);
            ours.traffic = Some((enqueue, gauge.end(DRAIN_JOBS, work_bytes).await?));
            mesh.check_once(&project, DRAIN_JOBS as u64).await?;
            let project = of_round("life", round);
            lives.push(drain::whole_life(mesh, &project, LIFE_JOBS).await?);
            mesh.check_once(&project, LIFE_JOBS as u64).await?;
        }
        for (what, runs, rate) in [
            ("enqueue, in requests of 1,000", bulk, &mut ours.bulk),
            ("drain", drains, &mut ours.drain),
            ("whole life: enqueue and drain, to the row in ClickHouse", lives, &mut ours.life),
        ] {
            let run = median_by(runs, |run| run.rate);
            report.rate(what, run.rate);
            report.usage(what, &run.usage[0], &run.usage[1], DRAIN_JOBS);
            *rate = Some(run.rate);
        }
    }
    if options.has("singles") {
        for (callers, jobs) in SINGLES {
            let mut runs = Vec::new();
            for round in 0..rounds_of(callers) {
                let before = mesh.usage(None)?;
                let project = of_round("single", round);
                let (rate, times) = load::singles(mesh.client(), &project, callers, jobs).await?;
                runs.push((rate, times, [before, mesh.usage(None)?]));
            }
            let (rate, times, [before, after]) = median_by(runs, |run| run.0);
            let what = format!("enqueue one by one, {callers} callers");
            report.rate(&what, rate);
            report.latency(&what, &times, [None; 2]);
            if callers == PEER_CALLERS {
                ours.single = Some(rate);
                report.usage(&what, &before, &after, jobs);
            }
        }
        mesh.drain_rest().await?;
    }
    if options.has("slots") {
        for (slots, jobs) in SLOTS {
            let mut rates = Vec::new();
            for _ in 0..ROUNDS {
                load::bulk(mesh.client(), &["slots"], jobs).await?;
                rates.push(drain::some(mesh, jobs, slots).await?.rate);
            }
            let rate = median_by(rates, |rate| *rate);
            report.rate(&format!("drain, {}, median of three", compare::of_slots(slots)), rate);
            ours.slots.push(rate);
        }
    }
    Ok(ours)
}

/// The middle one of an odd number of runs.
fn median_by<T>(mut runs: Vec<T>, value: impl Fn(&T) -> f64) -> T {
    runs.sort_by(|one, other| value(one).total_cmp(&value(other)));
    runs.swap_remove(runs.len() / 2)
}

/// How often the enqueue by so many callers is measured: more than once where it is compared.
fn rounds_of(callers: usize) -> usize {
    if callers == PEER_CALLERS { ROUNDS } else { 1 }
}

/// The project of a round: each round is checked for itself.
fn of_round(part: &str, round: usize) -> String {
    format!("{part}-{round}")
}
