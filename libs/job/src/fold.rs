//! The fold: events in, state out. The same for the leader, a follower and a restart.

use uuid::Uuid;

use crate::{
    Gate, Id, Job, JobId, Open, Partial, Position, Queued, Ready, State, Status,
    event::{Batch, Became, Ended, Enqueued, Event, LateRun, Requeued, Revived, Why},
    known::Project,
    schedule::Timed,
    time::Millis,
    webhook::{self, Receiver},
};

/// How long one deferred run keeps the others of its project from starting, in ms. After that one run
/// at a time finds out whether the work goes on.
const DEFERRAL_MS_MAX: i64 = 60_000;

impl State {
    /// Takes in message `sequence` of EVENTS, which reaches up to command `through`.
    pub fn apply_batch(&mut self, sequence: u64, through: u64, batch: &Batch) {
        // First: what the events say of a message that is folded in part is of the next one.
        self.folded(through);
        for (position, event) in batch.at_sequence(sequence) {
            self.apply(batch.at, position, event);
        }
        for id in &batch.commands {
            self.note(batch.at, *id);
        }
    }

    /// Notes that the item of a message of COMMANDS is folded which was gone on with.
    pub fn item_folded(&mut self) {
        self.known.partial = None;
    }

    /// Notes that a message of COMMANDS was folded.
    pub fn note(&mut self, at: Millis, message: Uuid) {
        self.known.recent.note(at, message);
    }

    /// Notes that COMMANDS is folded up to and with `through`.
    pub fn folded(&mut self, through: u64) {
        if through > self.known.through {
            self.known.through = through;
            self.known.partial = None;
        }
    }

    /// Moves on to message `sequence` of EVENTS, which holds no events or whose events are applied.
    pub fn skip_message(&mut self, sequence: u64) {
        self.known.position = self.known.position.max(Position::new(sequence, 0));
    }

    /// Takes in one event. An event at or before the last one is known already and changes nothing.
    pub fn apply(&mut self, at: Millis, position: Position, event: &Event) {
        if position <= self.known.position {
            return;
        }
        self.known.position = position;
        self.known.at = self.known.at.max(at);
        self.mark_hour(at, position.sequence);
        match event {
            Event::Led { term, .. } => self.known.term = *term,
            Event::Enqueued(new) => self.enqueued(at, position, new),
            Event::Started { job, of, worker, at: began, .. } => {
                self.known.projects.entry(of.project.clone()).or_default().starts.add(at, 1);
                self.change(*job, position, |job| {
                    job.status = Status::Processing;
                    job.attempts += 1;
                    job.run_at = None;
                    let past = job.past_mut();
                    past.take_backs = 0;
                    past.started_at = Some(*began);
                    past.worker = Some(worker.clone());
                    job.step(at, None);
                });
            }
            Event::Progressed { job, progress, .. } => self.change(*job, position, |job| {
                job.past_mut().progress = Some(progress.clone());
            }),
            Event::Ended(ended) => self.ended(at, position, ended),
            Event::Revived(revived) => self.revived(position, revived),
            Event::Refused(refused) => {
                if let Some(late) = &refused.ended {
                    self.count_tokens(at, &late.about.project, &late.spent);
                    self.late(position, late);
                }
            }
            Event::Answered { key, answer } => {
                self.known.answers.insert(*key, (position, (**answer).clone()));
                self.touched.push(position, Queued::Answer(*key));
            }
            Event::ProjectSet { project, settings } => {
                let project = self.known.projects.entry(project.clone()).or_default();
                project.settings.clone_from(settings);
            }
            Event::ScheduleSet { project, name, schedule } => {
                self.schedule(project, name, Some((**schedule).clone()));
            }
            Event::ScheduleRemoved { project, name } => self.schedule(project, name, None),
            Event::Fired { project, name, at, job, next } => {
                let known = self.known.projects.get(project);
                let old = known.and_then(|known| known.schedules.get(name)).cloned();
                let timed = old.map(|old| Timed {
                    next_at: *next,
                    last_at: Some(*at),
                    last_job_id: job.or(old.last_job_id),
                    ..old
                });
                self.schedule(project, name, timed);
            }
            Event::BulkStarted(operation) => self.bulk_started(at, position, operation),
            Event::BulkAdvanced { project, slice } => self.bulk_advanced(project, slice),
            Event::BulkFinished { project } => self.bulk_finished(project),
            Event::Partial { item, jobs, batches } => {
                self.known.partial = Some(Partial { item: *item, jobs: *jobs, batches: *batches });
            }
        }
    }

    /// Moves jobs whose time has come among those that may run.
    pub fn wake(&mut self, now: Millis) {
        for id in self.ready.due(now) {
            if let Some(job) = self.known.jobs.get(id) {
                self.ready.insert(&job, now);
            }
        }
    }

    /// Who is next to be dispatched.
    pub fn ready(&mut self) -> &mut Ready {
        &mut self.ready
    }

    /// Takes the next job to be dispatched; `gate` says whether a project may start a run.
    pub(crate) fn next_ready(
        &mut self,
        lower_share: f64,
        open: Open,
        busy: [bool; 3],
        mut gate: impl FnMut(&Id, &Project) -> Gate,
    ) -> Option<JobId> {
        let Self { known, ready, .. } = self;
        ready.next(lower_share, open, busy, |id| {
            known.projects.get(id).map_or(Gate::Open(1), |project| gate(id, project))
        })
    }

    /// Puts a job that was taken for dispatch back among those that may run.
    pub fn put_back(&mut self, id: JobId) {
        if let Some(job) = self.known.jobs.get(id).filter(|job| job.status == Status::Queued) {
            self.ready.insert(&job, self.known.at);
        }
    }

    fn enqueued(&mut self, at: Millis, position: Position, new: &Enqueued) {
        self.enter(Job::new(at, position, new));
    }

    fn ended(&mut self, at: Millis, position: Position, ended: &Ended) {
        self.count_tokens(at, &ended.about.project, &ended.spent);
        if ended.doubtful {
            let project = self.known.projects.entry(ended.about.project.clone()).or_default();
            project.starts.add(at, 1);
        }
        if self.receiver(ended) == Receiver::Full {
            let own = webhook::project_of(&ended.about.project);
            self.known.projects.entry(own).or_default().dropped += 1;
        }
        let retention_ms = self.retention_ms(&ended.about.project);
        self.change(ended.job, position, |job| {
            job.status = ended.to.status();
            let past = job.past_mut();
            past.spent.add(&ended.spent);
            past.closed = ended.finished_at.is_some();
            past.error.clone_from(&ended.error);
            match &ended.to {
                Became::Queued(again) => requeue(job, at, again),
                Became::Completed { result, stored } => {
                    past.result.clone_from(result);
                    past.stored = *stored;
                }
                Became::Failed => {}
                Became::Canceled { superseded_by } => past.superseded_by = *superseded_by,
            }
            if job.status.is_terminal() {
                job.run_at = None;
                job.past_mut().completed_at = Some(at);
            }
            let why = match &ended.to {
                Became::Queued(again) => Some(again.why),
                _ => None,
            };
            job.step(at, why);
        });
        self.note_deferral(at, ended);
        if ended.about.kind.is_internal() {
            let project = self.known.projects.entry(ended.about.project.clone()).or_default();
            project.failing = ended.error.is_some();
            project.last_error.clone_from(&ended.error);
        } else if ended.to == Became::Failed {
            let project = self.known.projects.entry(ended.about.project.clone()).or_default();
            project.failed.insert(ended.job, at + retention_ms);
        }
    }

    /// Notes whether whoever works for a project asked to come back later, or worked again.
    fn note_deferral(&mut self, at: Millis, ended: &Ended) {
        let Some(project) = self.known.projects.get_mut(&ended.about.project) else { return };
        match &ended.to {
            Became::Queued(again) if again.why == Why::Deferred => {
                let until = again.run_at.unwrap_or(at).min(at + DEFERRAL_MS_MAX);
                project.deferred_until = Some(until);
            }
            Became::Queued(again) if again.why != Why::Retry => {}
            _ if ended.started_at.is_some() => project.deferred_until = None,
            _ => {}
        }
    }

    fn revived(&mut self, position: Position, revived: &Revived) {
        let mut job = revived.job.clone();
        job.version = position;
        job.past_mut().retried = Some(position);
        self.known.jobs.remove(job.id);
        let project = self.known.projects.entry(job.project.clone()).or_default();
        project.failed.remove(&job.id);
        project.counts.leave(revived.was, job.class);
        if !job.kind.is_internal() {
            self.known.total.leave(revived.was, job.class);
        }
        // The bucket has it as one that ended, and would let it go.
        self.touched.push(position, Queued::Job(job.id));
        self.enter(job);
    }

    fn schedule(&mut self, project: &Id, name: &Id, timed: Option<Timed>) {
        let known = self.known.projects.entry(project.clone()).or_default();
        let next = timed.as_ref().and_then(|timed| timed.next_at);
        let old = match timed {
            Some(timed) => known.schedules.insert(name.clone(), timed),
            None => known.schedules.remove(name),
        };
        let entry = |at: Millis| (at, project.clone(), name.clone());
        if let Some(at) = old.and_then(|old| old.next_at) {
            self.calendar.remove(&entry(at));
        }
        self.calendar.extend(next.map(entry));
    }

    fn count_tokens(&mut self, at: Millis, project: &Id, spent: &crate::Spent) {
        let tokens = spent.input_tokens.saturating_add(spent.output_tokens);
        if tokens > 0 {
            self.known.projects.entry(project.clone()).or_default().tokens.add(at, tokens);
        }
    }

    /// Notes that the costs of a run which ended late are counted, so that they are not again.
    fn late(&mut self, position: Position, late: &LateRun) {
        if let Some(job) = &late.forgotten
            && !self.known.jobs.contains(late.job)
        {
            self.insert((**job).clone());
        }
        if let Some(job) = self.known.jobs.get_mut(late.job) {
            let closed = job.run == late.run;
            let past = job.past_mut();
            past.spent.add(&late.spent);
            past.closed |= closed;
            job.version = position;
            self.touch(position, late.job);
        }
    }

    /// Takes in a job that is queued.
    fn enter(&mut self, job: Job) {
        let project = self.known.projects.entry(job.project.clone()).or_default();
        project.counts.enter(job.status, job.class);
        if !job.kind.is_internal() {
            self.known.total.enter(job.status, job.class);
        }
        project.live.insert(&job);
        self.ready.insert(&job, self.known.at);
        self.touched.push_live(self.known.at, job.id);
        self.insert(job);
    }

    /// Takes a job in; it sleeps where memory has no room for it.
    fn insert(&mut self, job: Job) {
        self.known.jobs.insert(job, None, self.room.as_ref());
    }

    /// Changes a live job and keeps counts, queue and live batches in step with it.
    fn change(&mut self, id: JobId, position: Position, change: impl FnOnce(&mut Job)) {
        let Some(job) = self.known.jobs.get_mut(id) else { return };
        let project = self.known.projects.entry(job.project.clone()).or_default();
        let counted = !job.kind.is_internal();
        let before = job.status;
        project.counts.leave(before, job.class);
        if counted {
            self.known.total.leave(before, job.class);
        }
        if before == Status::Queued {
            self.ready.remove(job);
        }
        change(job);
        job.version = position;
        project.counts.enter(job.status, job.class);
        if counted {
            self.known.total.enter(job.status, job.class);
        }
        if job.status == Status::Queued {
            self.ready.insert(job, self.known.at);
        }
        project.live.changed(before, job);
        self.touch(position, id);
    }

    /// Notes that the bucket is behind with a job that changed.
    fn touch(&mut self, position: Position, id: JobId) {
        match self.known.jobs.status(id) {
            Some(status) if status.is_terminal() => self.touched.push(position, Queued::Job(id)),
            Some(_) => {
                self.touched.push_live(self.known.at, id);
                self.known.jobs.rest(id, self.room.as_ref());
            }
            None => {}
        }
    }

    fn mark_hour(&mut self, at: Millis, sequence: u64) {
        let hour = at.div_euclid(3_600_000);
        if self.known.hours.back().is_none_or(|(last, _)| last.div_euclid(3_600_000) < hour) {
            self.known.hours.push_back((at, sequence));
            for project in self.known.projects.values_mut() {
                project.failed.retain(|_, until| *until > at);
            }
        }
        // A year of hours: more than any retention of events that is worth its disk.
        if self.known.hours.len() > 24 * 366 {
            self.known.hours.pop_front();
        }
    }
}

fn requeue(job: &mut Job, at: Millis, again: &Requeued) {
    job.run = again.run;
    job.attempts = again.attempts;
    job.run_at = again.run_at;
    job.queued_at = at;
    let past = job.past_mut();
    past.take_backs = again.take_backs;
    if again.why == Why::Deferred {
        past.deferrals += 1;
        past.deferred_since.get_or_insert(at);
    } else if again.why == Why::Retry {
        past.deferrals = 0;
        past.deferred_since = None;
    }
    past.progress = None;
    past.started_at = None;
    past.worker = None;
    past.closed = false;
}
