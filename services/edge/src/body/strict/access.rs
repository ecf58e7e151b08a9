//! Lists and objects of a bounded length, which record where an error happened.

use std::fmt;

use serde::{
    Deserializer,
    de::{
        DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor, value::StrDeserializer,
    },
};

use super::{Failure, ITEMS_MAX, Strict};

struct Inside<'a, S> {
    seed: S,
    failure: &'a Failure,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Inside<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.seed.deserialize(Strict::new(inner, self.failure))
    }
}

/// The items of a list.
pub(super) struct Items<'a, A> {
    inner: A,
    failure: &'a Failure,
    index: usize,
}

impl<'a, A> Items<'a, A> {
    pub fn new(inner: A, failure: &'a Failure) -> Self {
        Self { inner, failure, index: 0 }
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let has_room = self.index < ITEMS_MAX;
        let item = self.inner.next_element_seed(Bounded { seed, failure: self.failure, has_room });
        if item.is_err() && has_room {
            self.failure.at(format!("[{}]", self.index));
        }
        self.index += 1;
        item
    }
}

/// Reads one more item, if there may be one more.
struct Bounded<'a, S> {
    seed: S,
    failure: &'a Failure,
    has_room: bool,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Bounded<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        if !self.has_room {
            return Err(too_many(self.failure));
        }
        Inside { seed: self.seed, failure: self.failure }.deserialize(inner)
    }
}

fn too_many<E: serde::de::Error>(failure: &Failure) -> E {
    *failure.too_many.borrow_mut() = true;
    E::custom(format_args!("more than {ITEMS_MAX} items"))
}

/// The fields of an object.
pub(super) struct Fields<'a, A> {
    inner: A,
    failure: &'a Failure,
    key: String,
    count: usize,
}

impl<'a, A> Fields<'a, A> {
    pub fn new(inner: A, failure: &'a Failure) -> Self {
        Self { inner, failure, key: String::new(), count: 0 }
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let Some(()) = self.inner.next_key_seed(Key(&mut self.key))? else { return Ok(None) };
        if self.count >= ITEMS_MAX {
            return Err(too_many(self.failure));
        }
        self.count += 1;
        let key: StrDeserializer<'_, A::Error> = self.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let value = self.inner.next_value_seed(Inside { seed, failure: self.failure });
        if value.is_err() {
            self.failure.at(std::mem::take(&mut self.key));
        }
        value
    }
}

/// Reads a key into a buffer.
struct Key<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<(), D::Error> {
        inner.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<(), E> {
        self.0.clear();
        self.0.push_str(key);
        Ok(())
    }
}
