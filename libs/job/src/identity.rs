//! Identifiers: projects and batches have names of the user's choice, jobs have UUIDs, runs have
//! numbers.

use std::sync::Arc;

/// A project's or batch's id: 1 to 128 bytes of printable UTF-8, as its user wrote it.
/// Shared, because a million jobs name the same few projects.
pub type Id = Arc<str>;

/// The id of a job: UUIDv7, or UUIDv8 if it is derived from an idempotency key.
pub type JobId = uuid::Uuid;

/// How many times a job became queued, from 1. It never resets: it is the epoch that fences
/// a worker out once its run was given up.
pub type Run = u32;
