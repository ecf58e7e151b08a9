//! Positions in EVENTS.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The place of an event: the sequence of its message in EVENTS, and its index in that message.
/// Written `<sequence>.<index>`, on the wire and as the id of a server-sent event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The stream sequence of the message, from 1.
    pub sequence: u64,
    /// The place in the message, from 0.
    pub index: u32,
}

impl Position {
    /// The position of the event at `index` of message `sequence`.
    pub fn new(sequence: u64, index: u32) -> Self {
        Self { sequence, index }
    }

    /// A position after all events of message `sequence`, and before those of the next one.
    pub fn end_of(sequence: u64) -> Self {
        Self::new(sequence, u32::MAX)
    }

    /// True if it is the end of a message.
    pub fn is_end(self) -> bool {
        self.index == u32::MAX
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.sequence, self.index)
    }
}

/// A text that is no position.
#[derive(Debug, thiserror::Error)]
#[error("a position is written <sequence>.<index>, not {0:?}")]
pub struct Malformed(String);

impl FromStr for Position {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || Malformed(text.to_owned());
        let (sequence, index) = text.split_once('.').ok_or_else(malformed)?;
        let sequence = sequence.parse().map_err(|_| malformed())?;
        let index = index.parse().map_err(|_| malformed())?;
        Ok(Self { sequence, index })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}
