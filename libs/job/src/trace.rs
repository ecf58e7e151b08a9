//! Distributed traces: which request a job came from, and which spans its runs are.
//!
//! The ids of the spans of a run follow from the job and the number of the run, so that every service can compute
//! them: a handler passes on the id of a span that is exported at the end of the run.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use crate::{JobId, Run};

/// A span of a sampled trace, as [W3C Trace Context](https://www.w3.org/TR/trace-context/) writes it in `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The id of the trace; not 0.
    pub trace_id: u128,
    /// The id of the span; not 0.
    pub span_id: u64,
}

/// A span of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunSpan {
    /// From the time at which the run became queued to its start.
    Wait,
    /// From its start to its end.
    Execution,
    /// Its row, inserted into ClickHouse.
    Row,
}

impl TraceContext {
    /// Reads a `traceparent` header; `None` if it is malformed or not sampled.
    pub fn sampled(traceparent: &str) -> Option<Self> {
        let (context, is_sampled) = parse(traceparent)?;
        is_sampled.then_some(context)
    }

    /// The span of a run in the same trace.
    #[must_use]
    pub fn of_run(self, job: JobId, run: Run, span: RunSpan) -> Self {
        let mut hash = Sha256::new();
        hash.update(job.as_bytes());
        hash.update(run.to_be_bytes());
        hash.update([span as u8]);
        let hash: [u8; 32] = hash.finalize().into();
        let bytes: [u8; 8] = hash[..8].try_into().expect("a hash has more than 8 bytes");
        Self { span_id: u64::from_be_bytes(bytes).max(1), ..self }
    }
}

/// The span that a `traceparent` names, and whether it is sampled.
fn parse(text: &str) -> Option<(TraceContext, bool)> {
    let mut parts = text.split('-');
    let version = hex(parts.next()?, 2)?;
    let trace_id = hex(parts.next()?, 32).filter(|id| *id != 0)?;
    let span_id = hex(parts.next()?, 16).and_then(|id| u64::try_from(id).ok())?;
    let flags = hex(parts.next()?, 2)?;
    // A later version may have more parts.
    let is_known = version != 0xff && (version > 0 || parts.next().is_none());
    (is_known && span_id != 0).then_some((TraceContext { trace_id, span_id }, flags & 1 == 1))
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == digits && is_hex).then(|| u128::from_str_radix(text, 16).ok())?
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace_id, self.span_id)
    }
}

impl FromStr for TraceContext {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(|(context, _)| context).ok_or("not a traceparent")
    }
}

impl Serialize for TraceContext {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceContext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let context = TraceContext::sampled(PARENT).expect("it is sampled");
        assert_eq!(context.to_string(), PARENT);
        assert!(
            TraceContext::sampled(&PARENT.replace("00-4", "cc-4").replace("-01", "-01-x"))
                .is_some()
        );
        for odd in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::sampled(odd), None, "{odd}");
        }
    }

    #[test]
    fn spans_of_runs_differ_and_are_always_the_same() {
        let context = TraceContext::sampled(PARENT).expect("it is sampled");
        let span = |job, run, span| context.of_run(JobId::from_u128(job), run, span).span_id;
        let spans = [
            span(1, 1, RunSpan::Wait),
            span(1, 1, RunSpan::Execution),
            span(1, 1, RunSpan::Row),
            span(1, 2, RunSpan::Execution),
            span(2, 1, RunSpan::Execution),
        ];
        let different: std::collections::HashSet<u64> = spans.into_iter().collect();
        assert_eq!(different.len(), spans.len());
        assert_eq!(span(1, 1, RunSpan::Wait), spans[0]);
    }
}
