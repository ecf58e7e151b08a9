//! Answers of the last second: a dashboard with many viewers asks ClickHouse once for each block of rows.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long an answer is given again.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Answers that are kept at most.
const ANSWERS_MAX: usize = 1_000;

/// The last answer to each query.
#[derive(Debug)]
pub(crate) struct RecentAnswers<Q, A>(Mutex<HashMap<Q, Recent<A>>>);

#[derive(Debug)]
struct Recent<A> {
    at: Instant,
    /// The last message of EVENTS that was in ClickHouse then.
    ingested: u64,
    answer: Arc<A>,
}

impl<Q: Eq + Hash, A> RecentAnswers<Q, A> {
    pub fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// The answer to the same query, if it is not older than a second at `now`, and no event was ingested
    /// since.
    pub fn get(&self, query: &Q, now: Instant, ingested: u64) -> Option<Arc<A>> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = answers.get(query)?;
        (is_fresh(recent.at, now) && recent.ingested == ingested).then(|| recent.answer.clone())
    }

    /// Keeps an answer to a query that was asked at `now`.
    pub fn put(&self, query: Q, answer: Arc<A>, now: Instant, ingested: u64) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer can have megabytes: those that are never given again are not kept.
        answers.retain(|_, recent| is_fresh(recent.at, now));
        if answers.len() < ANSWERS_MAX {
            answers.insert(query, Recent { at: now, ingested, answer });
        }
    }
}

fn is_fresh(at: Instant, now: Instant) -> bool {
    now.duration_since(at) < FRESH_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_again_for_a_second_unless_events_were_ingested() {
        let (answers, start) = (RecentAnswers::new(), Instant::now());
        answers.put(1, Arc::new("one"), start, 7);
        let later = start + Duration::from_millis(999);
        assert_eq!(answers.get(&1, later, 7).as_deref(), Some(&"one"));
        assert!(answers.get(&1, later, 8).is_none(), "an event was ingested");
        assert!(answers.get(&2, later, 7).is_none());
        assert!(answers.get(&1, start + FRESH_FOR, 7).is_none());
    }

    #[test]
    fn number_of_kept_answers_is_bounded() {
        let (answers, start) = (RecentAnswers::new(), Instant::now());
        for query in 1..=ANSWERS_MAX + 1 {
            answers.put(query, Arc::new(query), start, 7);
        }
        assert!(answers.get(&(ANSWERS_MAX + 1), start, 7).is_none());
        answers.put(ANSWERS_MAX + 1, Arc::new(0), start + FRESH_FOR, 7);
        assert!(answers.get(&(ANSWERS_MAX + 1), start + FRESH_FOR, 7).is_some());
    }
}
