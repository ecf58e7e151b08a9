//! How many bytes settings and schedules take, of a project and of all: they are in memory and in each snapshot.

use super::Settings;
use crate::{Config, Id, schedule::ScheduleState};

/// What a project with settings takes beside its texts, in bytes.
const PROJECT_BYTES: u64 = 4_096;
/// What a schedule takes beside its texts, in bytes: more than many of one project do, and less than a single one.
const SCHEDULE_BYTES: u64 = 2_048;

impl Settings {
    /// Bytes in memory, about; 0 if nothing is set.
    pub(crate) fn size(&self) -> u64 {
        if *self == Self::default() {
            return 0;
        }
        PROJECT_BYTES + self.text_bytes()
    }

    /// Bytes of what can be long.
    pub(crate) fn text_bytes(&self) -> u64 {
        let options = self.options.as_ref().map_or(0, |options| options.get().len());
        let webhook = self.webhook.as_ref().map_or(0, |webhook| webhook.url.len());
        (options + webhook) as u64
    }
}

impl ScheduleState {
    /// Bytes in memory with the name, about.
    pub(crate) fn size(&self, name: &Id) -> u64 {
        let schedule = &self.schedule;
        let texts = [name.len(), schedule.cron.len(), schedule.time_zone.len()];
        let texts = texts.into_iter().sum::<usize>() + schedule.batch_id.len();
        SCHEDULE_BYTES + (texts + schedule.data.get().len()) as u64
    }
}

/// Checks that the settings and schedules of all projects stay within their bound if something of `was` bytes takes `now`
/// bytes. `all`: the bytes of all.
///
/// # Errors
/// A sentence that says what to do.
pub(crate) fn check_all(config: &Config, all: u64, was: u64, now: u64) -> Result<(), String> {
    let max = config.settings_bytes_max;
    if now <= was || all - was + now <= max {
        return Ok(());
    }
    Err(format!(
        "the settings and schedules of all projects have {all} of at most {max} bytes, and this change adds {}: remove \
         schedules, make options smaller or null, or let the operator raise JOBMESH_SETTINGS_MB of state",
        now - was
    ))
}
