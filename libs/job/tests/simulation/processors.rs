//! Processors: they pull, run, report, and crash.

use std::collections::HashSet;

use job::{
    Capacity, Id, JobId, JobLabels, PriorityClass, Run, Usage,
    command::{Command, End, Outcome, Started},
    time::Millis,
};
use uuid::Uuid;

use super::world::{Message, World};

/// How long a delivery stays unacked before it is redelivered.
const ACK_WAIT_MS: i64 = 10_000;

/// A message of ready work.
#[derive(Clone, Debug)]
pub struct Ready {
    pub job: JobId,
    pub run: Run,
    pub project: Id,
    pub delivered: Option<(usize, Millis)>,
}

/// A run in a processor.
#[derive(Clone, Debug)]
pub struct Running {
    pub job: JobId,
    pub run: Run,
    pub project: Id,
    labels: JobLabels,
    started_at: Millis,
    ends_at: Millis,
}

/// A processor with its runs.
#[derive(Debug, Default)]
pub struct Processor {
    pub capacity: usize,
    pub running: Vec<Running>,
}

impl World {
    pub fn capacity(&self) -> Capacity {
        let total = self.processors.iter().map(|processor| processor.capacity).sum();
        Capacity { total, job_types: [total, total, 0] }
    }

    /// The runs that processors work on.
    pub fn held(&self) -> HashSet<(JobId, Run)> {
        let running = self.processors.iter().flat_map(|processor| &processor.running);
        running.map(|running| (running.job, running.run)).collect()
    }

    /// Processors take what their free slots allow.
    pub fn pull(&mut self) {
        let at = self.random.below(self.processors.len() as u64) as usize;
        while self.processors[at].running.len() < self.processors[at].capacity {
            let Some((class, index)) = self.next_ready() else { return };
            let ready = &mut self.streams[class][index];
            let again = ready.delivered.replace((at, self.now)).is_some();
            let ready = ready.clone();
            let Some(job) = self.leader.state.job(ready.job) else { continue };
            let labels = JobLabels { attempt: job.attempts + 1, ..JobLabels::job(&job) };
            if again {
                let reported = self.outcome(&ready, labels, None, End::Redelivered, 0);
                self.report(reported);
                self.streams[class].remove(index);
                continue;
            }
            let current = job.run == ready.run && !job.status.is_terminal();
            if !current {
                // A hint was remembered: it is acked and not run.
                self.streams[class].remove(index);
                continue;
            }
            self.starts.entry(ready.project.clone()).or_default().push(self.now);
            let length = 10 + self.random.below(3_000) as i64;
            let ends_at = self.now + if self.random.one_in(10) { 20 * length } else { length };
            let Ready { job, run, project, .. } = ready;
            let running = Running { job, run, project, labels, started_at: self.now, ends_at };
            self.processors[at].running.push(running);
            let worker: Id = format!("w{at}").into();
            if !self.random.one_in(4) {
                let started =
                    Command::Started(Started { job, run, worker, at: self.now, token: None });
                self.report(started);
            }
        }
    }

    /// The next message to deliver: never delivered, or not acked for too long.
    fn next_ready(&self) -> Option<(PriorityClass, usize)> {
        for class in PriorityClass::ALL {
            let stream = &self.streams[class];
            let free = stream.iter().position(|ready| match ready.delivered {
                None => true,
                Some((to, at)) => {
                    let held = self.processors[to]
                        .running
                        .iter()
                        .any(|running| running.job == ready.job && running.run == ready.run);
                    !held && at + ACK_WAIT_MS <= self.now
                }
            });
            if let Some(index) = free {
                return Some((class, index));
            }
        }
        None
    }

    /// Ends the runs whose time is over: each is recorded, then acked, perhaps with a crash in between.
    pub fn end_runs(&mut self) {
        for at in 0..self.processors.len() {
            let (over, on): (Vec<_>, Vec<_>) =
                self.processors[at].running.drain(..).partition(|r| r.ends_at <= self.now);
            self.processors[at].running = on;
            for running in over {
                let end = match self.random.below(10) {
                    0..=2 => End::Retry { error: "no".into(), after_ms: None },
                    3 => End::Reject { error: "never".into() },
                    4 if !self.is_healing => End::Released,
                    5 if !self.is_healing => {
                        let after_ms = Some(self.random.below(90_000) as i64);
                        End::Deferred { error: "later".into(), after_ms }
                    }
                    _ => End::Done { result: None, stored: None },
                };
                let Running { job, run, project, labels, started_at, .. } = running;
                let ready = Ready { job, run, project, delivered: None };
                let tokens = self.random.below(40);
                let outcome = self.outcome(&ready, labels, Some(started_at), end, tokens);
                self.report(outcome);
                if self.is_healing || !self.random.one_in(10) {
                    for stream in self.streams.iter_mut() {
                        stream.retain(|ready| ready.job != job || ready.run != run);
                    }
                }
            }
        }
    }

    fn outcome(
        &self,
        ready: &Ready,
        labels: JobLabels,
        started_at: Option<Millis>,
        end: End,
        tokens: u64,
    ) -> Command {
        Command::Outcome(Outcome {
            job: ready.job,
            run: ready.run,
            worker: "w".into(),
            labels,
            started_at,
            finished_at: self.now,
            usage: Usage { input_tokens: tokens, ..Usage::default() },
            end,
            token: None,
        })
    }

    /// Publishes a report once or twice: as a copy under the same id, or as another report.
    fn report(&mut self, command: Command) {
        let id = Some(Uuid::from_u128(self.commands.len() as u128 + 1));
        if self.random.one_in(8) {
            let commands = vec![command.clone()];
            let id = id.filter(|_| self.random.one_in(2));
            self.commands.push(Message { id, commands });
        }
        self.commands.push(Message { id, commands: vec![command] });
    }

    pub fn crash_processor(&mut self) {
        let at = self.random.below(self.processors.len() as u64) as usize;
        self.processors[at].running.clear();
    }
}
