//! Applies events to the state, in the same way for the leader, a follower and a restart.

mod ended;
mod operation;

use uuid::Uuid;

use crate::{
    ByClass, DirtyKey, Gate, Id, Job, JobId, OpenJobTypes, Partial, Position, ReadyQueue, State,
    Status,
    event::{Batch, Enqueued, Event, Retried},
    schedule::ScheduleState,
    snapshot::Project,
    time::Millis,
};

/// How long a project without settings, schedules and active jobs is known after its last event, in ms: 31 days.
const PROJECT_KEPT_MS: i64 = 31 * 24 * 3_600_000;

impl State {
    /// Applies message `sequence` of EVENTS, which reaches up to command `through`.
    pub fn apply_batch(&mut self, sequence: u64, through: u64, batch: &Batch) {
        // First: a `partial` event in the batch belongs to the message after `through`.
        self.processed(through);
        for (position, event) in batch.at_sequence(sequence) {
            self.apply(batch.at, position, event);
        }
        // A batch can be empty.
        self.skip_message(sequence);
        self.persisted.at = self.persisted.at.max(batch.at);
        for id in &batch.commands {
            self.note(batch.at, *id);
        }
    }

    /// Forgets how far another message of COMMANDS is processed: a stream that lost its end, or was restored, has a new
    /// message instead.
    pub fn begin_message(&mut self, message: Option<Uuid>) {
        let partial = &mut self.persisted.partial;
        *partial = partial.take().filter(|it| it.message.is_none() || it.message == message);
    }

    /// Records that an interrupted item of a message of COMMANDS is processed.
    pub fn item_processed(&mut self) {
        self.persisted.partial = None;
    }

    /// Records that a message of COMMANDS was processed.
    pub fn note(&mut self, at: Millis, message: Uuid) {
        self.persisted.dedup.note(at, message);
    }

    /// Records that COMMANDS is processed up to and including `through`.
    pub fn processed(&mut self, through: u64) {
        if through > self.persisted.through {
            self.persisted.through = through;
            self.persisted.partial = None;
        }
    }

    /// Moves on to message `sequence` of EVENTS, which holds no events or whose events are applied.
    pub fn skip_message(&mut self, sequence: u64) {
        self.persisted.position = self.persisted.position.max(Position::new(sequence, 0));
    }

    /// Takes in one event. An event at or before the last one is known already and changes nothing.
    pub fn apply(&mut self, at: Millis, position: Position, event: &Event) {
        if position <= self.persisted.position {
            return;
        }
        self.persisted.position = position;
        self.persisted.at = self.persisted.at.max(at);
        self.mark_hour(at, position.sequence);
        match event {
            Event::LeaderElected { term, .. } => self.persisted.term = *term,
            Event::Enqueued(new) => self.enqueued(at, position, new),
            Event::Started { job, of, worker, at: began, .. } => {
                self.persisted.projects.entry(of.project.clone()).or_default().starts.add(at, 1);
                self.change(*job, position, |job| {
                    job.status = Status::Processing;
                    job.attempts += 1;
                    job.run_at = None;
                    // It has started in time, whatever becomes of the run.
                    job.expires_at = None;
                    let history = job.history_mut();
                    history.take_backs = 0;
                    history.started_at = Some(*began);
                    history.worker = Some(worker.clone());
                    job.step(at, None);
                });
            }
            Event::Progressed { job, progress, .. } => self.change(*job, position, |job| {
                job.history_mut().progress = Some(progress.clone());
            }),
            Event::Ended(ended) => self.ended(at, position, ended),
            Event::Retried(retried) => self.retried(position, retried),
            Event::Refused(refused) => {
                if let Some(late) = &refused.ended {
                    self.count_tokens(at, &late.labels.project, &late.usage);
                    self.late(position, late);
                }
            }
            Event::Answered { key, answer } => {
                self.persisted.answers.insert(*key, (position, (**answer).clone()));
                self.dirty.push(position, DirtyKey::Reply(*key));
            }
            Event::ProjectSet { project, settings } => {
                let project = self.persisted.projects.entry(project.clone()).or_default();
                self.settings_bytes -= project.settings.size();
                self.settings_bytes += settings.size();
                project.settings.clone_from(settings);
            }
            Event::ScheduleSet { project, name, schedule } => {
                self.schedule(project, name, Some((**schedule).clone()));
            }
            Event::ScheduleRemoved { project, name } => self.schedule(project, name, None),
            Event::ScheduleFired { project, name, at, job, next } => {
                let persisted = self.persisted.projects.get(project);
                let old = persisted.and_then(|persisted| persisted.schedules.get(name)).cloned();
                let timed = old.map(|old| ScheduleState {
                    next_at: *next,
                    last_at: Some(*at),
                    last_job_id: job.or(old.last_job_id),
                    ..old
                });
                self.schedule(project, name, timed);
            }
            Event::BulkStarted(operation) => self.apply_bulk_started(at, position, operation),
            Event::BulkAdvanced { project, slice } => self.apply_bulk_advanced(project, slice),
            Event::BulkFinished { project, slice } => {
                self.apply_bulk_finished(at, project, slice.as_deref());
            }
            Event::OperationStarted(started) => self.apply_operation_started(at, position, started),
            Event::OperationAborted { operation, by } => {
                self.apply_operation_aborted(at, *operation, by.as_ref());
            }
            Event::Updated { job, priority, priority_class, run_at, expires_at, .. } => {
                self.update(*job, position, |job| {
                    job.priority = *priority;
                    job.priority_class = *priority_class;
                    job.run_at = *run_at;
                    job.expires_at = *expires_at;
                });
            }
            Event::Partial { item, jobs, batches, message } => {
                let (item, jobs, batches, message) = (*item, *jobs, *batches, *message);
                self.persisted.partial = Some(Partial { item, jobs, batches, message });
            }
            #[cfg(feature = "next-version")]
            Event::Noted { .. } => {}
        }
    }

    /// Moves jobs whose time has come among those that may run.
    pub fn wake(&mut self, now: Millis) {
        for id in self.ready.due(now) {
            if let Some(job) = self.persisted.jobs.get(id) {
                self.ready.insert(&job, now);
            }
        }
    }

    /// The queue of jobs that are ready to be dispatched.
    pub fn ready(&mut self) -> &mut ReadyQueue {
        &mut self.ready
    }

    /// Takes the next job to be dispatched; `gate` says whether a project may start a run.
    pub(crate) fn next_ready(
        &mut self,
        lower_share_percent: u8,
        open: OpenJobTypes,
        busy: ByClass<bool>,
        mut gate: impl FnMut(&Id, &Project) -> Gate,
    ) -> Option<JobId> {
        let Self { persisted, ready, .. } = self;
        ready.next(lower_share_percent, open, busy, |id| {
            persisted.projects.get(id).map_or(Gate::Open(1), |project| gate(id, project))
        })
    }

    /// Puts a job that was taken for dispatch back among those that may run.
    pub fn put_back(&mut self, id: JobId) {
        if let Some(job) = self.persisted.jobs.get(id).filter(|job| job.status == Status::Queued) {
            self.ready.insert(&job, self.persisted.at);
        }
    }

    /// Changes a queued job. One that is in flight stays there.
    fn update(&mut self, id: JobId, position: Position, change: impl FnOnce(&mut Job)) {
        let Some(job) = self.persisted.jobs.get(id) else { return };
        let is_in_queue = self.ready.contains(&job);
        self.change(id, position, change);
        if !is_in_queue && let Some(job) = self.persisted.jobs.get(id) {
            self.ready.remove(&job);
        }
    }

    fn enqueued(&mut self, at: Millis, position: Position, new: &Enqueued) {
        if !new.job_type.is_internal() {
            self.persisted.projects.entry(new.project.clone()).or_default().enqueues.add(at, 1);
        }
        self.enter(new.job(at, position));
    }

    fn retried(&mut self, position: Position, retried: &Retried) {
        let mut job = retried.job.clone();
        job.version = position;
        job.history_mut().retried = Some(position);
        self.persisted.jobs.remove(job.id);
        let project = self.persisted.projects.entry(job.project.clone()).or_default();
        project.failed.remove(&job.id);
        project.counts.leave(retried.was, job.priority_class);
        if !job.job_type.is_internal() {
            self.persisted.total.leave(retried.was, job.priority_class);
        }
        // The bucket has it as one that ended, and would let it go.
        self.dirty.push(position, DirtyKey::Job(job.id));
        self.enter(job);
    }

    fn schedule(&mut self, project: &Id, name: &Id, timed: Option<ScheduleState>) {
        let persisted = self.persisted.projects.entry(project.clone()).or_default();
        let next = timed.as_ref().and_then(|timed| timed.next_at);
        self.settings_bytes += timed.as_ref().map_or(0, |timed| timed.size(name));
        let old = match timed {
            Some(timed) => persisted.schedules.insert(name.clone(), timed),
            None => persisted.schedules.remove(name),
        };
        self.settings_bytes -= old.as_ref().map_or(0, |old| old.size(name));
        let entry = |at: Millis| (at, project.clone(), name.clone());
        if let Some(at) = old.and_then(|old| old.next_at) {
            self.calendar.remove(&entry(at));
        }
        self.calendar.extend(next.map(entry));
    }

    fn count_tokens(&mut self, at: Millis, project: &Id, usage: &crate::Usage) {
        let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
        if tokens > 0 {
            self.persisted.projects.entry(project.clone()).or_default().tokens.add(at, tokens);
        }
    }

    /// Takes in a job that is queued.
    fn enter(&mut self, job: Job) {
        let project = self.persisted.projects.entry(job.project.clone()).or_default();
        project.counts.enter(job.status, job.priority_class);
        if !job.job_type.is_internal() {
            self.persisted.total.enter(job.status, job.priority_class);
        }
        project.last_at = self.persisted.at;
        project.live.insert(&job);
        self.ready.insert(&job, self.persisted.at);
        self.expiries.insert(&job);
        self.dirty.push_live(self.persisted.at, job.id);
        self.insert(job);
    }

    /// Takes a job in; it sleeps where memory has no room for it.
    fn insert(&mut self, job: Job) {
        self.persisted.jobs.insert(job, None, self.spill.as_ref());
    }

    /// Changes a live job and keeps counts, queue and live batches in step with it.
    fn change(&mut self, id: JobId, position: Position, change: impl FnOnce(&mut Job)) {
        let Some(job) = self.persisted.jobs.get_mut(id) else { return };
        let project = self.persisted.projects.entry(job.project.clone()).or_default();
        let counted = !job.job_type.is_internal();
        let before = job.status;
        project.counts.leave(before, job.priority_class);
        if counted {
            self.persisted.total.leave(before, job.priority_class);
        }
        if before == Status::Queued {
            self.ready.remove(job);
            self.expiries.remove(job);
        }
        change(job);
        job.version = position;
        project.counts.enter(job.status, job.priority_class);
        if counted {
            self.persisted.total.enter(job.status, job.priority_class);
        }
        if job.status == Status::Queued {
            self.ready.insert(job, self.persisted.at);
            self.expiries.insert(job);
        }
        project.last_at = self.persisted.at;
        project.live.changed(before, job);
        self.touch(position, id);
    }

    /// Notes that the bucket is behind with a job that changed.
    fn touch(&mut self, position: Position, id: JobId) {
        match self.persisted.jobs.status(id) {
            Some(status) if status.is_terminal() => self.dirty.push(position, DirtyKey::Job(id)),
            Some(_) => {
                self.dirty.push_live(self.persisted.at, id);
                self.persisted.jobs.spill_if_full(id, self.spill.as_ref());
            }
            None => {}
        }
    }

    /// Removes what no longer counts, and projects of which nothing is left.
    fn forget_old(&mut self, at: Millis) {
        // Longer than nearly any retention: replicas forget the same while another one is rolled out.
        let kept_ms = self.retention_ms.max(PROJECT_KEPT_MS);
        self.persisted.projects.retain(|_, project| {
            project.forget_old(at);
            !project.is_over(at, kept_ms)
        });
    }

    /// Notes the first message of each hour, and forgets what is old then.
    fn mark_hour(&mut self, at: Millis, sequence: u64) {
        let hour = at.div_euclid(3_600_000);
        if self.persisted.hours.back().is_none_or(|(last, _)| last.div_euclid(3_600_000) < hour) {
            self.persisted.hours.push_back((at, sequence));
            self.forget_old(at);
        }
        // A year of hours: more than any retention of events that is worth its disk.
        if self.persisted.hours.len() > 24 * 366 {
            self.persisted.hours.pop_front();
        }
    }
}
