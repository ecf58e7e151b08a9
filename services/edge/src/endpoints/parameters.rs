//! Parameters that several endpoints share.

use job::{Id, JobType};
use nats::query::RunFilter;

use super::{named, time};
use crate::{error::Error, ids, keys::Access};

/// Reads the project of a list: all that the key is for, if it is absent.
pub(super) fn projects(access: &Access, project: Option<String>) -> Result<Option<Vec<Id>>, Error> {
    let project = project.map(|id| ids::id("projectId", &id)).transpose()?;
    access.visible(project)
}

/// Reads `type`.
pub(super) fn job_type(name: &str) -> Result<JobType, Error> {
    named("type", name, &JobType::ALL, JobType::name)
}

/// The parameters that select runs.
pub(super) struct RunParameters {
    pub project: Option<String>,
    pub job_type: Option<String>,
    pub model: Option<String>,
    pub processor: Option<String>,
    pub error_group: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
}

impl RunParameters {
    /// The filter that they mean, for the projects of the key.
    pub fn filter(self, access: &Access) -> Result<RunFilter, Error> {
        let text = |name: &str, value: Option<String>| {
            value.map(|value| ids::id(name, &value).map(|_| value)).transpose()
        };
        let filter = RunFilter {
            projects: projects(access, self.project)?,
            job_type: self
                .job_type
                .map(|name| job_type(&name).map(|job_type| job_type.name().to_owned()))
                .transpose()?,
            model: text("model", self.model)?,
            processor: text("processor", self.processor)?,
            error_group: self.error_group.as_deref().map(error_group).transpose()?,
            from: self.from.as_deref().map(|text| time("from", text)).transpose()?,
            to: self.to.as_deref().map(|text| time("to", text)).transpose()?,
        };
        match (filter.from, filter.to) {
            (Some(from), Some(to)) if from >= to => Err(Error::invalid("to must be after from")),
            _ => Ok(filter),
        }
    }
}

/// Reads `errorGroup`.
pub(super) fn error_group(text: &str) -> Result<u64, Error> {
    let is_id = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let group = u64::from_str_radix(text, 16).ok().filter(|_| is_id);
    group.ok_or_else(|| {
        Error::invalid("errorGroup must be the id of an error group: 16 hexadecimal digits")
    })
}

/// The id of an error group, as clients have it.
pub(super) fn error_group_id(group: u64) -> String {
    format!("{group:016x}")
}
