//! Answers of the last second: a dashboard with many viewers asks ClickHouse once.

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
pub(crate) struct RecentAnswers<Q, A>(Mutex<HashMap<Q, (Instant, Arc<A>)>>);

impl<Q: Eq + Hash, A> RecentAnswers<Q, A> {
    pub fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// The answer to the same query, if it is not older than a second at `now`.
    pub fn get(&self, query: &Q, now: Instant) -> Option<Arc<A>> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, answer) = answers.get(query)?;
        is_fresh(*at, now).then(|| answer.clone())
    }

    /// Keeps an answer to a query that was asked at `now`.
    pub fn put(&self, query: Q, answer: Arc<A>, now: Instant) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, (at, _)| is_fresh(*at, now));
        }
        if answers.len() < ANSWERS_MAX {
            answers.insert(query, (now, answer));
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
    fn an_answer_is_given_again_for_a_second_and_only_so_many_are_kept() {
        let (answers, start) = (RecentAnswers::new(), Instant::now());
        answers.put(1, Arc::new("one"), start);
        let later = start + Duration::from_millis(999);
        assert_eq!(answers.get(&1, later).as_deref(), Some(&"one"));
        assert!(answers.get(&2, later).is_none());
        assert!(answers.get(&1, start + FRESH_FOR).is_none());
        for query in 2..=ANSWERS_MAX {
            answers.put(query, Arc::new("other"), later);
        }
        answers.put(ANSWERS_MAX + 1, Arc::new("too many"), later);
        assert!(answers.get(&(ANSWERS_MAX + 1), later).is_none());
        answers.put(ANSWERS_MAX + 1, Arc::new("fits"), later + FRESH_FOR);
        assert!(answers.get(&(ANSWERS_MAX + 1), later + FRESH_FOR).is_some());
    }
}
