//! GET, PUT and DELETE /api/projects/{projectId}/schedules/{name}: jobs by the calendar.

use axum::extract::{Path, State, rejection::PathRejection};
use job::{
    Id, JobId, Json,
    command::SetSchedule,
    reply::Reply,
    schedule::{IfLive, Schedule, ScheduleState},
};
use nats::{
    names::{self, Verb},
    query::{ProjectQuery, SchedulesAnswer},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Answer,
    command::{self, DURABLE},
    enqueue, max_attempts, ok, priority,
    projects::project_id,
};
use crate::{
    app::App,
    body::{self, Body, NoQuery},
    error::Error,
    ids,
    keys::Access,
    openapi::QuestionError,
    view::Time,
};

/// The time zone of a schedule that names none.
const TIME_ZONE_DEFAULT: &str = "UTC";
/// The priority of a schedule that names none.
const PRIORITY_DEFAULT: u16 = 10;
/// The longest cron pattern and the longest name of a time zone, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// A path: which project, which schedule.
type Named = Result<Path<(String, String)>, PathRejection>;

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = ScheduleRequest)]
struct Request {
    /// Minute, hour, day of month, month, day of week.
    #[schema(value_type = String, required = true, max_length = 256, example = "0 8 * * 1-5")]
    cron: Option<String>,
    /// A name of the IANA database; UTC where absent.
    #[schema(max_length = 256)]
    time_zone: Option<String>,
    /// The schedule's name where absent.
    #[schema(min_length = 1, max_length = 128)]
    batch_id: Option<String>,
    #[schema(value_type = Option<u16>, minimum = 0, maximum = 1_000)]
    priority: Option<serde_json::Number>,
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 100)]
    max_attempts: Option<serde_json::Number>,
    #[schema(value_type = Option<Object>)]
    data: Option<Json>,
    if_live: Option<IfLive>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ScheduleAnswer)]
pub(crate) struct Response {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<View>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ScheduleList)]
pub(crate) struct Listed {
    success: bool,
    schedules: Vec<View>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ScheduleView)]
struct View {
    #[schema(value_type = String)]
    name: Id,
    #[serde(flatten)]
    schedule: Schedule,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at: Option<Time>,
    /// The next times, five at most.
    #[schema(value_type = Vec<crate::openapi::When>)]
    next_times: Vec<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    last_job_id: Option<JobId>,
}

impl View {
    fn new(name: Id, timed: ScheduleState) -> Self {
        let ScheduleState { schedule, next_at, last_at, last_job_id } = timed;
        let times = next_at.map(|first| schedule.times_from(first, NEXT_TIMES));
        Self {
            name,
            next_at: next_at.map(Time),
            next_times: times.into_iter().flatten().map(Time).collect(),
            schedule,
            last_at: last_at.map(Time),
            last_job_id,
        }
    }
}

/// How many of the next times are shown.
const NEXT_TIMES: usize = 5;

/// Shows the schedules of a project.
#[utoipa::path(
    get, path = "/api/projects/{projectId}/schedules", tag = "projects", params(("projectId" = String, Path, min_length = 1, max_length = 128)),
    responses((status = 200, description = "As it is now.", body = Listed), QuestionError),
)]
pub(crate) async fn list_schedules(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Listed> {
    let project = project_id(&access, id)?;
    access.content("schedules, which contain data")?;
    let schedules = schedules(&app, project).await?;
    // The search for the next times may take a millisecond each.
    let views = move || schedules.into_iter().map(|(name, timed)| View::new(name, timed)).collect();
    let schedules = tokio::task::spawn_blocking(views).await;
    let schedules = schedules.map_err(|_| Error::internal("a search of schedules ended early"))?;
    ok(Listed { success: true, schedules })
}

/// Shows one schedule.
#[utoipa::path(
    get, path = "/api/projects/{projectId}/schedules/{name}", tag = "projects", params(("projectId" = String, Path, min_length = 1, max_length = 128), ("name" = String, Path, min_length = 1, max_length = 128)),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn get_schedule(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    path: Named,
) -> Answer<Response> {
    let (project, name) = named(&access, path)?;
    access.content("schedules, which contain data")?;
    let schedules = schedules(&app, project.clone()).await?;
    let found = schedules.into_iter().find(|(known, _)| *known == name);
    let Some((name, timed)) = found else {
        let text = format!("project {project:?} has no schedule {name:?}");
        return Err(Error::schedule_not_found(text));
    };
    ok(Response { success: true, schedule: Some(View::new(name, timed)), message: None })
}

/// Sets a schedule, and replaces one of that name.
#[utoipa::path(
    put, path = "/api/projects/{projectId}/schedules/{name}", tag = "projects", params(("projectId" = String, Path, min_length = 1, max_length = 128), ("name" = String, Path, min_length = 1, max_length = 128)), request_body = Request,
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn put_schedule(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    path: Named,
    Body(body): Body,
) -> Answer<Response> {
    let (project, name) = named(&access, path)?;
    let request: Request = body::read(&body)?;
    let schedule = schedule(request, &name)?;
    // State checks it again; here it costs the stream nothing. The search may take a millisecond.
    let checked = schedule.clone();
    let next = tokio::task::spawn_blocking(move || checked.next_after(service::now_ms())).await;
    let next = next.map_err(|_| Error::internal("the search of a schedule ended early"))?;
    next.map_err(|error| Error::invalid(error.to_string()))?;
    set(&app, SetSchedule { project, name, schedule: Some(schedule) }).await
}

/// Removes a schedule; jobs that it enqueued stay.
#[utoipa::path(
    delete, path = "/api/projects/{projectId}/schedules/{name}", tag = "projects", params(("projectId" = String, Path, min_length = 1, max_length = 128), ("name" = String, Path, min_length = 1, max_length = 128)),
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn delete_schedule(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    path: Named,
) -> Answer<Response> {
    let (project, name) = named(&access, path)?;
    set(&app, SetSchedule { project, name, schedule: None }).await
}

async fn set(app: &App, ask: SetSchedule) -> Answer<Response> {
    let name = ask.name.clone();
    let respond = |reply| {
        let (schedule, message) = match reply {
            None => (None, Some(DURABLE.to_owned())),
            Some(Reply::ScheduleSet(Some(timed))) => (Some(View::new(name, *timed)), None),
            Some(Reply::ScheduleSet(None)) => (None, Some(format!("removed schedule {name:?}"))),
            Some(_) => return None,
        };
        Some(Response { success: true, schedule, message })
    };
    command::submit(app, Verb::Schedule, ask, respond).await
}

fn named(access: &Access, path: Named) -> Result<(Id, Id), Error> {
    let Path((project, name)) =
        path.map_err(|_| Error::invalid("projectId and name in the path must be UTF-8"))?;
    let project = ids::id("projectId", &project)?;
    access.project(&project)?;
    Ok((project, ids::id("name", &name)?))
}

fn schedule(request: Request, name: &Id) -> Result<Schedule, Error> {
    let text = |field: &str, value: String| {
        if value.len() > TEXT_BYTES_MAX {
            return Err(Error::invalid(format!("{field} is longer than {TEXT_BYTES_MAX} bytes")));
        }
        Ok(Id::from(value))
    };
    let batch_id = request.batch_id.map(|id| ids::id("batchId", &id)).transpose()?;
    let data = request.data.map(|data| enqueue::object("data", data)).transpose()?;
    Ok(Schedule {
        cron: text("cron", request.cron.ok_or_else(|| Error::missing("cron"))?)?,
        time_zone: text("timeZone", request.time_zone.unwrap_or(TIME_ZONE_DEFAULT.to_owned()))?,
        batch_id: batch_id.unwrap_or_else(|| name.clone()),
        priority: priority(request.priority.as_ref(), PRIORITY_DEFAULT)?,
        max_attempts: max_attempts(request.max_attempts.as_ref())?,
        data: data.unwrap_or_else(Json::default),
        if_live: request.if_live.unwrap_or_default(),
    })
}

async fn schedules(app: &App, project: Id) -> Result<Vec<(Id, ScheduleState)>, Error> {
    let answer = app.ask_state(names::QUERY_SCHEDULES, &ProjectQuery { project }).await;
    let answer: SchedulesAnswer = answer.map_err(|error| {
        tracing::warn!(error = %error, "schedules without state");
        Error::away("state", "state does not answer, and only it knows the schedules")
    })?;
    Ok(answer.schedules)
}
