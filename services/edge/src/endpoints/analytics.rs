//! GET /api/queue/analytics: durations, waits, tokens and outcomes over any time, by bucket and group.

use axum::{
    Json,
    extract::State,
    http::{Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use job::{schedule::time_zone_name, time::Millis};
use nats::{
    analytics::{Analytics, Bucket, GroupBy},
    names,
    query::AnalyticsQuery,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{PATIENCE, named, parameters::RunParameters};
use crate::{
    app::App,
    body,
    error::Error,
    keys::Access,
    openapi::{ClientJobType, QuestionError},
};

mod csv;

const MINUTE_MS: Millis = 60_000;
const HOUR_MS: Millis = 60 * MINUTE_MS;
const DAY_MS: Millis = 24 * HOUR_MS;
/// Buckets of an answer.
const BUCKETS_MAX: i64 = 2_000;
/// Rows of an answer: buckets times groups. More would not fit one message.
const ROWS_MAX: i64 = 16_000;
/// The time that a request without `to` means is rounded up to this, so that many requests are one query.
const NOW_STEP_MS: Millis = 1_000;
/// Groups that are listed if the request names no number, and at most.
const GROUPS_DEFAULT: usize = 20;
const GROUPS_MAX: usize = 100;

#[derive(Serialize, ToSchema)]
#[schema(as = AnalyticsAnswer)]
pub(crate) struct Body {
    success: bool,
    analytics: Analytics,
}

/// The format of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "camelCase")]
pub(crate) enum AnalyticsFormat {
    Json,
    /// The sums of each bucket and group, one line each.
    Csv,
}

/// Sums the runs that ended in a time range, by bucket and group.
#[utoipa::path(
    get, path = "/api/queue/analytics", tag = "queue",
    params(
        ("projectId" = Option<String>, Query, description = "All projects of the key if absent.", min_length = 1, max_length = 128),
        ("type" = Option<ClientJobType>, Query),
        ("model" = Option<String>, Query, min_length = 1, max_length = 128),
        ("processor" = Option<String>, Query, min_length = 1, max_length = 128),
        ("errorGroup" = Option<String>, Query, pattern = "^[0-9a-fA-F]{16}$"),
        ("from" = Option<String>, Query, description = "RFC 3339; a day before `to` if absent. Buckets of an hour and longer include its whole hour."),
        ("to" = Option<String>, Query, description = "RFC 3339; now if absent."),
        ("bucket" = Option<Bucket>, Query, description = "`hour` if absent."),
        ("timeZone" = Option<String>, Query, description = "An IANA time zone; `UTC` if absent.", max_length = 64),
        ("groupBy" = Option<GroupBy>, Query, description = "One sum if absent."),
        ("groups" = Option<u32>, Query, description = "How many groups are listed, those with the most jobs; the others are one sum. 20 if absent, or as many as fit.", minimum = 1, maximum = 100),
        ("format" = Option<AnalyticsFormat>, Query, description = "`json` if absent."),
    ),
    responses((status = 200, description = "As it is now.", content((Body = "application/json"), (String = "text/csv"))), QuestionError),
)]
pub(crate) async fn analytics(
    State(app): State<App>,
    access: Access,
    uri: Uri,
) -> Result<Response, Error> {
    let names = [
        "projectId",
        "type",
        "model",
        "processor",
        "errorGroup",
        "from",
        "to",
        "bucket",
        "timeZone",
        "groupBy",
        "groups",
        "format",
    ];
    let [
        project,
        job_type,
        model,
        processor,
        error_group,
        from,
        to,
        bucket,
        time_zone_text,
        group_by,
        groups,
        format,
    ] = body::query(&uri, names)?;
    let parameters = RunParameters { project, job_type, model, processor, error_group, from, to };
    let filter = parameters.filter(&access)?;
    let to =
        filter.to.unwrap_or_else(|| (service::now_ms().div_euclid(NOW_STEP_MS) + 1) * NOW_STEP_MS);
    let bucket = bucket.map(|name| named("bucket", &name, &Bucket::ALL, Bucket::name));
    let group_by = group_by.map(|name| named("groupBy", &name, &GroupBy::ALL, GroupBy::name));
    let format =
        format.map(|name| {
            named("format", &name, &[AnalyticsFormat::Json, AnalyticsFormat::Csv], |format| {
                match format {
                    AnalyticsFormat::Json => "json",
                    AnalyticsFormat::Csv => "csv",
                }
            })
        });
    let mut query = AnalyticsQuery {
        from: filter.from.unwrap_or(to - DAY_MS),
        to,
        bucket: bucket.transpose()?.unwrap_or(Bucket::Hour),
        time_zone: time_zone(time_zone_text.as_deref())?,
        group_by: group_by.transpose()?,
        groups_max: groups.as_deref().map_or(Ok(GROUPS_DEFAULT), groups_max)?,
        filter,
    };
    if groups.is_none() {
        // As many as fit.
        let most = ROWS_MAX / buckets(&query).max(1) - 1;
        query.groups_max = usize::try_from(most).unwrap_or(0).clamp(1, GROUPS_DEFAULT);
    }
    check_range(&query)?;
    let answer = app.broker.query(names::QUERY_ANALYTICS, &query, PATIENCE * 5).await;
    let analytics: Analytics = answer.map_err(|error| {
        tracing::warn!(%error, "no analytics");
        Error::away("metrics", "metrics does not answer, or ClickHouse does not answer it")
    })?;
    Ok(match format.transpose()?.unwrap_or(AnalyticsFormat::Json) {
        AnalyticsFormat::Json => Json(Body { success: true, analytics }).into_response(),
        AnalyticsFormat::Csv => {
            let csv = csv::write(&analytics);
            ([(CONTENT_TYPE, "text/csv; charset=utf-8")], csv).into_response()
        }
    })
}

fn time_zone(name: Option<&str>) -> Result<String, Error> {
    let name = name.map_or(Ok("UTC".to_owned()), time_zone_name);
    name.map_err(|error| Error::invalid(error.to_string()))
}

fn groups_max(text: &str) -> Result<usize, Error> {
    let groups = text.parse().ok().filter(|groups| (1..=GROUPS_MAX).contains(groups));
    groups
        .ok_or_else(|| Error::invalid(format!("groups must be an integer from 1 to {GROUPS_MAX}")))
}

/// How many buckets a query has, about.
fn buckets(query: &AnalyticsQuery) -> i64 {
    let length = match query.bucket {
        Bucket::Minute => MINUTE_MS,
        Bucket::Hour => HOUR_MS,
        Bucket::Day => DAY_MS,
        Bucket::Week => 7 * DAY_MS,
    };
    query.to.saturating_sub(query.from) / length
}

fn check_range(query: &AnalyticsQuery) -> Result<(), Error> {
    let in_calendar = |at: Millis| (0..=253_402_300_799_999).contains(&at);
    if !in_calendar(query.from) || !in_calendar(query.to) {
        return Err(Error::invalid("from and to must be from 1970 to 9999"));
    }
    if query.from >= query.to {
        return Err(Error::invalid("to must be after from"));
    }
    if buckets(query) > BUCKETS_MAX {
        let text = format!(
            "from and to are more than {BUCKETS_MAX} buckets of one {} apart: ask for longer buckets or a shorter time",
            query.bucket.name()
        );
        return Err(Error::invalid(text));
    }
    let groups = query.group_by.map_or(1, |_| query.groups_max as i64 + 1);
    if buckets(query) * groups > ROWS_MAX {
        let text = format!(
            "buckets times groups are more than {ROWS_MAX} rows: ask for longer buckets, a shorter time or fewer groups"
        );
        return Err(Error::invalid(text));
    }
    Ok(())
}
