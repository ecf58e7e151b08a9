//! Operations: started over the projects that have jobs for them, and aborted.

use uuid::Uuid;

use super::{Decision, Lookups, Missing, bulk::OPERATIONS_MAX, record};
use crate::{
    Config, Id, State,
    command::{AbortOperation, OperationCommand, StartOperation},
    event::Event,
    internal,
    operation::{
        Operation, OperationAction, OperationStarted, OperationStatus, RUNNING_MAX,
        RUNNING_OF_PROJECT_MAX,
    },
    reply::{Code, Reply},
    time::Millis,
};

/// Projects of one operation: their ids fit one message of EVENTS.
const PROJECTS_MAX: usize = 10_000;

impl State {
    pub(super) fn decide_operation(
        &self,
        config: &Config,
        lookups: &Lookups,
        now: Millis,
        command: &OperationCommand,
    ) -> Result<Decision, Missing> {
        match command {
            OperationCommand::Start(start) => self.decide_start(config, lookups, now, start),
            OperationCommand::Abort(abort) => Ok(self.decide_abort(now, abort)),
        }
    }

    fn decide_start(
        &self,
        config: &Config,
        lookups: &Lookups,
        now: Millis,
        start: &StartOperation,
    ) -> Result<Decision, Missing> {
        if let Some(decision) = self.answered(lookups, start.idempotency)? {
            return Ok(decision);
        }
        // Another leader may have recorded the start, and not the answer under the key.
        if let Some(known) = self.operation(start.operation.id) {
            return Ok(Decision::reply(Reply::Operation(Box::new(known.clone()))));
        }
        let mut operation = start.operation.clone();
        let mut of_projects = Vec::new();
        operation.candidates = 0;
        let all = self.persisted.projects.iter().filter(|(id, _)| match &operation.projects {
            Some(named) => named.contains(id),
            None => !internal::is_internal(id),
        });
        for (id, project) in all {
            let candidates = self.candidates(project, operation.action, &operation.filter);
            if candidates > 0 {
                operation.candidates += candidates;
                of_projects.push(id.clone());
            }
        }
        of_projects.sort_unstable();
        if let Some(refusal) = self.refuse_start(&operation, &of_projects) {
            return Ok(refusal);
        }
        let priority_class = match operation.action {
            OperationAction::SetPriority { priority } => Some(config.bands.class(priority)),
            OperationAction::Retry | OperationAction::Cancel | OperationAction::Expire => None,
        };
        // As it will be applied.
        let mut started = operation.clone();
        started.started_at = now;
        started.projects_left = of_projects.len();
        if of_projects.is_empty() {
            started.status = OperationStatus::Finished;
            started.ended_at = Some(now);
        }
        let event = OperationStarted { operation, priority_class, of_projects };
        let events = vec![Event::OperationStarted(Box::new(event))];
        let reply = Reply::Operation(Box::new(started));
        let mut decision = Decision { events, reply, stale: Vec::new() };
        record(&mut decision, start.idempotency, now);
        Ok(decision)
    }

    fn refuse_start(&self, operation: &Operation, of_projects: &[Id]) -> Option<Decision> {
        let refused = |error| Some(Decision::refused(Code::TooManyOperations, error));
        let count = of_projects.len();
        if count > PROJECTS_MAX {
            return refused(format!(
                "{count} projects have jobs for this operation, at most {PROJECTS_MAX} may; name a project"
            ));
        }
        let operations = &self.persisted.operations;
        for project in operation.projects.iter().flatten() {
            let parts = self.persisted.bulk.len_of(project);
            let running = operations.running(Some(project));
            if parts >= OPERATIONS_MAX || running >= RUNNING_OF_PROJECT_MAX {
                return refused(format!(
                    "{} requests over many jobs of project {project:?} are in progress; send this one again later",
                    parts.max(running)
                ));
            }
        }
        if operations.running(None) >= RUNNING_MAX {
            return refused(format!(
                "{RUNNING_MAX} operations are in progress; send this one again later"
            ));
        }
        None
    }

    fn decide_abort(&self, now: Millis, abort: &AbortOperation) -> Decision {
        let id = abort.operation;
        let operation =
            self.operation(id).filter(|operation| operation.is_within(abort.projects.as_deref()));
        let Some(operation) = operation else { return not_found(id) };
        let mut aborted = operation.clone();
        if operation.status != OperationStatus::Running {
            return Decision::reply(Reply::Operation(Box::new(aborted)));
        }
        aborted.status = OperationStatus::Aborted;
        aborted.ended_at = Some(now);
        aborted.aborted_by.clone_from(&abort.requested_by);
        aborted.projects_left = 0;
        let by = abort.requested_by.clone();
        Decision {
            events: vec![Event::OperationAborted { operation: id, by }],
            reply: Reply::Operation(Box::new(aborted)),
            stale: Vec::new(),
        }
    }
}

fn not_found(id: Uuid) -> Decision {
    Decision::refused(Code::OperationNotFound, format!("no operation {id}"))
}

impl Operation {
    /// True if it concerns no project but these; `None` stands for all projects.
    pub fn is_within(&self, projects: Option<&[Id]>) -> bool {
        match (projects, &self.projects) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(visible), Some(own)) => own.iter().all(|project| visible.contains(project)),
        }
    }
}
