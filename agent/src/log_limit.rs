//! Bounds the log lines about one subject, because others may decide how often there is something to log.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tracing::info;

/// Lines about one subject in one period.
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);
/// With so many subjects, those of past periods are forgotten. Subjects are names of nodes, which others cannot invent.
const SUBJECTS: usize = 10_000;

/// The lines that were logged about each subject, such as a peer.
#[derive(Debug, Default)]
pub struct LogLimit(HashMap<String, Period>);

#[derive(Debug)]
struct Period {
    start: Instant,
    lines: u32,
}

impl LogLimit {
    /// Whether one more line about `subject` may be logged at `now`. Logs once in a period that lines are missing.
    pub fn allows(&mut self, subject: &str, now: Instant) -> bool {
        if self.0.len() >= SUBJECTS {
            self.0.retain(|_, it| now - it.start < PERIOD);
        }
        let new = Period {
            start: now,
            lines: 0,
        };
        let period = match self.0.get_mut(subject) {
            Some(period) => period,
            None => self.0.entry(subject.to_owned()).or_insert(new),
        };
        if now - period.start >= PERIOD {
            period.start = now;
            period.lines = 0;
        }
        period.lines = period.lines.saturating_add(1);
        if period.lines == LINES + 1 {
            info!(subject, period = ?PERIOD, "too many changes: until the end of this period no more of them are logged");
        }
        period.lines <= LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_a_number_of_lines_in_each_period_and_others_are_not_affected() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        let count = |limit: &mut LogLimit, subject, now| {
            (0..100).filter(|_| limit.allows(subject, now)).count()
        };
        assert_eq!(count(&mut limit, "evil", start), 20);
        assert_eq!(count(&mut limit, "evil", start + PERIOD / 2), 0);
        assert!(limit.allows("b1", start + PERIOD / 2));
        assert_eq!(count(&mut limit, "evil", start + PERIOD), 20);
    }

    #[test]
    fn many_subjects_are_forgotten_after_their_period() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        for n in 0..SUBJECTS {
            limit.allows(&n.to_string(), start);
        }
        limit.allows("one more", start + PERIOD);
        assert_eq!(limit.0.len(), 1);
    }
}
