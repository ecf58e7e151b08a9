//! Applies the events of operations and bulk operations.

use uuid::Uuid;

use crate::{
    Id, Position, State,
    bulk::{BulkAction, BulkOperation, BulkProgress},
    operation::{Operation, OperationPart, OperationStarted, OperationStatus, Operations},
    time::Millis,
};

impl State {
    pub(super) fn apply_operation_started(
        &mut self,
        at: Millis,
        position: Position,
        started: &OperationStarted,
    ) {
        let OperationStarted { operation, priority_class, of_projects } = started;
        let mut operation = operation.clone();
        operation.started_at = at;
        operation.projects_left = of_projects.len();
        if of_projects.is_empty() {
            operation.end(at, OperationStatus::Finished);
        }
        let part = |project: &Id| {
            let part = OperationPart {
                operation: operation.id,
                action: operation.action,
                priority_class: *priority_class,
                filter: operation.filter.clone(),
            };
            let part = BulkAction::Operation(Box::new(part));
            let new = BulkOperation::new(project.clone(), part, None);
            BulkOperation { started: position, started_at: at, ..new }
        };
        self.persisted.bulk.push_all(of_projects.iter().map(part));
        self.persisted.operations.push(operation);
    }

    pub(super) fn apply_operation_aborted(&mut self, at: Millis, id: Uuid, by: Option<&Id>) {
        let is_part = |operation: &BulkOperation| matches!(&operation.action, BulkAction::Operation(part) if part.operation == id);
        self.persisted.bulk.retain(|operation| !is_part(operation));
        if let Some(operation) = self.persisted.operations.get_mut(id) {
            operation.aborted_by = by.cloned();
            operation.end(at, OperationStatus::Aborted);
        }
    }

    /// Applies the start of a bulk operation.
    pub(super) fn apply_bulk_started(
        &mut self,
        at: Millis,
        position: Position,
        new: &BulkOperation,
    ) {
        let operation = BulkOperation { started: position, started_at: at, ..new.clone() };
        self.persisted.bulk.push(operation);
    }

    /// Applies a slice that was not the last; the operations of other projects are next.
    pub(super) fn apply_bulk_advanced(&mut self, project: &Id, slice: &BulkProgress) {
        let mut operations = self.persisted.bulk.take(project);
        if let Some(operation) = operations.front_mut() {
            operation.progress.add(slice);
            add(&mut self.persisted.operations, operation, slice);
        }
        self.persisted.bulk.put_back(project, operations);
    }

    /// Applies the end of the first operation of a project.
    pub(super) fn apply_bulk_finished(
        &mut self,
        at: Millis,
        project: &Id,
        slice: Option<&BulkProgress>,
    ) {
        let mut operations = self.persisted.bulk.take(project);
        let ended = operations.pop_front();
        self.persisted.bulk.put_back(project, operations);
        if let (Some(ended), Some(slice)) = (&ended, slice)
            && let Some(operation) = add(&mut self.persisted.operations, ended, slice)
        {
            operation.projects_left = operation.projects_left.saturating_sub(1);
            if operation.projects_left == 0 {
                operation.end(at, OperationStatus::Finished);
            }
        }
    }
}

/// Adds a slice to the operation that it is part of.
fn add<'a>(
    operations: &'a mut Operations,
    part: &BulkOperation,
    slice: &BulkProgress,
) -> Option<&'a mut Operation> {
    let BulkAction::Operation(part) = &part.action else { return None };
    operations.add(part.operation, slice.looked_at, slice.jobs, slice.skipped)
}
