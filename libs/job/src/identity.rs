//! Identifiers: projects and batches have names of the user's choice, jobs have UUIDs, runs have
//! numbers.

use std::sync::Arc;

/// A project's or batch's id: 1 to 128 bytes of printable UTF-8, as its user wrote it.
/// Shared, because a million jobs name the same few projects.
pub type Id = Arc<str>;

/// The id of a job: UUIDv7, or UUIDv8 if it is derived from an idempotency key.
pub type JobId = uuid::Uuid;

/// The shard of all jobs. There is one so far, see "Several leaders" in docs/scaling.md.
const SHARD: u8 = 0;

/// The id with the shard as its last byte, so that a request that names only a job can find its leader.
pub fn in_shard(id: JobId) -> JobId {
    let mut bytes = id.into_bytes();
    bytes[15] = SHARD;
    JobId::from_bytes(bytes)
}

/// How many times a job became queued, from 1. It never resets: it is the epoch that fences
/// a worker out once its run was given up.
pub type Run = u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_of_an_id_is_its_shard_and_the_rest_stays() {
        let id = JobId::from_u128(0x01a2_0b4c_6a7d_74fa_9f39_6814_a264_0da1);
        assert_eq!(in_shard(id).to_string(), "01a20b4c-6a7d-74fa-9f39-6814a2640d00");
        assert_eq!(in_shard(id).get_version_num(), 7);
    }
}
