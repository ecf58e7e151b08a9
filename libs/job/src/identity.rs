//! Who is meant: projects and batches by their user's name, jobs by a UUID, runs by their number.

use std::sync::Arc;

/// A project's or batch's id: 1 to 128 bytes of printable UTF-8, as its user wrote it.
/// Shared, because a million jobs name the same few projects.
pub type Id = Arc<str>;

/// A job's id: UUIDv7, or UUIDv8 where it is derived from an idempotency key.
pub type JobId = uuid::Uuid;

/// How many times a job became queued, from 1. It never resets: it is the epoch that fences
/// a worker out once its run was given up.
pub type Run = u32;
