//! A JSON text that is carried unchanged: a job's data, a handler's result.

mod object;
mod scan;

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

pub use object::object;
pub use scan::{Members, Unrepresentable, check, members};

/// A valid JSON text on one line: keys, numbers and strings as they were written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// The text of this value.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// The JSON text of `value`.
    ///
    /// # Errors
    /// If `value` cannot be written as JSON (a map with keys that are no strings).
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self::from)
    }

    /// A value that is a part of a valid JSON text.
    ///
    /// # Safety
    /// `text` must be a valid JSON value from its first to its last byte, without white space around it.
    unsafe fn part_of(text: &str) -> Self {
        // SAFETY: the caller ensures what this function requires.
        Self::from(unsafe { RawValue::from_string_unchecked(text.to_owned()) })
    }
}

impl Default for Json {
    fn default() -> Self {
        Self::from(RawValue::from_string("{}".into()).expect("an empty object is valid JSON"))
    }
}

impl From<Box<RawValue>> for Json {
    /// Removes white space between tokens if the text has line breaks: snapshots and server-sent
    /// events hold one text per line.
    fn from(raw: Box<RawValue>) -> Self {
        let bytes = raw.get().as_bytes();
        if bytes.contains(&b'\n') || bytes.contains(&b'\r') {
            let compact = scan::compact(raw.get());
            let compact = RawValue::from_string(compact);
            return Self(Arc::from(compact.expect("white space between tokens has no meaning")));
        }
        Self(Arc::from(raw))
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_carried_unchanged_on_one_line() {
        let text = r#"{"z":1.10,"a":12345678901234567890123,"t":"a b\n"}"#;
        let json: Json = serde_json::from_str(text).expect("it is JSON");
        assert_eq!(json.get(), text);
        let pretty = "{\n  \"z\": 1.10,\r\n  \"t\": \"a b\"\n}";
        let json: Json = serde_json::from_str(pretty).expect("it is JSON");
        assert_eq!(json.get(), r#"{"z":1.10,"t":"a b"}"#);
    }
}
