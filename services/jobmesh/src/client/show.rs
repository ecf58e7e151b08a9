//! Answers for people: tables on a terminal, and plain lines elsewhere.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;

use super::json::Json;

/// Shows an answer as it is, or as `show` writes it.
///
/// # Errors
/// See [`print()`].
pub(super) fn answer(
    json: bool,
    answer: &Json,
    show: impl Fn(&Json) -> String,
) -> anyhow::Result<()> {
    if json { print(answer.get()) } else { print(show(answer).trim_end()) }
}

/// Writes a line. The reader may have closed the pipe (`| head`): then there is nothing to report.
///
/// # Errors
/// If it could not be written for any other reason, such as a full disk.
pub(super) fn print(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("the answer could not be written to standard output"),
    }
}

/// The sentence that says what was done.
pub(super) fn message(answer: &Json) -> String {
    text(&answer.field("message"))
}

/// Enqueued jobs: the message, and one line per job.
pub(super) fn enqueued(answer: &Json) -> String {
    let lines: Vec<String> = answer.field("jobIds").items().iter().map(text).collect();
    format!("{}\n{}", message(answer), lines.join("\n"))
}

/// API keys, one per line.
pub(super) fn keys(keys: &Json) -> String {
    const COLUMNS: [&str; 6] = ["id", "name", "scope", "projects", "expiresAt", "lastUsedAt"];
    let keys = keys.items();
    let cell = |key: &Json, field: &str| match text(&key.field(field)) {
        // A key without a list of projects is for all.
        absent if absent == "-" && field == "projects" => "*".to_owned(),
        cell => cell,
    };
    let rows = keys.iter().map(|key| COLUMNS.map(|field| cell(key, field)));
    table(COLUMNS, rows.collect())
}

/// A job: its fields, and its history if present.
pub(super) fn job(job: &Json) -> String {
    const COLUMNS: [&str; 6] = ["at", "status", "run", "attempt", "worker", "error"];
    let mut shown = rows(job.fields().into_iter().filter(|(name, _)| name != "history"));
    let steps = job.field("history");
    if !steps.is_null() {
        let steps = steps.items();
        let steps = steps.iter().map(|step| COLUMNS.map(|field| text(&step.field(field))));
        shown.push('\n');
        shown.push_str(&table(COLUMNS, steps.collect()));
    }
    shown
}

/// The counts of a queue, and its workers.
pub(super) fn stats(answer: &Json) -> String {
    let of = |part: &str, field: &str| text(&answer.field(part).field(field));
    let names =
        ["queued", "scheduled", "processing", "completed", "failed", "canceled", "totalJobs"];
    let counts = table(names, vec![names.map(|name| of("queue", name))]);
    let names = ["processors", "activeJobs", "maxConcurrency", "requestsPerMinute"];
    counts + "\n" + &table(names, vec![names.map(|name| of("worker", name))])
}

/// Sums over a range of time.
pub(super) fn metrics(stats: &Json) -> String {
    const BREAKDOWNS: [&str; 4] = ["hourlyBreakdown", "dailyBreakdown", "byType", "byModel"];
    const SUMS: [&str; 5] = ["count", "successful", "failed", "avgDuration", "totalTokens"];
    let plain = |(name, _): &(String, Json)| !BREAKDOWNS.contains(&name.as_str());
    let mut shown = rows(stats.fields().into_iter().filter(plain));
    for (by, name) in [("byType", "type"), ("byModel", "model")] {
        let parts = stats.field(by).fields();
        if parts.is_empty() {
            continue;
        }
        let rows = parts.iter().map(|(part, sums)| {
            let [count, successful, failed, duration, tokens] =
                SUMS.map(|sum| text(&sums.field(sum)));
            [plain_text(part), count, successful, failed, duration, tokens]
        });
        let [count, successful, failed, duration, tokens] = SUMS;
        shown.push('\n');
        shown.push_str(&table([name, count, successful, failed, duration, tokens], rows.collect()));
    }
    shown
}

/// The fields of an object, one a line.
pub(super) fn fields(object: &Json) -> String {
    rows(object.fields().into_iter())
}

fn rows(fields: impl Iterator<Item = (String, Json)>) -> String {
    let rows: Vec<(String, String)> =
        fields.map(|(name, value)| (plain_text(&name), text(&value))).collect();
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

/// Rows under their names, in columns as wide as they need to be.
pub(super) fn table<const N: usize>(names: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut widths = names.map(|name| name.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; N]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&names.map(str::to_uppercase));
    rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

fn text(value: &Json) -> String {
    match value.as_string() {
        _ if value.is_null() => "-".to_owned(),
        Some(text) => plain_text(&text),
        None => plain_text(value.get()),
    }
}

/// Characters that make a terminal show others in another order (Unicode 16.0, UAX #9).
const REORDERING: [std::ops::RangeInclusive<char>; 4] = [
    '\u{61c}'..='\u{61c}',
    '\u{200e}'..='\u{200f}',
    '\u{202a}'..='\u{202e}',
    '\u{2066}'..='\u{2069}',
];

/// A text that says nothing to the terminal: a job's error may be what a program wrote.
fn plain_text(text: &str) -> String {
    let shown = |c: char| {
        let is_plain = !c.is_control() && !REORDERING.iter().any(|range| range.contains(&c));
        if is_plain { c.to_string() } else { c.escape_default().to_string() }
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows = vec![["a".into(), "long text".into()], ["bcd".into(), "-".into()]];
        assert_eq!(table(["id", "x"], rows), "ID   X\na    long text\nbcd  -\n");
        let shown = |text: &str| Json::parse(text).map(|json| fields(&json)).unwrap_or_default();
        assert_eq!(shown(r#"{"e":"\u001b[31mred\n"}"#), "e  \\u{1b}[31mred\\n\n");
        assert_eq!(shown("{\"e\":\"a\u{202e}b\u{1f980}\"}"), "e  a\\u{202e}b\u{1f980}\n");
        assert_eq!(shown(r#"{"longer":1.10,"a":"x"}"#), "longer  1.10\na       x\n");
    }
}
