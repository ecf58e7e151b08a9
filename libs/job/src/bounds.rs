//! Bounds of all input. The edge checks requests against them to explain what is wrong; state
//! applies them again to every command, because anyone with access to NATS can publish one.

use std::fmt;

use crate::{Id, JobId, Json, Usage, time::Millis};

/// The longest id of a project, a batch, a schedule or a processor, in bytes.
pub const ID_BYTES_MAX: usize = 128;
/// The lowest priority.
pub const PRIORITY_MAX: u16 = 1_000;
/// The most jobs or batches of one request.
pub const BATCHES_MAX: usize = 10_000;
/// The most jobs that one operation names.
pub const OPERATION_JOBS_MAX: usize = 1_000;
/// The longest reason for an operation, in bytes.
pub const REASON_BYTES_MAX: usize = 500;
/// The largest data of a job, in bytes.
pub const DATA_BYTES_MAX: usize = 256 * 1024;
/// The largest result that is kept with a job, in bytes; larger ones are stored apart.
pub const INLINE_RESULT_BYTES_MAX: usize = 256 * 1024;
/// The longest error that is kept, in bytes.
pub const ERROR_BYTES_MAX: usize = 4 * 1024;
/// The largest progress that is kept, in bytes.
pub const PROGRESS_BYTES_MAX: usize = 4 * 1024;
/// The longest name of a model, in bytes.
pub const MODEL_BYTES_MAX: usize = 256;
/// The most tokens or images that a run can report. A sum of sixteen million such runs still fits
/// into 64 bits.
pub const TOKENS_MAX: u64 = 1 << 40;
/// The most attempts that may be asked for.
pub const ATTEMPTS_MAX: u32 = 100;
/// The longest wait between attempts, in ms: a week.
pub const WAIT_MS_MAX: i64 = 7 * 24 * 3_600_000;
/// The longest that a provider's request to come back later is followed, in ms: a day.
pub const LATER_MS_MAX: i64 = 24 * 3_600_000;
/// The last time that a worker's clock may show, in ms since 1970: 2261, which ClickHouse holds too.
pub(crate) const WORKER_TIME_MAX: Millis = 9_214_646_400_000;
/// The last time that a job can be scheduled for: the end of the year 9999.
pub(crate) const RUN_AT_MAX: Millis = 253_402_300_799_999;
/// The longest time that a job may wait before it expires, in seconds: ten years.
pub const EXPIRES_IN_S_MAX: u32 = 10 * 366 * 24 * 3_600;
/// How much of a result that is too large an error shows, in bytes.
const RESULT_SHOWN_BYTES_MAX: usize = 1_024;

/// The beginning of a text that is longer than `bytes_max`, with a sign that it was cut.
pub fn truncate(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// Whether a character may be in an id: no control character, no separator of lines or paragraphs,
/// and none that is invisible or changes the direction of text.
fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Checks an id of a user: 1 to 128 bytes of printable UTF-8.
///
/// # Errors
/// A sentence that names the field.
pub fn id(field: &str, value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err(format!("{field} must not be empty"));
    }
    if value.len() > ID_BYTES_MAX {
        let bytes = value.len();
        return Err(format!("{field} has {bytes} bytes, at most {ID_BYTES_MAX} are allowed"));
    }
    match value.chars().find(|c| !is_printable(*c)) {
        None => Ok(()),
        Some(odd) => {
            let odd = odd.escape_unicode();
            Err(format!("{field} must be printable, and has the character {odd}"))
        }
    }
}

/// Checks the data of a job: a JSON object within its bound that every reader can represent.
///
/// # Errors
/// See [`DataError`].
pub fn data(field: &str, data: &Json) -> Result<(), DataError> {
    data_size(format_args!("{field}"), data)?;
    crate::json::check(field, data.get()).map_err(|error| DataError::Invalid(error.to_string()))
}

/// Checks that the data of a job is a JSON object within its bound.
///
/// # Errors
/// See [`DataError`].
pub fn data_size(field: fmt::Arguments<'_>, data: &Json) -> Result<(), DataError> {
    let text = data.get();
    if !text.starts_with('{') {
        return Err(DataError::Invalid(format!("{field} must be a JSON object")));
    }
    if text.len() > DATA_BYTES_MAX {
        let bytes = text.len();
        return Err(DataError::TooLarge(format!(
            "{field} has {bytes} bytes, at most {DATA_BYTES_MAX} are allowed"
        )));
    }
    Ok(())
}

/// Data that a job cannot have.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DataError {
    /// It is no object, or not every reader can represent it.
    #[error("{0}")]
    Invalid(String),
    /// It has too many bytes.
    #[error("{0}")]
    TooLarge(String),
}

/// The usage of a run within its bounds. More tokens than any model has are counted as the most that
/// can be.
pub(crate) fn usage(usage: &mut Usage) {
    for count in [&mut usage.input_tokens, &mut usage.output_tokens, &mut usage.images] {
        *count = (*count).min(TOKENS_MAX);
    }
    if let Some(model) = &mut usage.model {
        shorten(model, MODEL_BYTES_MAX);
    }
}

/// Cuts a text in place.
pub(crate) fn shorten(text: &mut Id, bytes_max: usize) {
    if text.len() > bytes_max {
        *text = truncate(text, bytes_max).into();
    }
}

/// Why a result is not kept, with its beginning.
pub fn result_too_large(job: JobId, bytes: u64, bytes_max: u64, beginning: &str) -> String {
    let beginning = truncate(beginning, RESULT_SHOWN_BYTES_MAX);
    format!(
        "the result of job {job} has {bytes} bytes, at most {bytes_max} are kept; it begins: \
         {beginning}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(truncate("short", 5), "short");
        assert_eq!(truncate("ééé", 3), "é…");
    }
}
