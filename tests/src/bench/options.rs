//! The arguments of the benchmark.

use std::{collections::BTreeSet, path::PathBuf};

/// The size of the large backlog, by default.
pub const BACKLOG_JOBS: usize = 1_000_000;
pub const USAGE: &str = "\
usage: bench [--only <part>,<part>…] [--backlog <jobs>] [--json <file>] [--write]

  --only     measures these parts alone: life, singles, slots, pickup, answers, many, projects,
             backlog, requests, keys, observed, crowd, rows, replicas, followers, always, peers; what is compared needs both of its sides
  --backlog  how many jobs wait in the large backlog (1000000)
  --json     writes what was found into a file
  --write    puts what was found into docs/benchmark.md and docs/benchmark.json";

/// The parts.
const PARTS: [&str; 17] = [
    "life",
    "singles",
    "slots",
    "pickup",
    "answers",
    "many",
    "projects",
    "backlog",
    "requests",
    "keys",
    "observed",
    "crowd",
    "rows",
    "replicas",
    "followers",
    "always",
    "peers",
];

/// What to measure, and where to write the results.
#[derive(Debug)]
pub struct Options {
    only: Option<BTreeSet<String>>,
    pub backlog: usize,
    pub json: Option<PathBuf>,
    pub write: bool,
}

impl Options {
    pub fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { only: None, backlog: BACKLOG_JOBS, json: None, write: false };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--only" => {
                    let parts = words.next().ok_or("--only names no part")?;
                    if let Some(odd) = parts.split(',').find(|part| !PARTS.contains(part)) {
                        return Err(format!("there is no part {odd:?}"));
                    }
                    options.only = Some(parts.split(',').map(Into::into).collect());
                }
                "--backlog" => {
                    let jobs = words.next().and_then(|jobs| jobs.parse().ok());
                    options.backlog = jobs.ok_or("--backlog needs a number of jobs")?;
                }
                "--json" => options.json = Some(words.next().ok_or("--json names no file")?.into()),
                "--write" => options.write = true,
                odd => return Err(format!("unknown argument {odd:?}")),
            }
        }
        Ok(options)
    }

    pub fn has(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(part))
    }
}
