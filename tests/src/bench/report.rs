//! What was measured, as tables and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{load::Latencies, mesh::Usage};

/// What a value should be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// One row.
struct Row {
    section: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
    goal: Option<Goal>,
}

/// All rows, by section.
#[derive(Default)]
pub struct Report {
    section: &'static str,
    labels: Vec<(String, String)>,
    rows: Vec<Row>,
    missing: Vec<String>,
}

impl Report {
    /// What all of it was measured with.
    pub fn labels(&mut self, what: &str, text: impl Into<String>) {
        self.labels.push((what.to_owned(), text.into()));
    }

    /// Begins a section.
    pub fn section(&mut self, name: &'static str) {
        eprintln!("# {name}");
        self.section = name;
    }

    /// A rate, in jobs a second.
    pub fn rate(&mut self, what: &str, per_second: f64) {
        self.row(what, per_second, "jobs/s", None);
    }

    /// A rate, in jobs a second, and what it should be.
    pub fn rate_goal(&mut self, what: &str, per_second: f64, goal: Goal) {
        self.row(what, per_second, "jobs/s", Some(goal));
    }

    /// One rate against another, and what that should be; nothing where one was not measured.
    pub fn ratio(&mut self, what: &str, ours: Option<f64>, other: Option<f64>, least: f64) {
        if let (Some(ours), Some(other)) = (ours, other) {
            self.row(what, ours / other, "x", Some(Goal::AtLeast(least)));
        }
    }

    /// One rate against another, without a goal.
    pub fn share(&mut self, what: &str, ours: f64, other: f64) {
        self.row(what, ours / other, "x", None);
    }

    /// What a process took: percents of one core, and its memory in MB.
    pub fn process(&mut self, what: &str, core_percent: f64, memory_mb: u64) {
        self.row(what, core_percent, "% of a core", None);
        self.row(what, memory_mb as f64, "MB", None);
    }

    /// A time, in seconds.
    pub fn seconds(&mut self, what: &str, took: std::time::Duration, goal: Option<Goal>) {
        self.row(what, took.as_secs_f64(), "s", goal);
    }

    /// A time, in milliseconds.
    pub fn ms(&mut self, what: &str, ms: f64, goal: Option<Goal>) {
        self.row(what, ms, "ms", goal);
    }

    /// How long answers took, and what their p50 and p99 should be.
    pub fn latency(&mut self, what: &str, times: &Latencies, goals: [Option<Goal>; 2]) {
        for ((name, share), goal) in [("p50", 0.5), ("p99", 0.99)].into_iter().zip(goals) {
            self.row(&format!("{what}, {name}"), times.quantile(share), "ms", goal);
        }
    }

    /// How long answers took, and what the slowest of them should be.
    pub fn latencies(&mut self, what: &str, times: &Latencies, slowest: Option<Goal>) {
        self.latency(what, times, [None; 2]);
        self.row(&format!("{what}, slowest"), times.quantile(1.0), "ms", slowest);
    }

    /// What each process took for a job, between two looks.
    pub fn usage(&mut self, what: &str, before: &[Usage], after: &[Usage], jobs: usize) {
        let mut written = 0;
        for now in after {
            let known = before.iter().find(|known| known.name == now.name);
            let since = known.cloned().unwrap_or_default();
            let each = now.cpu_us.saturating_sub(since.cpu_us) as f64 / jobs as f64;
            self.row(&format!("{what}, time of {}", now.name), each, "us/job", None);
            written += now.written.saturating_sub(since.written);
        }
        let each = written as f64 / jobs as f64;
        self.row(&format!("{what}, written to the disk by all"), each, "bytes/job", None);
    }

    /// The memory of each process, and of our services together; the goals are those of state and of all.
    pub fn memory(&mut self, when: &str, usage: &[Usage], goals: [Option<f64>; 2]) {
        let ([state_goal, goal], mut sum) = (goals, 0);
        for Usage { name, rss_mb, .. } in usage {
            // Those are not ours: ClickHouse's engine, the broker, and the measuring.
            if !["olap", "nats-server", "the client"].contains(&name.as_str()) {
                sum += rss_mb;
            }
            if name != "the client" {
                let goal = state_goal.filter(|_| name == "state").map(Goal::AtMost);
                self.row(&format!("memory of {name}, {when}"), *rss_mb as f64, "MB", goal);
            }
        }
        let what = format!("memory of edge, state, metrics and a processor, {when}");
        self.row(&what, sum as f64, "MB", goal.map(Goal::AtMost));
    }

    /// Something that was not measured, and why.
    pub fn missing(&mut self, what: &str) {
        eprintln!("{what}");
        self.missing.push(what.to_owned());
    }

    fn row(&mut self, what: &str, value: f64, unit: &'static str, goal: Option<Goal>) {
        let row = Row { section: self.section, what: what.to_owned(), value, unit, goal };
        eprintln!("{what}: {} {}", shown(value, unit), met(&row));
        self.rows.push(row);
    }

    /// The rows as JSON.
    pub fn json(&self) -> Value {
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(what, text)| (what.clone(), json!(text))).collect();
        let rows = self.rows.iter().map(|row| {
            let mut json = json!({
                "section": row.section, "what": row.what, "value": row.value, "unit": row.unit,
            });
            if let Some(goal) = row.goal {
                let (name, bound) = match goal {
                    Goal::AtLeast(bound) => ("atLeast", bound),
                    Goal::AtMost(bound) => ("atMost", bound),
                };
                json["goal"] = json!({ name: bound, "met": goal.is_met(row.value) });
            }
            json
        });
        json!({ "environment": labels, "rows": rows.collect::<Vec<_>>(), "missing": self.missing })
    }

    /// The environment, the rows with a goal, then all of it by section.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, here and below.
        for (what, value) in &self.labels {
            let _ = writeln!(text, "- {what}: {value}");
        }
        for missing in &self.missing {
            let _ = writeln!(text, "- {missing}");
        }
        let _ = writeln!(text, "\n### Goals\n\n| what | found | goal |\n|---|---|---|");
        for row in self.rows.iter().filter(|row| row.goal.is_some()) {
            let found = shown(row.value, row.unit);
            let _ = writeln!(text, "| {} | {found} | {} |", row.what, met(row));
        }
        let mut section = "";
        for row in &self.rows {
            if section != row.section {
                section = row.section;
                let _ = writeln!(text, "\n### {section}\n\n| what | found |\n|---|---|");
            }
            let _ = writeln!(text, "| {} | {} |", row.what, shown(row.value, row.unit));
        }
        text
    }
}

fn shown(value: f64, unit: &str) -> String {
    match unit {
        "x" => format!("{value:.2}"),
        "ms" => format!("{value:.2} ms"),
        "s" => format!("{value:.1} s"),
        _ => format!("{value:.0} {unit}"),
    }
}

fn met(row: &Row) -> String {
    let Some(goal) = row.goal else { return String::new() };
    let (words, bound) = match goal {
        Goal::AtLeast(bound) => ("at least", bound),
        Goal::AtMost(bound) => ("at most", bound),
    };
    let met = if goal.is_met(row.value) { "met" } else { "**not met**" };
    match row.unit {
        "x" => format!("{words} {bound}: {met}"),
        // A bound may be what was measured of another.
        "ms" => format!("{words} {bound:.2} ms: {met}"),
        unit => format!("{words} {bound} {unit}: {met}"),
    }
}
