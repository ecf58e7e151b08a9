//! Answers for people: tables on a terminal, and plain lines elsewhere.

use std::io::Write;

use serde_json::Value;

/// Shows an answer as it is, or as `show` writes it.
pub(super) fn answer(json: bool, answer: &Value, show: impl Fn(&Value) -> String) {
    if json {
        print(&answer.to_string());
    } else {
        print(show(answer).trim_end());
    }
}

/// Writes a line. Nobody may be there to read it (`| head`): then there is nothing to say.
pub(super) fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The sentence that says what was done.
pub(super) fn message(answer: &Value) -> String {
    text(&answer["message"])
}

/// What was enqueued: the sentence, and a line a job.
pub(super) fn enqueued(answer: &Value) -> String {
    let jobs = answer["jobIds"].as_array().into_iter().flatten();
    let lines: Vec<String> = jobs.map(text).collect();
    format!("{}\n{}", message(answer), lines.join("\n"))
}

/// A job: its fields, and its steps where they are there.
pub(super) fn job(job: &Value) -> String {
    let mut shown = job.clone();
    let history = shown.as_object_mut().and_then(|job| job.remove("history"));
    let mut text = fields(&shown);
    if let Some(Value::Array(steps)) = history {
        let rows = steps.iter().map(|step| {
            ["at", "status", "run", "attempt", "worker", "error"]
                .map(|field| self::text(&step[field]))
        });
        text.push('\n');
        text.push_str(&table(
            ["at", "status", "run", "attempt", "worker", "error"],
            rows.collect(),
        ));
    }
    text
}

/// The counts of a queue, and its workers.
pub(super) fn stats(answer: &Value) -> String {
    let (queue, worker) = (&answer["queue"], &answer["worker"]);
    let of = |from: &Value, field: &str| text(&from[field]);
    let names =
        ["queued", "scheduled", "processing", "completed", "failed", "canceled", "totalJobs"];
    let counts = table(names, vec![names.map(|name| of(queue, name))]);
    let names = ["processors", "activeJobs", "maxConcurrency", "requestsPerMinute"];
    counts + "\n" + &table(names, vec![names.map(|name| of(worker, name))])
}

/// Sums over a range of time.
pub(super) fn metrics(stats: &Value) -> String {
    let mut shown = stats.clone();
    if let Some(shown) = shown.as_object_mut() {
        for breakdown in ["hourlyBreakdown", "dailyBreakdown", "byType", "byModel"] {
            shown.remove(breakdown);
        }
    }
    let mut text = fields(&shown);
    for (by, name) in [("byType", "type"), ("byModel", "model")] {
        let Some(parts) = stats[by].as_object().filter(|parts| !parts.is_empty()) else { continue };
        let fields = ["count", "successful", "failed", "avgDuration", "totalTokens"];
        let rows = parts.iter().map(|(part, sums)| {
            let mut row = vec![part.clone()];
            row.extend(fields.map(|field| self::text(&sums[field])));
            <[String; 6]>::try_from(row).unwrap_or_default()
        });
        let [count, successful, failed, duration, tokens] = fields;
        text.push('\n');
        text.push_str(&table([name, count, successful, failed, duration, tokens], rows.collect()));
    }
    text
}

/// The fields of an object, one a line.
pub(super) fn fields(object: &Value) -> String {
    let fields = object.as_object().into_iter().flatten();
    let rows: Vec<[String; 2]> = fields.map(|(name, value)| [name.clone(), text(value)]).collect();
    let width = rows.iter().map(|[name, _]| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|[name, value]| format!("{name:<width$}  {value}\n")).collect()
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

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

/// A text that says nothing to the terminal: a job's error may be what a program wrote.
fn plain(text: &str) -> String {
    let shown =
        |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows = vec![["a".into(), "long text".into()], ["bcd".into(), "-".into()]];
        assert_eq!(table(["id", "x"], rows), "ID   X\na    long text\nbcd  -\n");
        assert_eq!(fields(&json!({ "e": "\x1b[31mred\n" })), "e  \\u{1b}[31mred\\n\n");
        assert_eq!(fields(&json!({ "a": 1, "longer": "x" })), "a       1\nlonger  x\n");
    }
}
