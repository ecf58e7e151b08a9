//! What was measured, as a table.

use std::{fmt::Write, time::Duration};

use super::{
    CONCURRENCY, DATA_BYTES,
    load::Latencies,
    mesh::{Cpu, Mesh},
};

/// The rows of the table.
#[derive(Default)]
pub struct Report {
    rows: Vec<[String; 3]>,
}

impl Report {
    /// A rate, in jobs a second.
    pub fn rate(&mut self, what: &str, per_second: f64) {
        self.row(what, format!("{per_second:.0}/s"), String::new());
    }

    /// A rate, in jobs a second, and what it should be at the least.
    pub fn rate_goal(&mut self, what: &str, per_second: f64, goal: f64) {
        let met = if per_second >= goal { "met" } else { "not met" };
        self.row(what, format!("{per_second:.0}/s"), format!("{goal:.0}/s at least: {met}"));
    }

    /// A ratio, and what it should be at the least.
    pub fn ratio(&mut self, what: &str, ratio: f64, goal: f64) {
        let met = if ratio >= goal { "met" } else { "not met" };
        self.row(what, format!("{ratio:.2}"), format!("{goal:.2} at least: {met}"));
    }

    /// A time, and what it should be at the most.
    pub fn seconds(&mut self, what: &str, took: Duration, goal: Option<f64>) {
        let seconds = took.as_secs_f64();
        let goal = goal.map(|goal| {
            let met = if seconds <= goal { "met" } else { "not met" };
            format!("{goal:.0} s at most: {met}")
        });
        self.row(what, format!("{seconds:.1} s"), goal.unwrap_or_default());
    }

    /// How long answers took.
    pub fn latency(&mut self, what: &str, times: &Latencies) {
        let [p50, p99] = [0.5, 0.99].map(|share| times.quantile(share));
        self.row(what, format!("p50 {p50:.2} ms, p99 {p99:.2} ms"), String::new());
    }

    /// What each process took of the cores for a job, between two looks.
    pub fn cpu(&mut self, what: &str, before: &Cpu, after: &Cpu, jobs: usize) {
        for (name, micros) in after {
            let since = before.iter().find(|(known, _)| known == name).map_or(0, |(_, at)| *at);
            let each = micros.saturating_sub(since) as f64 / jobs as f64;
            self.row(
                &format!("{what}, time of {name}"),
                format!("{each:.0} us a job"),
                String::new(),
            );
        }
    }

    /// Something that is no number.
    pub fn note(&mut self, what: &str, text: &str) {
        self.row(what, text.to_owned(), String::new());
    }

    /// The rows as JSON.
    pub fn json(&self) -> String {
        let rows = self.rows.iter().map(
            |[what, found, goal]| serde_json::json!({ "what": what, "found": found, "goal": goal }),
        );
        serde_json::Value::Array(rows.collect()).to_string()
    }

    /// The memory of each service.
    pub fn rss(&mut self, when: &str, mesh: &Mesh) -> anyhow::Result<()> {
        for (service, mb) in mesh.rss_mb()? {
            self.row(&format!("memory of {service}, {when}"), format!("{mb} MB"), String::new());
        }
        Ok(())
    }

    /// The memory of one service, and what it should be at the most.
    pub fn rss_goal(
        &mut self,
        service: &str,
        when: &str,
        mesh: &Mesh,
        goal_mb: u64,
    ) -> anyhow::Result<()> {
        for (name, mb) in mesh.rss_mb()?.into_iter().filter(|(name, _)| name == service) {
            let met = if mb <= goal_mb { "met" } else { "not met" };
            let what = format!("memory of {name}, {when}, after all of the above");
            self.row(&what, format!("{mb} MB"), format!("{goal_mb} MB at most: {met}"));
        }
        Ok(())
    }

    fn row(&mut self, what: &str, found: String, goal: String) {
        eprintln!("{what}: {found} {goal}");
        self.rows.push([what.to_owned(), found, goal]);
    }

    /// The table, with what it was made on.
    pub fn markdown(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let mut text = format!(
            "{cores} cores, everything on one machine, durability `fast` (fsync each second), \
             jobs of {DATA_BYTES} bytes that do nothing, {CONCURRENCY} at once.\n\n\
             | what | found | goal |\n|---|---|---|\n"
        );
        for [what, found, goal] in &self.rows {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {what} | {found} | {goal} |");
        }
        text
    }
}
