//! Webhooks: the receiver of the ends of a project's jobs, as its settings name it.

use std::ops::RangeInclusive;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use crate::{Backoff, Id, Status, bounds::ATTEMPTS_MAX};

/// What a secret begins with.
const SECRET_PREFIX: &str = "whsec_";
/// The longest URL of a webhook, in bytes.
const URL_BYTES_MAX: usize = 2_048;
/// How long the key in a secret may be, in bytes: what Standard Webhooks asks for.
const SECRET_BYTES: RangeInclusive<usize> = 24..=64;

/// The receiver of a project's webhook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "an object")]
pub struct Webhook {
    /// What they are posted to.
    #[cfg_attr(feature = "openapi", schema(value_type = String, max_length = 2048))]
    pub url: Id,
    /// What they are signed with: `whsec_` and base64.
    #[cfg_attr(feature = "openapi", schema(value_type = String, min_length = 38, max_length = 94, pattern = "^whsec_[A-Za-z0-9+/]+=*$"))]
    pub secret: Id,
    /// The secret before it: while it is set, deliveries are signed with both.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, min_length = 38, max_length = 94, pattern = "^whsec_[A-Za-z0-9+/]+=*$"))]
    pub previous_secret: Option<Id>,
    /// The ends to deliver; all if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<End>>, min_items = 1))]
    pub events: Option<Vec<Status>>,
    /// The attempts of a delivery, if not the default.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 100))]
    pub max_attempts: Option<u32>,
    /// The backoff of a delivery, if not the default.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry: Option<Backoff>,
}

/// The ends of a job.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it stands for text in schemas")]
enum End {
    Completed,
    Failed,
    Canceled,
}

impl Webhook {
    /// Checks that it is within its bounds, without looking into the URL.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        let is_http = ["http://", "https://"].iter().any(|scheme| self.url.starts_with(scheme));
        if !is_http || self.url.len() > URL_BYTES_MAX {
            return Err(format!(
                "webhook.url must be an http or https URL of at most {URL_BYTES_MAX} bytes"
            ));
        }
        let secrets =
            [("secret", Some(&self.secret)), ("previousSecret", self.previous_secret.as_ref())];
        for (field, secret) in secrets {
            let is_key =
                |secret: &Id| key(secret).is_some_and(|key| SECRET_BYTES.contains(&key.len()));
            if !secret.is_none_or(is_key) {
                let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
                return Err(format!(
                    "webhook.{field} must be whsec_ and the base64 of {least} to {most} random bytes"
                ));
            }
        }
        let ends = |events: &Vec<Status>| {
            !events.is_empty() && events.len() <= 3 && events.iter().all(|it| it.is_terminal())
        };
        if self.events.as_ref().is_some_and(|events| !ends(events)) {
            return Err(
                "webhook.events must name some of completed, failed and canceled; leave it out \
                 for all"
                    .to_owned(),
            );
        }
        if self.max_attempts.is_some_and(|n| !(1..=ATTEMPTS_MAX).contains(&n)) {
            return Err(format!("webhook.maxAttempts must be an integer from 1 to {ATTEMPTS_MAX}"));
        }
        self.retry.iter().try_for_each(|retry| retry.check("webhook.retry"))
    }

    /// The keys that deliveries are signed with; `None` if a secret is not `whsec_` and base64.
    pub fn keys(&self) -> Option<Vec<Vec<u8>>> {
        [Some(&self.secret), self.previous_secret.as_ref()]
            .into_iter()
            .flatten()
            .map(|it| key(it))
            .collect()
    }
}

/// The key in a secret.
fn key(secret: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(secret.strip_prefix(SECRET_PREFIX)?).ok()
}
