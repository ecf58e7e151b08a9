//! The leader: it processes commands with the transactions of production, dispatches, reconciles,
//! and crashes between any two steps.

use std::collections::HashSet;

use job::{
    ByClass, JobId, Lookups, Missing, Run, Scheduler, State, Status,
    bulk::Requester,
    event::Event,
    transaction::{Commit, Transaction},
};
use uuid::Uuid;

use super::{PERMIT_STEP_MS, processors::Ready, world::World};

/// How long a terminal job is kept: all stay in memory.
const RETENTION_MS: i64 = 1_000_000_000;

/// How long a message's id is remembered.
const REMEMBER_MS: i64 = 600_000;

/// A reading of the streams that is not reconciled yet.
pub struct Reading {
    number: u64,
    present: HashSet<(JobId, Run)>,
    barrier: usize,
}

/// The leader in memory.
pub struct Leader {
    pub state: State,
    pub scheduler: Scheduler,
    pub reading: Option<Reading>,
    pub is_in_doubt: bool,
}

impl Leader {
    pub fn new(state: State) -> Self {
        Self { state, scheduler: Scheduler::default(), reading: None, is_in_doubt: true }
    }
}

/// A state without jobs.
pub fn empty() -> State {
    State::new(RETENTION_MS)
}

/// A snapshot of `state`.
pub fn written(state: &State) -> Vec<u8> {
    let mut snapshot = Vec::new();
    state.snapshot().write(&mut snapshot).unwrap();
    snapshot
}

/// The requester of item `index` of the message at `at`.
fn requester(at: usize, index: usize) -> Requester {
    Requester { inbox: at.to_string(), item: Uuid::from_u128(index as u128) }
}

impl World {
    /// Processes a slice of a bulk operation and some messages, in one transaction.
    pub fn process(&mut self) {
        let lookups = Lookups { held: self.held(), ..Lookups::default() };
        let Leader { state, scheduler, .. } = &mut self.leader;
        let mut transaction = Transaction::begin(state, scheduler, &self.config, self.now);
        if self.random.one_in(2) {
            transaction.advance_bulk(&lookups).unwrap();
        }
        for _ in 0..=self.random.below(8) {
            let at = transaction.through() as usize;
            let Some(message) = self.commands.get(at) else { break };
            let first = transaction.first_item(message.id);
            if let Some(id) = message.id {
                let before = self.processed.get(&id);
                let is_repeated = before.is_some_and(|(_, when)| self.now - when <= REMEMBER_MS);
                assert_eq!(first.is_none(), is_repeated, "message {id}, processed {before:?}");
                if !is_repeated {
                    self.processed.insert(id, (at, self.now));
                }
            }
            let first = first.unwrap_or(usize::MAX);
            for (index, command) in message.commands.iter().enumerate().skip(first) {
                // Terminal jobs stay in memory: one that is not there does not exist.
                let mut lookups = lookups.clone();
                let requester = Some(requester(at, index));
                while let Err(missing) =
                    transaction.process(index, command, requester.clone(), &lookups)
                {
                    let Missing::Jobs(ids) = missing else { unreachable!("no request has a key") };
                    lookups.jobs.extend(ids.into_iter().map(|id| (id, None)));
                }
            }
            transaction.end_message(at as u64 + 1, message.id);
        }
        let commit = transaction.commit();
        self.append(commit);
    }

    /// Appends the messages of a transaction; the leader may crash after any of them. Hints reach the
    /// processors at once here.
    fn append(&mut self, mut commit: Commit) {
        let messages = std::mem::take(&mut commit.messages);
        if let Some(last) = messages.last() {
            assert_eq!(last.through, self.leader.state.through(), "commands are processed twice");
        }
        for message in messages {
            if !self.is_healing && self.random.one_in(40) {
                return self.restart_leader();
            }
            if self.random.one_in(40) {
                self.history.push(None);
            }
            let batch = serde_json::from_slice(&message.payload).unwrap();
            self.note_stored(&batch);
            self.history.push(Some((message.through, batch)));
            let sequence = self.history.len() as u64;
            commit.stored(&mut self.leader.state, sequence);
        }
        for (position, event) in commit.events() {
            let message = self.history[position.sequence as usize - 1].as_ref();
            let (_, batch) = message.expect("a state service appended it");
            assert_eq!(batch.events[position.index as usize], *event, "at {position}");
        }
        if !self.is_healing && self.random.one_in(100) {
            return self.crash_leader();
        }
        for (requester, reply) in &commit.replies {
            self.check_reply(requester, reply);
        }
        let canceled: Vec<(JobId, Run)> = commit
            .events()
            .filter_map(|(_, event)| match event {
                Event::Ended(ended) if ended.to.status() == Status::Canceled => {
                    Some((ended.job, ended.run))
                }
                _ => None,
            })
            .collect();
        let running = self.held();
        let Leader { state, scheduler, reading, is_in_doubt } = &mut self.leader;
        let knows_streams = reading.is_none() && !*is_in_doubt;
        let stop = commit.finish(state, scheduler);
        let missed = canceled.iter().find(|run| running.contains(run) && !stop.contains(run));
        assert!(!knows_streams || missed.is_none(), "{missed:?} is canceled and not stopped");
        self.stop(&stop);
    }

    /// Processors stop runs, and ack those that they have.
    fn stop(&mut self, runs: &[(JobId, Run)]) {
        for processor in &mut self.processors {
            processor.running.retain(|running| !runs.contains(&(running.job, running.run)));
        }
        for stream in self.streams.iter_mut() {
            stream.retain(|ready| {
                ready.delivered.is_none() || !runs.contains(&(ready.job, ready.run))
            });
        }
    }

    /// Dispatches all that may go; some of it is lost on its way.
    pub fn dispatch(&mut self) {
        let capacity = self.capacity();
        self.leader.state.wake(self.now);
        loop {
            // A permit comes back within a step: before that a job may start, after it it must.
            let (may, must) = (self.eligible(0), self.eligible(PERMIT_STEP_MS));
            let Leader { state, scheduler, .. } = &mut self.leader;
            let next = scheduler.next(
                state,
                &self.config,
                self.now,
                capacity,
                ByClass::default(),
                ByClass::default(),
            );
            let Some(id) = next else {
                self.check_conserving(&must);
                return;
            };
            let job = self.leader.state.job(id).unwrap().clone();
            assert!(may.contains(&id), "{job:?} was dispatched past a limit");
            self.note_turn(&job, &must);
            if !self.is_healing && self.random.one_in(30) {
                self.leader.is_in_doubt = true;
                continue;
            }
            let (project, run) = (job.project.clone(), job.run);
            let ready = Ready { job: id, run, project, delivered: None };
            self.streams[job.priority_class].push(ready);
        }
    }

    /// Reads the streams, or reconciles once the commands up to the barrier are processed.
    pub fn read_or_reconcile(&mut self) {
        let Leader { state, scheduler, reading, is_in_doubt } = &mut self.leader;
        match reading.take() {
            None => {
                let ready = self.streams.iter().flatten();
                let present = ready.map(|ready| (ready.job, ready.run)).collect();
                *is_in_doubt = false;
                let (number, barrier) = (scheduler.begin_reading(), self.commands.len());
                *reading = Some(Reading { number, present, barrier });
            }
            Some(read) if state.through() as usize >= read.barrier => {
                let unwanted = scheduler.reconcile(state, read.number, &read.present);
                self.stop(&unwanted);
                for stream in self.streams.iter_mut() {
                    stream.retain(|ready| !unwanted.contains(&(ready.job, ready.run)));
                }
                self.requeue_lost();
            }
            early => *reading = early,
        }
    }

    /// Requeues runs that no processor and no stream has, unless an outcome may be on its way.
    fn requeue_lost(&mut self) {
        if !self.is_caught_up() {
            return;
        }
        let held = self.held();
        let in_streams: HashSet<(JobId, Run)> =
            self.streams.iter().flatten().map(|ready| (ready.job, ready.run)).collect();
        let lost: Vec<(JobId, Run)> = self
            .clients_jobs()
            .filter(|job| job.status == Status::Processing)
            .map(|job| (job.id, job.run))
            .filter(|run| !held.contains(run) && !in_streams.contains(run))
            .collect();
        let Leader { state, scheduler, .. } = &mut self.leader;
        let mut transaction = Transaction::begin(state, scheduler, &self.config, self.now);
        for (job, run) in lost {
            transaction.requeue_lost(job, run);
        }
        transaction.expire_due(self.now);
        let commit = transaction.commit();
        self.append(commit);
    }

    pub fn write_snapshot(&mut self) {
        self.snapshot = (self.history.len(), written(&self.leader.state));
    }

    /// Another leads, with the same counts: all events are on disk.
    pub fn crash_leader(&mut self) {
        let counts = self.leader.state.counts(None);
        self.restart_leader();
        assert_eq!(self.leader.state.counts(None), counts);
    }

    /// Another leads: snapshot, events after it, and nothing that only the old one knew.
    fn restart_leader(&mut self) {
        let (from, bytes) = &self.snapshot;
        let mut state = empty().restore(&**bytes).unwrap();
        for (sequence, message) in (1..).zip(&self.history).skip(*from) {
            match message {
                Some((through, batch)) => state.apply_batch(sequence, *through, batch),
                None => state.skip_message(sequence),
            }
        }
        let through = state.through() as usize;
        self.processed.retain(|_, (at, _)| *at < through);
        self.leader = Leader::new(state);
    }
}
