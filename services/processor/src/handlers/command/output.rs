//! What a program writes: progress and usage while it runs, the answer in its last line.

use job::{Json, Usage, json};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use crate::{
    handler::Context,
    handlers::answer::{self, without_bom},
};

/// The longest line that is no JSON object, in bytes.
const TEXT_LINE_BYTES_MAX: usize = 1024 * 1024;
/// How much larger than the largest result a line may be, in bytes: what is around it.
const LINE_MARGIN_BYTES: usize = 64 * 1024;

/// The last line of a program's output that is no progress, or why it has none.
pub(super) type Last = Result<Vec<u8>, String>;

/// Reads the output of a program line by line to its end, because a full pipe would block the
/// program. Publishes its progress, and returns the last other line.
pub(super) async fn read(
    stdout: impl AsyncRead + Unpin,
    context: &Context,
    result_bytes_max: usize,
) -> Last {
    let mut lines = BufReader::new(stdout);
    let mut last = Ok(Vec::new());
    let object_bytes_max = result_bytes_max + LINE_MARGIN_BYTES;
    loop {
        let mut line = Vec::new();
        match read_line(&mut lines, &mut line, object_bytes_max).await {
            Line::End => return last,
            Line::TooLong(most) => {
                last = Err(format!("the program wrote a line of more than {most} bytes"));
            }
            Line::Whole if last.is_err() || line.iter().all(u8::is_ascii_whitespace) => {}
            Line::Whole => match progress(&line) {
                Some((progress, usage)) => {
                    context.usage(usage);
                    if let Some(progress) = progress {
                        context.progress(progress);
                    }
                }
                None => last = Ok(line),
            },
        }
    }
}

enum Line {
    Whole,
    /// It has more bytes than such a line may have.
    TooLong(usize),
    End,
}

/// Reads one line. Of one that is too long the rest is read and dropped.
async fn read_line(
    lines: &mut (impl AsyncBufReadExt + Unpin),
    line: &mut Vec<u8>,
    object_bytes_max: usize,
) -> Line {
    let mut too_long = None;
    loop {
        let Ok(bytes) = lines.fill_buf().await else { return Line::End };
        if bytes.is_empty() {
            return match too_long {
                Some(most) => Line::TooLong(most),
                None if line.is_empty() => Line::End,
                None => Line::Whole,
            };
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        if too_long.is_none() {
            line.extend_from_slice(&bytes[..taken]);
            let most = if is_object(line) { object_bytes_max } else { TEXT_LINE_BYTES_MAX };
            if line.len() > most {
                too_long = Some(most);
                *line = Vec::new();
            }
        }
        lines.consume(taken);
        if end.is_some() {
            return too_long.map_or(Line::Whole, Line::TooLong);
        }
    }
}

/// Whether a line begins as a JSON object.
fn is_object(line: &[u8]) -> bool {
    without_bom(line).iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

/// The progress and usage of a line, unless it is an answer. Progress that the status cannot
/// represent is omitted.
fn progress(line: &[u8]) -> Option<(Option<Json>, Usage)> {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(borrow)]
        progress: Option<&'a RawValue>,
        #[serde(borrow)]
        result: Option<&'a RawValue>,
    }
    let text = without_bom(line);
    let line: Line<'_> = answer::read_object(text).ok()?;
    let shown = line.progress.filter(|_| line.result.is_none())?;
    let shown = Json::from(shown.to_owned());
    let shown = Some(shown).filter(|shown| json::check("progress", shown.get()).is_ok());
    let usage = answer::read(text).map(|answer| answer.usage).unwrap_or_default();
    Some((shown, usage))
}

/// Keeps the end of what a program complains of, of at most `bytes_max` bytes.
pub(super) async fn read_end(mut stderr: impl AsyncRead + Unpin, bytes_max: usize) -> Vec<u8> {
    let mut end = Vec::new();
    let mut chunk = [0; 4_096];
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        end.extend_from_slice(&chunk[..read]);
        let over = end.len().saturating_sub(bytes_max);
        end.drain(..over);
    }
    end
}
