//! The streams and buckets: created if they are missing, reported if their settings break the
//! rules.

mod error;
mod resize;
mod restore_mark;

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    ErrorCode,
    context::{GetStreamError, GetStreamErrorKind},
    kv, object_store,
    stream::{Config, DiscardPolicy, Info, PersistenceMode, RetentionPolicy, StorageType},
};
use job::PriorityClass;

use crate::{Broker, names};

pub use error::Error;

/// How long the broker knows the ids of messages.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// The largest message that the broker has to take.
const PAYLOAD_BYTES_MIN: usize = 8_000_000;
const MIB: i64 = 1 << 20;
/// How much of the audit log waits for ClickHouse.
const AUDIT_BYTES_MAX: i64 = 256 * MIB;
/// How much of the messages that were rejected is kept, and for how long.
const REJECTED_BYTES_MAX: i64 = 64 * MIB;
const REJECTED_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

/// How much disk each stream may take, and on how many servers it is kept. What is set is also applied to streams
/// that exist; what is not has a default for new streams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// COMMANDS, in bytes.
    pub commands_bytes: Option<i64>,
    /// EVENTS, in bytes.
    pub events_bytes: Option<i64>,
    /// Each stream of ready work, in bytes.
    pub work_bytes: Option<i64>,
    /// The bucket of jobs, in bytes.
    pub jobs_bytes: Option<i64>,
    /// The object store of results, in bytes.
    pub results_bytes: Option<i64>,
    /// Copies of each, on as many servers: 3 in a cluster and 1 otherwise, if not set.
    pub replicas: Option<usize>,
}

/// The size of a new COMMANDS, in bytes.
const COMMANDS_BYTES: i64 = 2_048 * MIB;
/// The sizes of other new streams, in bytes.
const EVENTS_BYTES: i64 = 4_096 * MIB;
const WORK_BYTES: i64 = 512 * MIB;
const JOBS_BYTES: i64 = 8_192 * MIB;
const RESULTS_BYTES: i64 = 8_192 * MIB;
/// Copies in a cluster: one server can be lost.
const CLUSTER_REPLICAS: usize = 3;

/// The version of all messages, in the metadata of each stream. It changes with the names or the meaning of a field.
pub const WIRE_VERSION: &str = "2";
/// The key of the version.
const WIRE_VERSION_KEY: &str = "jobmesh-wire";

/// Ensures all streams and buckets. Safe to call by each state service, at every start.
///
/// # Errors
/// See [`Error`].
pub async fn ensure(broker: &Broker, sizes: Sizes) -> Result<(), Error> {
    restore_mark::check(broker).await?;
    make_all(broker, sizes).await
}

/// The same within a restore, which no other service may begin to use.
///
/// # Errors
/// See [`Error`].
pub async fn make_all(broker: &Broker, sizes: Sizes) -> Result<(), Error> {
    check_payload(broker)?;
    let is_in_cluster = broker.is_in_cluster();
    let replicas = sizes.replicas_in(is_in_cluster);
    for config in streams(sizes, is_in_cluster) {
        let bytes = sizes.bytes_of(&config.name);
        if let Some(found) = ensure_stream(broker, config).await? {
            resize::resize(broker, &found, replicas, bytes).await?;
        }
    }
    for bucket in [names::LEASES, names::KEYS, names::FAILURES] {
        if broker.js.get_key_value(bucket).await.is_err() {
            let config = kv::Config {
                bucket: bucket.to_owned(),
                history: 1,
                num_replicas: replicas,
                ..Default::default()
            };
            let made = broker.js.create_key_value(config).await;
            made.map_err(|error| failed(bucket, &error))?;
        }
    }
    if broker.js.get_object_store(names::SNAPSHOTS).await.is_err() {
        let config = object_store::Config {
            bucket: names::SNAPSHOTS.to_owned(),
            num_replicas: replicas,
            ..Default::default()
        };
        let made = broker.js.create_object_store(config).await;
        made.map_err(|error| failed(names::SNAPSHOTS, &error))?;
    }
    for name in buckets() {
        let stream = broker.js.get_stream(&name).await.map_err(|error| absent(&name, &error))?;
        resize::resize(broker, stream.cached_info(), replicas, None).await?;
    }
    Ok(())
}

/// The names of all streams that a mesh can have in its account.
pub fn stream_names() -> Vec<String> {
    let streams = streams(Sizes::default(), false).into_iter().map(|config| config.name);
    streams.chain(buckets()).chain([names::RESTORE.to_owned()]).collect()
}

/// The streams of the buckets that are made as such.
fn buckets() -> [String; 4] {
    let buckets = [names::LEASES, names::KEYS, names::FAILURES];
    let [leases, keys, failures] = buckets.map(|bucket| format!("KV_{bucket}"));
    [leases, keys, failures, format!("OBJ_{}", names::SNAPSHOTS)]
}

impl Sizes {
    /// The size that is set for a stream.
    fn bytes_of(&self, stream: &str) -> Option<i64> {
        match stream {
            names::COMMANDS => self.commands_bytes,
            names::EVENTS => self.events_bytes,
            names::JOBS_STREAM => self.jobs_bytes,
            names::RESULTS_STREAM => self.results_bytes,
            work if PriorityClass::ALL.map(names::work_stream).contains(&work) => self.work_bytes,
            _ => None,
        }
    }

    /// The size of COMMANDS, in bytes.
    pub fn commands(&self) -> u64 {
        self.commands_bytes.unwrap_or(COMMANDS_BYTES).unsigned_abs()
    }

    /// The number of servers that keep each stream.
    pub fn replicas_in(&self, is_in_cluster: bool) -> usize {
        self.replicas.unwrap_or(if is_in_cluster { CLUSTER_REPLICAS } else { 1 })
    }
}

fn check_payload(broker: &Broker) -> Result<(), Error> {
    let max_payload = broker.client.server_info().max_payload;
    if max_payload < PAYLOAD_BYTES_MIN {
        return Err(Error::Payload { found: max_payload, wanted: PAYLOAD_BYTES_MIN });
    }
    Ok(())
}

fn failed(name: &str, error: &dyn std::error::Error) -> Error {
    Error::Broker { name: name.to_owned(), why: error.to_string() }
}

/// Whether all streams are there and as they must be; makes nothing.
///
/// # Errors
/// See [`Error`].
pub async fn check_all(broker: &Broker, sizes: Sizes) -> Result<(), Error> {
    check_streams(broker, sizes, |_| true).await?;
    for stream in buckets() {
        broker.js.get_stream(&stream).await.map_err(|error| absent(&stream, &error))?;
    }
    Ok(())
}

/// Whether what processors use is there: the streams of ready work and of large results.
///
/// # Errors
/// See [`check_all`].
pub async fn check_for_processors(broker: &Broker, sizes: Sizes) -> Result<(), Error> {
    let work = PriorityClass::ALL.map(names::work_stream);
    check_streams(broker, sizes, |name| work.contains(&name) || name == names::RESULTS_STREAM).await
}

async fn check_streams(
    broker: &Broker,
    sizes: Sizes,
    is_checked: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    check_payload(broker)?;
    restore_mark::check(broker).await?;
    for wanted in streams(sizes, true).into_iter().filter(|stream| is_checked(&stream.name)) {
        let stream = broker.js.get_stream(&wanted.name).await;
        let stream = stream.map_err(|error| absent(&wanted.name, &error))?;
        check(&stream.cached_info().config, &wanted)?;
    }
    Ok(())
}

/// The settings of every stream of ours.
fn streams(sizes: Sizes, is_in_cluster: bool) -> Vec<Config> {
    let replicas = sizes.replicas_in(is_in_cluster);
    let base = Config {
        storage: StorageType::File,
        // Messages are never deleted to make room: a full stream refuses new ones.
        discard: DiscardPolicy::New,
        metadata: HashMap::from([(WIRE_VERSION_KEY.to_owned(), WIRE_VERSION.to_owned())]),
        num_replicas: replicas,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..Default::default()
    };
    let mut streams = vec![
        Config {
            name: names::COMMANDS.into(),
            subjects: vec![names::COMMAND_SUBJECTS.into()],
            max_bytes: sizes.commands_bytes.unwrap_or(COMMANDS_BYTES),
            ..base.clone()
        },
        Config {
            name: names::EVENTS.into(),
            subjects: vec![names::EVENT_SUBJECT.into()],
            max_bytes: sizes.events_bytes.unwrap_or(EVENTS_BYTES),
            ..base.clone()
        },
        Config {
            name: names::JOBS_STREAM.into(),
            subjects: vec![format!("$KV.{}.>", names::JOBS)],
            max_bytes: sizes.jobs_bytes.unwrap_or(JOBS_BYTES),
            max_messages_per_subject: 1,
            allow_rollup: true,
            deny_delete: true,
            allow_message_ttl: true,
            allow_atomic_publish: true,
            ..base.clone()
        },
        Config {
            name: names::RESULTS_STREAM.into(),
            subjects: vec![
                format!("$O.{}.C.>", names::RESULTS),
                format!("$O.{}.M.>", names::RESULTS),
            ],
            max_bytes: sizes.results_bytes.unwrap_or(RESULTS_BYTES),
            allow_rollup: true,
            allow_message_ttl: true,
            ..base.clone()
        },
        Config {
            name: names::AUDIT.into(),
            subjects: vec![names::AUDIT_SUBJECT.into()],
            max_bytes: AUDIT_BYTES_MAX,
            // ClickHouse keeps them.
            discard: DiscardPolicy::Old,
            ..base.clone()
        },
        Config {
            name: names::REJECTED.into(),
            subjects: vec![names::REJECTED_SUBJECTS.into()],
            max_bytes: REJECTED_BYTES_MAX,
            max_age: REJECTED_AGE_MAX,
            max_messages_per_subject: 1,
            // The oldest go: nothing waits for these.
            discard: DiscardPolicy::Old,
            ..base.clone()
        },
    ];
    // Ready work follows from EVENTS: what a power cut takes is dispatched again. With one replica NATS
    // can sync it in the background, and then takes no atomic batches. In a cluster no service notices
    // that the server of these streams was restarted.
    let in_background = replicas == 1 && !is_in_cluster;
    for class in PriorityClass::ALL {
        streams.push(Config {
            name: names::work_stream(class).into(),
            subjects: vec![names::work_subjects(class)],
            max_bytes: sizes.work_bytes.unwrap_or(WORK_BYTES),
            retention: RetentionPolicy::WorkQueue,
            max_messages_per_subject: 1,
            discard_new_per_subject: true,
            allow_rollup: true,
            allow_atomic_publish: !in_background,
            persist_mode: in_background.then_some(PersistenceMode::Async),
            ..base.clone()
        });
    }
    streams
}

/// Makes a stream, or returns what is there.
async fn ensure_stream(broker: &Broker, wanted: Config) -> Result<Option<Info>, Error> {
    let name = wanted.name.clone();
    match broker.js.get_stream(&name).await {
        Ok(stream) => {
            check(&stream.cached_info().config, &wanted)?;
            Ok(Some(stream.cached_info().clone()))
        }
        Err(error) => match absent(&name, &error) {
            Error::Absent { .. } => {
                let replicas = wanted.num_replicas;
                let made = broker.js.create_stream(wanted).await;
                made.map(|_| None).map_err(|error| resize::refused(&name, replicas, &error))
            }
            error => Err(error),
        },
    }
}

/// What it means that a stream could not be read.
fn absent(name: &str, error: &GetStreamError) -> Error {
    match error.kind() {
        GetStreamErrorKind::JetStream(inner)
            if inner.error_code() == ErrorCode::STREAM_NOT_FOUND =>
        {
            Error::Absent { stream: name.to_owned() }
        }
        _ => failed(name, error),
    }
}

/// Compares the settings that the rules depend on. Sizes and replicas are the operator's, and ready work
/// is dispatched as its stream permits.
fn check(found: &Config, wanted: &Config) -> Result<(), Error> {
    let rules = |config: &Config| {
        // Ready work is dispatched in batches or in the background.
        let is_work = config.retention == RetentionPolicy::WorkQueue;
        let in_background = is_work && config.persist_mode == Some(PersistenceMode::Async);
        [
            ("subjects", format!("{:?}", config.subjects)),
            ("retention", format!("{:?}", config.retention)),
            ("discard", format!("{:?}", config.discard)),
            ("discard_new_per_subject", config.discard_new_per_subject.to_string()),
            ("max_msgs_per_subject", config.max_messages_per_subject.max(0).to_string()),
            ("max_age", format!("{:?}", config.max_age)),
            ("storage", format!("{:?}", config.storage)),
            ("allow_msg_ttl", config.allow_message_ttl.to_string()),
            ("allow_atomic", (in_background || config.allow_atomic_publish).to_string()),
            ("allow_rollup_hdrs", config.allow_rollup.to_string()),
        ]
    };
    for ((name, has), (_, needs)) in rules(found).into_iter().zip(rules(wanted)) {
        if has != needs {
            return Err(Error::Mismatch {
                stream: wanted.name.clone(),
                found: format!("{name} = {has}"),
                wanted: format!("{name} = {needs}"),
            });
        }
    }
    let version = found.metadata.get(WIRE_VERSION_KEY).map_or("1", String::as_str);
    if version != WIRE_VERSION {
        return Err(Error::WireVersion { stream: wanted.name.clone(), found: version.to_owned() });
    }
    Ok(())
}
