//! Dispatch: which queued jobs go to the processors now.
//!
//! It is level-triggered and derived. The runs in flight (in a work stream, or in a processor) are
//! known from dispatches and from readings of the streams. The slots and permits of a project are
//! counted from its runs in flight and from the events of the last minute, so that none can leak,
//! whatever crashes.
//!
//! The work streams are kept just full enough: as many runs as the online processors have slots,
//! and as many more as are likely to end before a dispatch would arrive. Jobs that are not
//! dispatched can still be overtaken.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::{
    ByClass, Config, Id, Job, JobId, JobType, Limits, RequeueReason, Run, State, Status, delivery,
    event::{Event, Transition},
    internal,
    ready_queue::{Gate, OpenJobTypes},
    snapshot::Project,
    time::Millis,
};

/// How far ahead of the processors work is put out, in ms of their present rate.
const AHEAD_MS: f64 = 30.0;
/// Runs put out ahead at most.
const AHEAD_RUNS_MAX: usize = 4_096;
/// What of the rate is kept at each measurement: it is that of the last 200 ms or so. Ends that
/// come together, as those of runs that began together, must not look like a fast stream of them.
const RATE_KEPT: f64 = 0.9;
/// How often the rate of ends is measured, in ms.
const RATE_STEP_MS: i64 = 20;

/// How many runs the live processors work on at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Over the kinds of work that clients ask for.
    pub total: usize,
    /// Of each kind: the slots of the processors that take it.
    pub job_types: [usize; JobType::EVERY.len()],
}

/// A run that was dispatched and has not ended.
#[derive(Clone, Debug)]
struct InFlight {
    run: Run,
    /// Counts the readings of the streams: a reading that started before the dispatch does not
    /// include it.
    reading: u64,
    begun: bool,
    job_type: JobType,
    project: Id,
}

/// The runs in flight of a project.
#[derive(Debug, Default)]
struct ProjectSlots {
    out: u32,
    not_started: u32,
}

/// The runs in flight, and which run is next.
#[derive(Debug, Default)]
pub struct Scheduler {
    out: HashMap<JobId, InFlight>,
    job_types: [usize; JobType::EVERY.len()],
    projects: HashMap<Id, ProjectSlots>,
    /// When projects that wait for a permit are checked again.
    reopen: BTreeSet<(Millis, Id)>,
    readings: u64,
    ready: bool,
    rate: Rate,
}

impl Scheduler {
    /// Whether a run of this job is out.
    pub fn is_out(&self, job: JobId) -> bool {
        self.out.contains_key(&job)
    }

    /// The jobs with a run that is out.
    pub fn out(&self) -> impl Iterator<Item = JobId> + '_ {
        self.out.keys().copied()
    }

    /// How many runs of a project are out.
    pub fn out_of(&self, project: &str) -> u32 {
        self.projects.get(project).map_or(0, |slots| slots.out)
    }

    /// Marks an event, before it is recorded, if the run that it ends may have started without a
    /// report: the run was in flight, and its worker may have been too busy or too dead to report.
    /// Its permit is then held as if it had started.
    pub fn mark(&self, event: &mut Event) {
        let Event::Ended(ended) = event else { return };
        let released =
            matches!(&ended.to, Transition::Queued(again) if again.why == RequeueReason::Released);
        let not_started = |out: &InFlight| out.run == ended.run && !out.begun;
        let out = !self.ready || self.out.get(&ended.job).is_some_and(not_started);
        ended.doubtful = ended.started_at.is_none() && out && !released;
    }

    /// Takes in an event that the state has applied.
    pub fn on_event(&mut self, state: &mut State, event: &Event) {
        match event {
            Event::Started { job, of, run, .. } => {
                self.begun(*job, *run);
                state.ready().unthrottle(&of.project);
            }
            Event::Ended(ended) => {
                self.ended(ended.job, ended.run);
                state.ready().unthrottle(&ended.labels.project);
            }
            Event::Refused(refused) => {
                if let Some(late) = &refused.ended {
                    state.ready().unthrottle(&late.labels.project);
                }
            }
            Event::ProjectSet { project, .. } => state.ready().unthrottle(project),
            _ => {}
        }
    }

    /// Takes the next job to be dispatched; it counts as out from here on. `busy` names the
    /// classes that cannot take any for a moment, and keep their turns; `rests` those that cannot
    /// for longer.
    pub fn next(
        &mut self,
        state: &mut State,
        config: &Config,
        now: Millis,
        capacity: Capacity,
        busy: ByClass<bool>,
        rests: ByClass<bool>,
    ) -> Option<JobId> {
        self.reopen(state, now);
        let ahead = self.rate.ahead(now);
        // The mesh's own work has slots of its own.
        let jobs = self.out.len() - self.job_types[JobType::Webhook as usize];
        let full = capacity.total == 0 || jobs >= capacity.total + ahead;
        let job_types = JobType::EVERY.map(|job_type| {
            let (out, slots) =
                (self.job_types[job_type as usize], capacity.job_types[job_type as usize]);
            if job_type.is_internal() {
                out < slots
            } else {
                slots > 0 && out < slots + ahead && !full
            }
        });
        if !self.ready || job_types == [false; JobType::EVERY.len()] {
            return None;
        }
        let open: OpenJobTypes = rests.map(|rests| job_types.map(|open| open && !rests));
        let Self { projects, reopen, .. } = self;
        let check = |id: &Id, project: &Project| {
            let limits = if internal::is_internal(id) {
                delivery::limits(project)
            } else {
                project.settings.limits(&config.limits)
            };
            let gate = gate(projects.get(id), project, &limits, now);
            if let Gate::Closed(Some(at)) = gate {
                reopen.insert((at, id.clone()));
            }
            gate
        };
        let id = state.next_ready(config.lower_share_percent, open, busy, check)?;
        let job = state.load(id)?;
        self.mark_in_flight(id, out_of(&job, self.readings));
        Some(id)
    }

    /// When a project that waits for a permit is checked again.
    pub fn next_reopen(&self) -> Option<Millis> {
        self.reopen.first().map(|(at, _)| *at)
    }

    /// A reading of the streams begins; returns its number.
    pub fn begin_reading(&mut self) -> u64 {
        self.readings += 1;
        self.readings
    }

    /// Reconciles with the content of the work streams, once the commands up to the barrier are
    /// processed: queued runs in the streams are in flight, the others can be dispatched. Returns
    /// runs in the streams that are no longer needed.
    pub fn reconcile(
        &mut self,
        state: &mut State,
        reading: u64,
        present: &HashSet<(JobId, Run)>,
    ) -> Vec<(JobId, Run)> {
        let mut unwanted = Vec::new();
        for (id, run) in present {
            let wanted = state.job(*id).filter(|job| job.run == *run && !job.status.is_terminal());
            let Some(job) = wanted else {
                unwanted.push((*id, *run));
                continue;
            };
            state.ready().remove(&job);
            self.mark_in_flight(*id, out_of(&job, reading));
        }
        let running: Vec<(JobId, InFlight)> =
            state.processing().map(|job| (job.id, out_of(job, reading))).collect();
        for (id, out) in running {
            self.mark_in_flight(id, out);
        }
        let missing = |(id, out): (&JobId, &InFlight)| {
            let persisted = out.reading < reading && !present.contains(&(*id, out.run));
            let queued = state.job(*id).is_none_or(|job| job.status != Status::Processing);
            (persisted && queued).then_some(*id)
        };
        let missing: Vec<JobId> = self.out.iter().filter_map(missing).collect();
        for id in missing {
            if let Some(out) = self.release(id) {
                state.ready().unthrottle(&out.project);
            }
            state.put_back(id);
        }
        self.ready = true;
        unwanted
    }

    /// Puts a run out, unless one of that job is.
    fn mark_in_flight(&mut self, id: JobId, out: InFlight) {
        if self.out.contains_key(&id) {
            return;
        }
        let slots = self.projects.entry(out.project.clone()).or_default();
        slots.out += 1;
        slots.not_started += u32::from(!out.begun);
        self.job_types[out.job_type as usize] += 1;
        self.out.insert(id, out);
    }

    fn release(&mut self, id: JobId) -> Option<InFlight> {
        let out = self.out.remove(&id)?;
        self.job_types[out.job_type as usize] -= 1;
        if let Some(slots) = self.projects.get_mut(&out.project) {
            slots.out -= 1;
            slots.not_started -= u32::from(!out.begun);
        }
        Some(out)
    }

    fn begun(&mut self, job: JobId, run: Run) {
        if let Some(out) = self.out.get_mut(&job).filter(|out| out.run == run && !out.begun) {
            out.begun = true;
            if let Some(slots) = self.projects.get_mut(&out.project) {
                slots.not_started -= 1;
            }
        }
    }

    fn ended(&mut self, job: JobId, run: Run) {
        if self.out.get(&job).is_none_or(|out| out.run > run) {
            return;
        }
        if let Some(out) = self.release(job) {
            self.rate.ended += u64::from(!out.job_type.is_internal());
            if self.out_of(&out.project) == 0 {
                self.projects.remove(&out.project);
            }
        }
    }

    /// Lets projects be asked again whose permits are free by now.
    fn reopen(&mut self, state: &mut State, now: Millis) {
        while let Some((at, _)) = self.reopen.first()
            && *at <= now
        {
            if let Some((_, project)) = self.reopen.pop_first() {
                state.ready().unthrottle(&project);
            }
        }
    }
}

fn out_of(job: &Job, reading: u64) -> InFlight {
    InFlight {
        run: job.run,
        reading,
        begun: job.status == Status::Processing,
        job_type: job.job_type,
        project: job.project.clone(),
    }
}

/// Whether a project may start a run now.
fn gate(slots: Option<&ProjectSlots>, project: &Project, limits: &Limits, now: Millis) -> Gate {
    if project.settings.paused {
        return Gate::Closed(None);
    }
    let (out, not_started) = slots.map_or((0, 0), |slots| (slots.out, slots.not_started));
    if let Some(until) = project.deferred_until {
        if now < until {
            return Gate::Closed(Some(until));
        }
        // One run at a time finds out whether the work goes on.
        if out > 0 {
            return Gate::Closed(None);
        }
    }
    if limits.max_concurrency > 0 && out >= limits.max_concurrency {
        return Gate::Closed(None);
    }
    if limits.requests_per_minute > 0 {
        let limit = u64::from(limits.requests_per_minute);
        if u64::from(not_started) + project.starts.sum(now) >= limit {
            return Gate::Closed(project.starts.next_less(now));
        }
    }
    let limit = limits.tokens_per_minute;
    if limit > 0 && project.tokens.sum(now) >= limit {
        return Gate::Closed(project.tokens.below_at(limit, now));
    }
    Gate::Open(project.settings.weight.unwrap_or(1))
}

/// How fast runs end.
#[derive(Debug, Default)]
struct Rate {
    ended: u64,
    since: Millis,
    per_ms: f64,
}

impl Rate {
    /// How many runs are likely to end before what is put out now arrives.
    fn ahead(&mut self, now: Millis) -> usize {
        let passed = now - self.since;
        if passed >= RATE_STEP_MS {
            let fresh = self.ended as f64 / passed as f64;
            let steps = (passed / RATE_STEP_MS).min(64) as i32;
            let kept = RATE_KEPT.powi(steps);
            self.per_ms = self.per_ms * kept + fresh * (1.0 - kept);
            self.ended = 0;
            self.since = now;
        }
        ((self.per_ms * AHEAD_MS) as usize).min(AHEAD_RUNS_MAX)
    }
}
