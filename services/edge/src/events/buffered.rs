//! Messages of EVENTS in the buffer of the broadcaster.

use axum::body::Bytes;
use nats::wire;

use super::frame::{Frame, Message};

/// A message of EVENTS in the buffer.
pub(super) enum Buffered {
    /// Not parsed yet: there was no subscriber.
    Unread { sequence: u64, payload: Bytes },
    /// Its changes.
    Read(Message),
}

impl Buffered {
    pub fn sequence(&self) -> u64 {
        match self {
            Self::Unread { sequence, .. } => *sequence,
            Self::Read(message) => message.sequence,
        }
    }

    pub fn lines(&self) -> &[Frame] {
        match self {
            Self::Unread { .. } => &[],
            Self::Read(message) => &message.lines,
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Self::Unread { payload, .. } => payload.len(),
            Self::Read(message) => message.bytes(),
        }
    }

    pub fn read(&mut self) {
        if let Self::Unread { sequence, payload } = self {
            *self = Self::Read(read(*sequence, payload));
        }
    }
}

/// The frames of a message.
fn read(sequence: u64, payload: &[u8]) -> Message {
    match wire::batch(sequence, payload) {
        Ok(batch) => Message::of(sequence, &batch),
        // State sets it aside.
        Err(_) => Message { sequence, lines: Vec::new() },
    }
}
