//! Analytics as CSV (RFC 4180).

use nats::analytics::{Analytics, BucketSums, Distribution};

const HEADER: &str = "start,group,jobs,completed,failed,canceled,runs,retries,lostRuns,successRate,\
    avgDuration,p50Duration,p95Duration,p99Duration,avgWait,p50Wait,p95Wait,p99Wait,\
    inputTokens,outputTokens,wastedTokens,isOther";

/// The sums of each bucket and group, one line each, under a line of names.
pub(super) fn write(analytics: &Analytics) -> String {
    let mut csv = format!("{HEADER}\r\n");
    for row in &analytics.rows {
        csv.push_str(&line(row));
        csv.push_str("\r\n");
    }
    csv
}

fn line(BucketSums { start, sums }: &BucketSums) -> String {
    let mut fields = vec![start.clone(), quoted(sums.group.as_deref().unwrap_or_default())];
    let counts = [
        sums.jobs,
        sums.completed,
        sums.failed,
        sums.canceled,
        sums.runs,
        sums.retries,
        sums.lost_runs,
    ];
    fields.extend(counts.map(|count| count.to_string()));
    fields.push(sums.success_rate.to_string());
    for Distribution { avg, p50, p95, p99 } in [sums.duration, sums.wait] {
        fields.push(avg.to_string());
        fields
            .extend([p50, p95, p99].map(|value| value.map_or(String::new(), |ms| ms.to_string())));
    }
    let tokens = [sums.input_tokens, sums.output_tokens, sums.wasted_tokens];
    fields.extend(tokens.map(|tokens| tokens.to_string()));
    // A group can have the name of the sum of all others.
    fields.push(sums.is_other.to_string());
    fields.join(",")
}

/// A field that can have any text. A spreadsheet would execute one that begins like a formula.
fn quoted(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let apostrophe = if is_formula { "'" } else { "" };
    if is_formula || text.contains([',', '"', '\r', '\n']) {
        return format!("\"{apostrophe}{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_and_no_formula() {
        assert_eq!(quoted("gpt-5"), "gpt-5");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(quoted("=1+1"), "\"'=1+1\"");
    }

    #[test]
    fn each_line_has_a_field_for_each_name() {
        let row = BucketSums { start: "2026-11-27T00:00:00.000Z".into(), sums: Default::default() };
        assert_eq!(line(&row).split(',').count(), HEADER.split(',').count());
    }
}
