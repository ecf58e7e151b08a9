//! JSON of an answer, as it came: numbers and the order of fields unchanged, and readable in parts
//! whatever else is in it.

use std::{borrow::Cow, fmt, ops::Deref};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// A JSON text, or the part of one.
#[derive(Clone, Debug)]
pub(super) struct Json(Box<RawValue>);

impl Json {
    /// Reads a JSON text.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text).map(Self)
    }

    /// The text.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// A field of an object; null if it has no such field, or is none.
    pub fn field(&self, name: &str) -> Self {
        let field = self.fields().into_iter().find(|(field, _)| field == name);
        field.map_or_else(Self::null, |(_, value)| value)
    }

    /// The fields of an object, as they follow one another; none of anything else.
    pub fn fields(&self) -> Vec<(String, Self)> {
        let fields = serde_json::from_str(self.get()).map(|Fields(fields)| fields);
        fields.unwrap_or_default()
    }

    /// The items of an array; none of anything else.
    pub fn items(&self) -> Vec<Self> {
        let items: Vec<Box<RawValue>> = serde_json::from_str(self.get()).unwrap_or_default();
        items.into_iter().map(Self).collect()
    }

    /// A string. Halves of surrogate pairs, which no text can hold, become U+FFFD.
    pub fn as_string(&self) -> Option<String> {
        let mut json = serde_json::Deserializer::from_str(self.get());
        Lossy.deserialize(&mut json).ok()
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        self.get() == "null"
    }

    fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }
}

impl Deref for Json {
    type Target = RawValue;

    fn deref(&self) -> &RawValue {
        &self.0
    }
}

impl serde::Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Reads a string of bytes, which may hold halves of surrogate pairs.
struct Lossy;

impl<'de> DeserializeSeed<'de> for Lossy {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Lossy {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<String, E> {
        Ok(match String::from_utf8_lossy(bytes) {
            Cow::Borrowed(text) => text.to_owned(),
            // A surrogate has three bytes here, and each became a character.
            Cow::Owned(text) => text.replace("\u{fffd}\u{fffd}\u{fffd}", "\u{fffd}"),
        })
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

struct Fields(Vec<(String, Json)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key_seed(Lossy)? {
                    fields.push((name, Json(map.next_value()?)));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_whatever_else_is_there() -> serde_json::Result<()> {
        let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
        let text = format!(
            r#"{{"z":1.10,"a":{{"n":12345678901234567890123,"e":1e400}},"s":"x\ud800y","d":{deep}}}"#
        );
        let json = Json::parse(&text)?;
        assert_eq!(json.get(), text);
        let names: Vec<String> = json.fields().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["z", "a", "s", "d"]);
        assert_eq!(json.field("z").get(), "1.10");
        assert_eq!(json.field("a").field("e").get(), "1e400");
        assert_eq!(json.field("s").as_string().as_deref(), Some("x\u{fffd}y"));
        assert_eq!(json.field("d").get(), deep);
        assert!(json.field("nothing").is_null() && json.field("z").as_string().is_none());
        Ok(())
    }
}
