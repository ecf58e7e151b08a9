//! What clients see of an operation.

use job::{Id, JobId};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Action, Operation, OperationAction, OperationStatus};
use crate::{
    endpoints::parameters::error_group_id,
    openapi::{ClientJobType, When},
    view::Time,
};

/// An operation and how far it is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Operation)]
pub(super) struct View {
    pub operation_id: Uuid,
    action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u16>,
    filter: FilterView,
    status: OperationStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    reason: Option<Id>,
    /// The name of the API key that started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    requested_by: Option<Id>,
    /// The name of the API key that aborted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    aborted_by: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<When>)]
    started_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<When>)]
    ended_at: Option<Time>,
    /// Jobs that it had to look at when it started.
    candidates: u64,
    /// Jobs that it has looked at.
    looked_at: u64,
    /// Jobs that it has changed.
    changed: u64,
    /// Failed jobs that match and stay: superseded by a newer job, or past their retention.
    skipped: u64,
    /// Projects that it has not finished.
    projects_left: usize,
}

/// Which jobs an operation selects.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OperationFilterView)]
struct FilterView {
    /// All projects if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    project_ids: Option<Vec<Id>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<uuid::Uuid>>)]
    job_ids: Option<Vec<JobId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<job::Status>)]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ClientJobType>)]
    r#type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    batch_id: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    processor: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<When>)]
    created_before: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<When>)]
    from: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<When>)]
    to: Option<Time>,
}

/// The longest text about an operation in the audit log, in bytes.
const AUDITED_BYTES_MAX: usize = 1_000;

impl View {
    /// What the audit log shows of it.
    pub fn audited(&self) -> String {
        let action = serde_json::to_string(&self.action).unwrap_or_default();
        let priority = self.priority.map(|n| format!(" {n}")).unwrap_or_default();
        let filter = serde_json::to_string(&self.filter).unwrap_or_default();
        let text = format!("operation {}: {action}{priority} {filter}", self.operation_id);
        job::bounds::truncate(&text, AUDITED_BYTES_MAX)
    }
}

impl From<Operation> for View {
    fn from(operation: Operation) -> Self {
        let (action, priority) = match operation.action {
            OperationAction::Retry => (Action::Retry, None),
            OperationAction::Cancel => (Action::Cancel, None),
            OperationAction::Expire => (Action::Expire, None),
            OperationAction::SetPriority { priority } => (Action::SetPriority, Some(priority)),
        };
        let filter = operation.filter;
        Self {
            operation_id: operation.id,
            action,
            priority,
            filter: FilterView {
                project_ids: operation.projects,
                job_ids: filter.jobs,
                status: filter.status.map(job::Status::name),
                r#type: filter.job_type.map(job::JobType::name),
                batch_id: filter.batch,
                processor: filter.processor,
                error_group: filter.error_group.map(error_group_id),
                created_before: filter.created_before.map(Time),
                from: filter.from.map(Time),
                to: filter.to.map(Time),
            },
            status: operation.status,
            reason: operation.reason,
            requested_by: operation.requested_by,
            aborted_by: operation.aborted_by,
            started_at: (operation.started_at > 0).then_some(Time(operation.started_at)),
            ended_at: operation.ended_at.map(Time),
            candidates: operation.candidates,
            looked_at: operation.looked_at,
            changed: operation.changed,
            skipped: operation.skipped,
            projects_left: operation.projects_left,
        }
    }
}
