//! Schedules: set, removed, and fired when their time comes.

use std::collections::BTreeMap;

use super::Decision;
use crate::{
    Config, Id, JobId, State,
    command::{Enqueue, NewJob, SetSchedule},
    event::Event,
    reply::{Code, Reply},
    schedule::{IfLive, Schedule, ScheduleState},
    settings::size::check_all,
    time::Millis,
};

/// Bytes of data in all schedules of a project: they are listed in one answer.
const DATA_BYTES_MAX: usize = 4 << 20;

impl State {
    pub(super) fn decide_schedule(
        &self,
        config: &Config,
        now: Millis,
        request: &SetSchedule,
    ) -> Decision {
        let (project, name) = (request.project.clone(), request.name.clone());
        let persisted = self.persisted.projects.get(&project).map(|project| &project.schedules);
        let old = persisted.and_then(|persisted| persisted.get(&name));
        let Some(schedule) = &request.schedule else {
            if old.is_none() {
                let error = format!("project {project:?} has no schedule {name:?}");
                return Decision::refused(Code::ScheduleNotFound, error);
            }
            let mut decision = Decision::reply(Reply::ScheduleSet(None));
            decision.events.push(Event::ScheduleRemoved { project, name });
            return decision;
        };
        let max = self.settings(&project).limits(&config.limits).max_schedules;
        let count = persisted.map_or(0, BTreeMap::len);
        if old.is_none() && count as u64 >= u64::from(max) {
            let error = format!(
                "project {project:?} has {count} schedules, and its limit maxSchedules is {max}: remove one, or let an admin raise the limit"
            );
            return Decision::refused(Code::TooManySchedules, error);
        }
        let others = persisted.into_iter().flatten().filter(|(persisted, _)| **persisted != name);
        let others: usize = others.map(|(_, timed)| timed.schedule.data.get().len()).sum();
        if others + schedule.data.get().len() > DATA_BYTES_MAX {
            let error = format!(
                "the schedules of project {project:?} would hold more than {DATA_BYTES_MAX} bytes \
                 of data together"
            );
            return Decision::refused(Code::TooManySchedules, error);
        }
        let next = match schedule.next_after(now) {
            Ok(next) => next,
            Err(error) => return Decision::refused(Code::ScheduleMalformed, error.to_string()),
        };
        let timed = Box::new(ScheduleState {
            schedule: schedule.clone(),
            next_at: Some(next),
            last_at: old.and_then(|old| old.last_at),
            last_job_id: old.and_then(|old| old.last_job_id),
        });
        let was = old.map_or(0, |old| old.size(&name));
        if let Err(error) = check_all(config, self.settings_bytes, was, timed.size(&name)) {
            return Decision::refused(Code::SettingsFull, error);
        }
        let mut decision = Decision::reply(Reply::ScheduleSet(Some(timed.clone())));
        decision.events.push(Event::ScheduleSet { project, name, schedule: timed });
        decision
    }

    /// Fires a schedule whose time has come, once for the last of all times that were missed.
    /// `id` is the id of its job. Nothing happens where its time has not come.
    pub fn decide_fire(
        &self,
        config: &Config,
        now: Millis,
        project: &Id,
        name: &Id,
        id: JobId,
    ) -> Vec<Event> {
        let persisted = self.persisted.projects.get(project);
        let Some(persisted) = persisted else { return Vec::new() };
        let Some(timed) = persisted.schedules.get(name) else { return Vec::new() };
        let Some(due) = timed.next_at.filter(|at| *at <= now) else { return Vec::new() };
        let schedule = &timed.schedule;
        // A table of time zones that changed since may make its next time a time of the past.
        let at = schedule.last_until(now).unwrap_or(due).max(due);
        let next = schedule.next_after(now).ok();
        let live = self.live_of(project, &schedule.batch_id).next().is_some();
        let mut events = Vec::new();
        let mut skip = live && schedule.if_live == IfLive::Skip;
        if !skip {
            events = self.enqueue_events(config, now, &enqueue(project, schedule, id));
            // A project beyond its share skips this time.
            if self.check_quota(config, project, now, &events).is_err() {
                (events, skip) = (Vec::new(), true);
            }
        }
        let job = (!skip).then_some(id);
        let (project, name) = (project.clone(), name.clone());
        events.push(Event::ScheduleFired { project, name, at, job, next });
        events
    }
}

fn enqueue(project: &Id, schedule: &Schedule, id: JobId) -> Enqueue {
    let job = NewJob { id, batch: schedule.batch_id.clone(), data: schedule.data.clone() };
    Enqueue {
        priority: schedule.priority,
        max_attempts: schedule.max_attempts,
        ..Enqueue::new(project.clone(), vec![job])
    }
}
