//! What clients request.

use job::{
    Id, JobFilter, JobId, JobType, Patch,
    command::{
        AbortOperation, Cancel, Command, Enqueue, NewJob, OperationCommand, Project, Retry,
        StartOperation,
    },
    operation::{Operation, OperationAction},
    webhook::Webhook,
};

use uuid::Uuid;

use super::world::{Message, World};

impl World {
    /// Publishes a command.
    pub fn send(&mut self, command: Command) {
        self.commands.push(Message { id: None, commands: vec![command] });
    }

    /// Limits and a webhook that stay as they are until this world is healed.
    pub fn set_limits(&mut self, project: Id) {
        let random = &mut self.random;
        let change = Patch {
            max_concurrency: random.one_in(2).then(|| Some(random.below(4) as u32)),
            requests_per_minute: random.one_in(2).then(|| Some(random.below(12) as u32)),
            tokens_per_minute: random.one_in(4).then(|| Some(random.below(200))),
            weight: random.one_in(3).then(|| Some(random.below(4) as u32 + 1)),
            max_attempts: random.one_in(3).then(|| Some(random.below(3) as u32 + 1)),
            webhook: random.one_in(3).then(|| Some(webhook())),
            ..Patch::default()
        };
        self.send(Command::Project(Project { project, change }));
    }

    /// Publishes a message with one or a few requests.
    pub fn client(&mut self) {
        let count = if self.random.one_in(3) { 3 } else { 1 };
        let commands = (0..count).map(|_| self.request()).collect();
        let number = self.commands.len() as u128 + 1;
        let id = self.random.one_in(2).then(|| Uuid::from_u128(number));
        self.commands.push(Message { id, commands });
    }

    /// Publishes a recent message again, as after an ack that was lost.
    pub fn repeat(&mut self) {
        let mut recent = self.commands.iter().rev().take(5).filter(|message| message.id.is_some());
        if let Some(message) = recent.next_back().cloned() {
            self.commands.push(message);
        }
    }

    fn request(&mut self) -> Command {
        let project = self.project();
        match self.random.below(11) {
            0 => Command::Cancel(Cancel { project, batches: None, idempotency: None }),
            1 => {
                let batch = self.batch();
                Command::Cancel(Cancel { project, batches: Some(vec![batch]), idempotency: None })
            }
            2 => Command::Retry(Retry {
                project,
                job: None,
                filter: JobFilter::default(),
                deliveries: false,
                idempotency: None,
            }),
            3 => {
                let action = match self.random.below(5) {
                    0 => OperationAction::Cancel,
                    2 => OperationAction::Expire,
                    1 => OperationAction::Retry,
                    _ => OperationAction::SetPriority { priority: self.random.below(16) as u16 },
                };
                let id = Uuid::from_u128(self.commands.len() as u128 + 1);
                let projects = self.random.one_in(2).then(|| vec![project]);
                let operation = Operation::new(id, action, projects, JobFilter::default());
                let start = StartOperation { operation, idempotency: None };
                Command::Operation(OperationCommand::Start(Box::new(start)))
            }
            4 => {
                let latest = self.commands.len() as u64;
                let operation = Uuid::from_u128(latest.saturating_sub(self.random.below(4)).into());
                let abort = AbortOperation { operation, projects: None, requested_by: None };
                Command::Operation(OperationCommand::Abort(abort))
            }
            _ => self.enqueue(project),
        }
    }

    fn enqueue(&mut self, project: Id) -> Command {
        let count = self.random.below(6) + 1;
        let mut jobs = Vec::new();
        for n in 0..count {
            let id = JobId::from_u128(self.ids.len() as u128 + 1);
            self.ids.push(id);
            let batch = if n == 0 { self.batch() } else { format!("{id}").into() };
            jobs.push(NewJob::new(id, batch));
        }
        let later = self.now + self.random.below(5_000) as i64;
        Command::Enqueue(Enqueue {
            job_type: if self.random.one_in(4) {
                JobType::ProcessRedo
            } else {
                JobType::ProcessBatch
            },
            priority: self.random.below(16) as u16,
            expires_in: self.random.one_in(10).then_some(self.random.below(5) as u32 + 1),
            run_at: self.random.one_in(5).then_some(later),
            max_attempts: self.random.one_in(5).then_some(2),
            supersede: self.random.one_in(2),
            ..Enqueue::new(project, jobs)
        })
    }

    pub fn pause_or_resume(&mut self) {
        let project = self.project();
        let paused = Some(Some(self.random.one_in(2)));
        let change = Patch { paused, ..Patch::default() };
        self.send(Command::Project(Project { project, change }));
    }
}

fn webhook() -> Webhook {
    Webhook {
        url: "https://example.com".into(),
        secret: "whsec_".into(),
        previous_secret: None,
        events: None,
        max_attempts: None,
        retry: None,
    }
}
