//! What may be set of a project: limits, weight, pause, and how its jobs fail and are kept.

mod llm;
pub(crate) mod size;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    Backoff, Id, Json, Limits,
    bounds::{ATTEMPTS_MAX, EXPIRES_IN_S_MAX},
    limits::SCHEDULES_MAX,
    webhook::Webhook,
};

pub use llm::{LLM, LlmOptions, MaxTokensField};

/// The settings of a project. What is absent follows the configuration; a limit of 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// Jobs that may run at once, over all processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    /// Runs that may start in any 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens counted in the last 60 s beyond which no run starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Jobs that may be queued or running; set by admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_active_jobs: Option<u32>,
    /// Bytes of the data of these jobs; set by admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_active_bytes: Option<u64>,
    /// Jobs that may be enqueued in any 60 s; set by admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enqueues_per_minute: Option<u32>,
    /// Schedules that it may have; set by admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_schedules: Option<u32>,
    /// Turns that the project has where others have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Whether nothing of it is started.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Attempts of a job whose request named no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// How long a failed attempt waits for the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Backoff>,
    /// How long a job may be deferred in a row before it fails, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_deferral: Option<u32>,
    /// How long a job is kept after it ended, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<u32>,
    /// How long a job may wait to be started before it is canceled, in seconds, if its request
    /// names no time; if absent, jobs do not expire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u32>,
    /// The handler that runs its jobs, by name; the processor's own choice where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub handler: Option<Id>,
    /// What that handler is given beside each job: a JSON object that it knows the meaning of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub options: Option<Json>,
    /// The webhook that is notified of the ends of its jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub webhook: Option<Webhook>,
}

/// A change of settings: a field that is absent stays as it is, one that is null goes back to
/// the configuration's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields, expecting = "a JSON object")]
pub struct Patch {
    /// Jobs that may run at once, over all processors; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, maximum = 2_147_483_647))]
    pub max_concurrency: Option<Option<u32>>,
    /// Runs that may start in any 60 s; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, maximum = 2_147_483_647))]
    pub requests_per_minute: Option<Option<u32>>,
    /// Tokens counted in the last 60 s beyond which no run starts; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>, maximum = 9_007_199_254_740_991_u64))]
    pub tokens_per_minute: Option<Option<u64>>,
    /// Jobs that may be queued or running; 0 is no limit. Only admins set it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, maximum = 2_147_483_647))]
    pub max_active_jobs: Option<Option<u32>>,
    /// Bytes of the data of these jobs; 0 is no limit. Only admins set it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>, maximum = 9_007_199_254_740_991_u64))]
    pub max_active_bytes: Option<Option<u64>>,
    /// Jobs that may be enqueued in any 60 s; 0 is no limit. Only admins set it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, maximum = 2_147_483_647))]
    pub enqueues_per_minute: Option<Option<u32>>,
    /// Schedules that it may have. Only admins set it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, minimum = 1, maximum = 1000))]
    pub max_schedules: Option<Option<u32>>,
    /// Turns that the project has where others have one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, minimum = 1, maximum = 100))]
    pub weight: Option<Option<u32>>,
    /// Whether nothing of it is started.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub paused: Option<Option<bool>>,
    /// Attempts of a job whose request named no number.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, minimum = 1, maximum = 100))]
    pub max_attempts: Option<Option<u32>>,
    /// How long a failed attempt waits for the next.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Backoff>))]
    pub retry: Option<Option<Backoff>>,
    /// How long a job may be deferred in a row before it fails, in seconds.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, minimum = 0, maximum = 316_224_000))]
    pub max_deferral: Option<Option<u32>>,
    /// How long a job is kept after it ended, in seconds.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, minimum = 1, maximum = 316_224_000))]
    pub retention: Option<Option<u32>>,
    /// How long a job may wait to be started before it is canceled, in seconds, if its request
    /// names no time. It concerns jobs that are enqueued afterwards.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, minimum = 1, maximum = 316_224_000))]
    pub expires_in: Option<Option<u32>>,
    /// The handler that runs its jobs, by name.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub handler: Option<Option<Id>>,
    /// What that handler is given beside each job: a JSON object of at most 64 KB.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub options: Option<Option<Json>>,
    /// The webhook that is notified of the ends of its jobs.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Webhook>))]
    pub webhook: Option<Option<Webhook>>,
}

/// Tells a field that is null from one that is absent.
fn named<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// The most turns of a project for each turn of another.
const WEIGHT_MAX: u32 = 100;
/// The longest time that an ended job may be kept, in seconds: ten years.
const RETENTION_S_MAX: u32 = 10 * 366 * 24 * 3_600;
/// The largest options of a handler, in bytes.
const OPTIONS_BYTES_MAX: usize = 64 * 1024;
/// The highest of the other limits.
const LIMIT_MAX: u32 = i32::MAX as u32;
/// The highest limit of tokens and bytes: the largest integer that all readers of JSON hold exactly.
const LARGE_LIMIT_MAX: u64 = (1 << 53) - 1;
/// The longest name of a handler, in bytes.
const HANDLER_BYTES_MAX: usize = 64;

impl Patch {
    /// Checks that every setting is within its bounds.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        let within = |field: &str, value: Option<Option<u32>>, low: u32, high: u32| match value {
            Some(Some(value)) if !(low..=high).contains(&value) => {
                Err(format!("{field} must be an integer from {low} to {high}"))
            }
            _ => Ok(()),
        };
        let large = |field: &str, value: Option<Option<u64>>| match value.flatten() {
            Some(value) if value > LARGE_LIMIT_MAX => {
                Err(format!("{field} must be an integer from 0 to {LARGE_LIMIT_MAX}"))
            }
            _ => Ok(()),
        };
        large("tokensPerMinute", self.tokens_per_minute)?;
        large("maxActiveBytes", self.max_active_bytes)?;
        within("maxActiveJobs", self.max_active_jobs, 0, LIMIT_MAX)?;
        within("enqueuesPerMinute", self.enqueues_per_minute, 0, LIMIT_MAX)?;
        within("maxSchedules", self.max_schedules, 1, SCHEDULES_MAX)?;
        within("maxConcurrency", self.max_concurrency, 0, LIMIT_MAX)?;
        within("requestsPerMinute", self.requests_per_minute, 0, LIMIT_MAX)?;
        within("weight", self.weight, 1, WEIGHT_MAX)?;
        within("maxAttempts", self.max_attempts, 1, ATTEMPTS_MAX)?;
        within("maxDeferral", self.max_deferral, 0, RETENTION_S_MAX)?;
        within("expiresIn", self.expires_in, 1, EXPIRES_IN_S_MAX)?;
        within("retention", self.retention, 1, RETENTION_S_MAX)?;
        if let Some(Some(retry)) = &self.retry {
            retry.check("retry")?;
        }
        if let Some(Some(options)) = &self.options {
            if !options.get().starts_with('{') || options.get().len() > OPTIONS_BYTES_MAX {
                return Err(format!(
                    "options must be an object of at most {OPTIONS_BYTES_MAX} bytes"
                ));
            }
            crate::json::check("options", options.get()).map_err(|error| error.to_string())?;
        }
        if let Some(Some(handler)) = &self.handler {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            let fits = (1..=HANDLER_BYTES_MAX).contains(&handler.len());
            if !fits || !handler.chars().all(plain) {
                return Err(format!(
                    "handler must be 1 to {HANDLER_BYTES_MAX} characters of A-Z, a-z, 0-9, - and _"
                ));
            }
        }
        match &self.webhook {
            Some(Some(webhook)) => webhook.check(),
            _ => Ok(()),
        }
    }

    /// The fields that only an admin may change, if it has some: the project's share of the mesh.
    pub fn admin_fields(&self) -> Vec<&'static str> {
        let fields = [
            ("maxActiveJobs", self.max_active_jobs.is_some()),
            ("maxActiveBytes", self.max_active_bytes.is_some()),
            ("enqueuesPerMinute", self.enqueues_per_minute.is_some()),
            ("maxSchedules", self.max_schedules.is_some()),
        ];
        fields.into_iter().filter(|(_, is_set)| *is_set).map(|(field, _)| field).collect()
    }

    /// The settings after this change.
    pub fn apply(&self, to: &Settings) -> Settings {
        fn pick<T: Clone>(change: &Option<Option<T>>, was: &Option<T>) -> Option<T> {
            change.clone().unwrap_or_else(|| was.clone())
        }
        Settings {
            max_concurrency: pick(&self.max_concurrency, &to.max_concurrency),
            requests_per_minute: pick(&self.requests_per_minute, &to.requests_per_minute),
            tokens_per_minute: pick(&self.tokens_per_minute, &to.tokens_per_minute),
            max_active_jobs: pick(&self.max_active_jobs, &to.max_active_jobs),
            max_active_bytes: pick(&self.max_active_bytes, &to.max_active_bytes),
            enqueues_per_minute: pick(&self.enqueues_per_minute, &to.enqueues_per_minute),
            max_schedules: pick(&self.max_schedules, &to.max_schedules),
            weight: pick(&self.weight, &to.weight),
            paused: self.paused.map_or(to.paused, Option::unwrap_or_default),
            max_attempts: pick(&self.max_attempts, &to.max_attempts),
            retry: pick(&self.retry, &to.retry),
            max_deferral: pick(&self.max_deferral, &to.max_deferral),
            retention: pick(&self.retention, &to.retention),
            expires_in: pick(&self.expires_in, &to.expires_in),
            handler: pick(&self.handler, &to.handler),
            options: pick(&self.options, &to.options),
            webhook: pick(&self.webhook, &to.webhook),
        }
    }
}

impl Settings {
    /// Checks what only the settings as a whole show: whether the options mean something to the handler
    /// that they are for.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        match self.handler.as_deref() {
            Some(LLM) => LlmOptions::read(self.options.as_ref()).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The settings that hold, where those of `config` hold for what is not set.
    pub fn or(self, config: &crate::Config) -> Self {
        let limits = self.limits(&config.limits);
        let seconds = |ms: i64| u32::try_from(ms / 1_000).unwrap_or(u32::MAX);
        let (retention, max_deferral) =
            (seconds(config.retention_ms), seconds(config.max_deferral_ms));
        Self {
            max_concurrency: Some(limits.max_concurrency),
            requests_per_minute: Some(limits.requests_per_minute),
            tokens_per_minute: Some(limits.tokens_per_minute),
            max_active_jobs: Some(limits.max_active_jobs),
            max_active_bytes: Some(limits.max_active_bytes),
            enqueues_per_minute: Some(limits.enqueues_per_minute),
            max_schedules: Some(limits.max_schedules),
            weight: self.weight.or(Some(1)),
            paused: self.paused,
            max_attempts: self.max_attempts.or(Some(config.max_attempts)),
            retry: self.retry.or(Some(config.backoff)),
            max_deferral: self.max_deferral.or(Some(max_deferral)),
            retention: self.retention.or(Some(retention)),
            expires_in: self.expires_in,
            handler: self.handler,
            options: self.options,
            webhook: self.webhook,
        }
    }

    /// Removes secrets.
    pub fn forget_secrets(&mut self) {
        if let Some(webhook) = &mut self.webhook {
            webhook.secret = Id::default();
            webhook.previous_secret = None;
        }
    }

    /// The limits that hold, where `defaults` hold for what is not set.
    pub fn limits(&self, defaults: &Limits) -> Limits {
        Limits {
            max_concurrency: self.max_concurrency.unwrap_or(defaults.max_concurrency),
            requests_per_minute: self.requests_per_minute.unwrap_or(defaults.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.unwrap_or(defaults.tokens_per_minute),
            max_active_jobs: self.max_active_jobs.unwrap_or(defaults.max_active_jobs),
            max_active_bytes: self.max_active_bytes.unwrap_or(defaults.max_active_bytes),
            enqueues_per_minute: self.enqueues_per_minute.unwrap_or(defaults.enqueues_per_minute),
            max_schedules: self.max_schedules.unwrap_or(defaults.max_schedules),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_after_they_are_written_and_read() {
        let retry = r#"{"retry":{"baseMs":4,"factor":2,"capMs":8,"jitter":4e-084}}"#;
        let patch: Patch = serde_json::from_str(retry).expect("it is a patch");
        let settings = patch.apply(&Settings::default());
        let json = serde_json::to_string(&settings).expect("it is JSON");
        assert_eq!(serde_json::from_str::<Settings>(&json).expect("it is settings"), settings);
    }

    #[test]
    fn absent_stays_and_null_resets() {
        let was = Settings {
            max_concurrency: Some(3),
            weight: Some(2),
            paused: true,
            ..Settings::default()
        };
        let patch = r#"{"weight":null,"requestsPerMinute":60}"#;
        let patch: Patch = serde_json::from_str(patch).expect("it is a patch");
        let now = patch.apply(&was);
        assert_eq!(now.max_concurrency, Some(3));
        assert_eq!((now.weight, now.requests_per_minute, now.paused), (None, Some(60), true));
        let back: Patch = serde_json::from_str(&serde_json::to_string(&patch).expect("it is JSON"))
            .expect("it is a patch");
        assert_eq!(back, patch);
    }
}
