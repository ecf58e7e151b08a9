//! Which jobs an operation selects.

use job::{Id, JobFilter, JobType, Status, bounds::OPERATION_JOBS_MAX, operation::OperationAction};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    endpoints::{named, parameters, time},
    error::Error,
    ids,
    keys::Access,
    openapi::ClientJobType,
};

/// Projects that one operation names.
const PROJECTS_MAX: usize = 100;

/// Selects jobs. Every field that is set must match.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = OperationFilter)]
pub(super) struct Filter {
    /// All projects of the API key if `projectId` and `projectIds` are absent.
    #[schema(min_length = 1, max_length = 128)]
    pub project_id: Option<String>,
    /// The same for several projects.
    #[schema(min_items = 1, max_items = 100)]
    pub project_ids: Option<Vec<String>>,
    /// Only these jobs; their projects must be named.
    #[schema(value_type = Option<Vec<uuid::Uuid>>, min_items = 1, max_items = 1_000)]
    job_ids: Option<Vec<String>>,
    status: Option<String>,
    #[schema(value_type = Option<ClientJobType>)]
    r#type: Option<String>,
    #[schema(min_length = 1, max_length = 128)]
    batch_id: Option<String>,
    /// The processor that runs the job, or ran it last.
    #[schema(min_length = 1, max_length = 128)]
    processor: Option<String>,
    /// The group of the last error.
    #[schema(pattern = "^[0-9a-fA-F]{16}$")]
    error_group: Option<String>,
    /// Only jobs that were enqueued before this time.
    #[schema(value_type = Option<crate::openapi::When>)]
    created_before: Option<String>,
    /// With `retry`: only jobs that ended at this time or later.
    #[schema(value_type = Option<crate::openapi::When>)]
    from: Option<String>,
    /// With `retry`: only jobs that ended before this time.
    #[schema(value_type = Option<crate::openapi::When>)]
    to: Option<String>,
}

impl Filter {
    /// The projects, as far as the API key is for them.
    pub fn projects(&self, access: &Access) -> Result<Option<Vec<Id>>, Error> {
        let named = match (&self.project_id, &self.project_ids) {
            (Some(_), Some(_)) => {
                let text = "filter.projectId and filter.projectIds exclude each other";
                return Err(Error::invalid(text));
            }
            (None, None) if self.job_ids.is_some() => {
                let text = "filter.jobIds needs filter.projectId or filter.projectIds";
                return Err(Error::invalid(text));
            }
            (one, None) => return parameters::projects(access, one.clone()),
            (None, Some(several)) => several,
        };
        if named.is_empty() || named.len() > PROJECTS_MAX {
            let text = format!("filter.projectIds must have 1 to {PROJECTS_MAX} items");
            return Err(Error::invalid(text));
        }
        let mut projects = Vec::new();
        for (index, id) in named.iter().enumerate() {
            let project = ids::id(&format!("filter.projectIds[{index}]"), id)?;
            access.project(&project)?;
            projects.push(project);
        }
        projects.sort_unstable();
        projects.dedup();
        Ok(Some(projects))
    }

    pub fn jobs(&self, action: OperationAction) -> Result<JobFilter, Error> {
        let text = |field: &str, value: &Option<String>| {
            value.as_deref().map(|value| ids::id(field, value)).transpose()
        };
        let at = |field: &str, value: &Option<String>| {
            value.as_deref().map(|value| time(field, value)).transpose()
        };
        let status = self.status.as_deref();
        let status =
            status.map(|name| named("filter.status", name, action.statuses(), Status::name));
        let (from, to) = (at("filter.from", &self.from)?, at("filter.to", &self.to)?);
        if action != OperationAction::Retry && (from.is_some() || to.is_some()) {
            return Err(Error::invalid(
                "filter.from and filter.to are times of ends, and go with the action retry only",
            ));
        }
        if from.zip(to).is_some_and(|(from, to)| from >= to) {
            return Err(Error::invalid("filter.to must be after filter.from"));
        }
        Ok(JobFilter {
            jobs: self
                .job_ids
                .as_deref()
                .map(|listed| ids::uuids("filter.jobIds", listed, OPERATION_JOBS_MAX, "a job"))
                .transpose()?,
            // One that follows from the action selects nothing.
            status: status.transpose()?.filter(|_| action.statuses().len() > 1),
            job_type: self
                .r#type
                .as_deref()
                .map(|name| named("filter.type", name, &JobType::ALL, JobType::name))
                .transpose()?,
            batch: text("filter.batchId", &self.batch_id)?,
            processor: text("filter.processor", &self.processor)?,
            error_group: self.error_group.as_deref().map(parameters::error_group).transpose()?,
            created_before: at("filter.createdBefore", &self.created_before)?,
            from,
            to,
        })
    }
}
