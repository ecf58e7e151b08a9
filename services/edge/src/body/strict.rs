//! A deserializer that wraps JSON's and accepts less: objects only where a struct or a map is
//! expected (serde also reads a struct from an array, field by field), enums only from strings, and
//! lists and objects of a bounded length. It accepts numbers such as `10.0` and `1e1` as the
//! integers that they are. Its errors contain the path of the value.

mod access;

use std::{cell::RefCell, fmt};

use access::{Fields, Items};
use serde::{
    Deserialize, Deserializer,
    de::{IntoDeserializer, MapAccess, SeqAccess, Visitor, value::StrDeserializer},
};

/// The most items of a list, or fields of an object.
pub(crate) const ITEMS_MAX: usize = 10_000;
/// The largest integer that a double holds exactly.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
/// The name under which a reader of JSON hands out a text as it is.
const RAW_VALUE: &str = "$serde_json::private::RawValue";

/// What became known on the way out of an error.
#[derive(Debug, Default)]
pub(super) struct Failure {
    /// The innermost part of the path first.
    path: RefCell<Vec<String>>,
    too_many: RefCell<bool>,
}

impl Failure {
    /// The path of the value, such as `data.pages[3]`; empty for the whole text.
    pub fn path(&self) -> String {
        let mut path = String::new();
        for part in self.path.borrow().iter().rev() {
            if !path.is_empty() && !part.starts_with('[') {
                path.push('.');
            }
            path.push_str(part);
        }
        path
    }

    /// Whether a list or an object was too long.
    pub fn is_too_many(&self) -> bool {
        *self.too_many.borrow()
    }

    fn at(&self, part: String) {
        self.path.borrow_mut().push(part);
    }
}

/// See the module.
pub(super) struct Strict<'a, D> {
    inner: D,
    failure: &'a Failure,
}

impl<'a, D> Strict<'a, D> {
    /// Reads from `inner`, and tells `failure` where an error happened.
    pub fn new(inner: D, failure: &'a Failure) -> Self {
        Self { inner, failure }
    }
}

macro_rules! forward {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(Watch { visitor, failure: self.failure, integer: false })
        }
    )*};
}

macro_rules! forward_integers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(Watch { visitor, failure: self.failure, integer: true })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, D> {
    type Error = D::Error;

    forward! {
        deserialize_any deserialize_bool deserialize_f32 deserialize_f64 deserialize_char
        deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf
        deserialize_option deserialize_unit deserialize_seq deserialize_map
        deserialize_identifier deserialize_ignored_any
    }

    forward_integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        if name == RAW_VALUE {
            return self.inner.deserialize_newtype_struct(name, visitor);
        }
        let visitor = Watch { visitor, failure: self.failure, integer: false };
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Watch { visitor, failure: self.failure, integer: false };
        self.inner.deserialize_tuple(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_str(Variant(visitor))
    }
}

/// Reads an enum from the name of its variant.
struct Variant<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Variant<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<V::Value, E> {
        let name: StrDeserializer<'_, E> = name.into_deserializer();
        self.0.visit_enum(name)
    }
}

/// Passes on what is visited, and stays around everything inside.
struct Watch<'a, V> {
    visitor: V,
    failure: &'a Failure,
    /// Whether an integer is expected.
    integer: bool,
}

macro_rules! visit {
    ($($method:ident: $type:ty,)*) => {$(
        fn $method<E: serde::de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.visitor.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watch<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    visit! {
        visit_bool: bool,
        visit_i64: i64,
        visit_i128: i128,
        visit_u64: u64,
        visit_u128: u128,
        visit_char: char,
        visit_str: &str,
        visit_borrowed_str: &'de str,
        visit_string: String,
        visit_bytes: &[u8],
        visit_borrowed_bytes: &'de [u8],
        visit_byte_buf: Vec<u8>,
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<V::Value, E> {
        match as_integer(value).filter(|_| self.integer) {
            Some(integer) => match u64::try_from(integer) {
                Ok(integer) => self.visitor.visit_u64(integer),
                Err(_) => self.visitor.visit_i64(integer),
            },
            None => self.visitor.visit_f64(value),
        }
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Strict::new(inner, self.failure))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Strict::new(inner, self.failure))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Items::new(inner, self.failure))
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Fields::new(inner, self.failure))
    }
}

/// The integer that a number such as `10.0` or `1e1` is, as long as a double holds it exactly.
pub(crate) fn as_integer(value: f64) -> Option<i64> {
    (value.fract() == 0.0 && value.abs() <= EXACT_MAX).then_some(value as i64)
}

/// Reads a value that must end where the text ends.
pub(super) fn read<'de, T: Deserialize<'de>>(
    text: &'de [u8],
    failure: &Failure,
) -> Result<T, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = T::deserialize(Strict::new(&mut json, failure))?;
    json.end()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Outer {
        count: Option<u32>,
        inner: Option<Inner>,
        list: Option<Vec<Inner>>,
        ids: Option<Vec<String>>,
        kind: Option<Kind>,
        raw: Option<Box<RawValue>>,
        map: Option<HashMap<String, i64>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        a: i32,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Some,
    }

    fn refused(text: &str) -> (String, String, bool) {
        let failure = Failure::default();
        let error = read::<Outer>(text.as_bytes(), &failure).expect_err(text).to_string();
        (failure.path(), error, failure.is_too_many())
    }

    #[test]
    fn what_is_meant_is_read() {
        let text = r#"{"count":1e1,"inner":{"a":-0},"list":[{"a":-2.0}],"kind":"some",
            "raw":{"n":1.10,"l":[1]},"map":{"x":5.0}}"#;
        let outer: Outer = read(text.as_bytes(), &Failure::default()).expect(text);
        assert_eq!((outer.count, outer.kind), (Some(10), Some(Kind::Some)));
        assert_eq!(outer.inner.map(|inner| inner.a), Some(0));
        assert_eq!(outer.list.map(|list| list[0].a), Some(-2));
        assert_eq!(outer.raw.expect("raw").get(), r#"{"n":1.10,"l":[1]}"#);
        assert_eq!(outer.map.expect("map")["x"], 5);
        let nothing: Outer = read(br#"{"inner":null}"#, &Failure::default()).expect("null");
        assert!(nothing.inner.is_none() && nothing.ids.is_none());
    }

    #[test]
    fn what_is_not_meant_is_refused_by_its_place() {
        for (text, path, says) in [
            (r#"{"inner":[5]}"#, "inner", "invalid type: sequence"),
            (r#"{"list":[{"a":1},[2]]}"#, "list[1]", "invalid type: sequence"),
            (r#"{"list":[{"a":1},{"b":2}]}"#, "list[1]", "unknown field `b`"),
            (r#"{"list":[{"a":1},{"a":1.5}]}"#, "list[1].a", "floating point"),
            (r#"{"ids":["x",7]}"#, "ids[1]", "invalid type: integer `7`"),
            (r#"{"kind":{"some":null}}"#, "kind", "invalid type: map"),
            (r#"{"kind":"other"}"#, "kind", "unknown variant `other`"),
            (r#"{"count":1e300}"#, "count", "floating point"),
            (r#"{"count":-1.0}"#, "count", "invalid value"),
            (r#"{"map":{"x":"y"}}"#, "map.x", "invalid type: string"),
            (r#"{"other":1}"#, "", "unknown field `other`"),
        ] {
            let (place, error, _) = refused(text);
            assert!(place == path && error.contains(says), "{text}: {place:?} {error}");
        }
        let deep = format!(r#"{{"ids":[{}"x"]}}"#, r#""x","#.repeat(ITEMS_MAX));
        let (path, error, is_too_many) = refused(&deep);
        assert!(path == "ids" && is_too_many, "{path:?} {error}");
    }
}
