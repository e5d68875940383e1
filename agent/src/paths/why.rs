//! Why a candidate is not used, for `ipipctl peers`.

use crate::paths::{
    candidate::Candidate,
    history::History,
    select::{Candidates, Selection},
};
use std::{
    fmt,
    time::{Duration, Instant},
};

/// A candidate that misses so many answers in a row gives no answer.
const SILENT: usize = 2;

/// Why a candidate is used or not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// It is the path.
    InUse,
    /// No probe was answered yet.
    NoAnswerYet,
    /// The last probes were not answered. The last answered one was sent so long ago.
    NoAnswerFor(Duration),
    /// The peer answers that it drops data from this source.
    NotAccepted,
    /// It did not work lately and is not used for so long.
    Rests(Duration),
    /// It is better and answers, and must prove that it is reliable.
    OnTrial {
        /// Probes that it has passed.
        passed: usize,
        /// Probes to pass.
        of: usize,
    },
    /// It answers, but the path in use is as good.
    NotBetter,
    /// It is better by itself, but loses more than the path in use.
    LosesMore,
    /// No candidate has proven to work, and this one is among those that answer.
    NotProven,
    /// It is a private address of another realm, of which other nodes are probed.
    NotSearched,
}

/// Why each candidate is used or not.
pub fn why(
    selection: Option<&Selection>,
    candidates: &Candidates,
    now: Instant,
) -> impl Iterator<Item = (Candidate, Reason)> {
    let current = selection.and_then(|it| Some(&**candidates.get(&it.path)?));
    candidates
        .iter()
        .map(move |(it, history)| (*it, reason(it, history, selection, current, now)))
}

impl Reason {
    /// Whether it is the path.
    pub fn is_in_use(&self) -> bool {
        *self == Self::InUse
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str("in use"),
            Self::NoAnswerYet => f.write_str("no answer yet"),
            Self::NoAnswerFor(time) => write!(f, "no answer for {} s", time.as_secs()),
            Self::NotAccepted => f.write_str("answers but not accepted"),
            Self::Rests(time) => write!(f, "rests {} s", time.as_secs_f64().ceil()),
            Self::OnTrial { passed, of } => write!(f, "on trial {passed} of {of}"),
            Self::NotBetter => f.write_str("not better"),
            Self::LosesMore => f.write_str("loses more"),
            Self::NotProven => f.write_str("answers"),
            Self::NotSearched => f.write_str("other realm, not probed"),
        }
    }
}

fn reason(
    candidate: &Candidate,
    history: &History,
    selection: Option<&Selection>,
    current: Option<&History>,
    now: Instant,
) -> Reason {
    if selection.is_some_and(|it| it.path == *candidate) {
        return Reason::InUse;
    }
    if history.is_refused() {
        return Reason::NotAccepted;
    }
    let Some(answered) = history.last_answered() else {
        return Reason::NoAnswerYet;
    };
    if history.misses(now) >= SILENT {
        return Reason::NoAnswerFor(now.saturating_duration_since(answered));
    }
    let Some(selection) = selection else {
        return Reason::NotProven;
    };
    if let Some(rest) = selection.rest(candidate, now) {
        return Reason::Rests(rest);
    }
    if candidate.rank() >= selection.path.rank() {
        return Reason::NotBetter;
    }
    let loss = history.loss(now);
    if loss.is_lossy() && current.is_some_and(|it| loss.rate() > it.loss(now).rate()) {
        return Reason::LosesMore;
    }
    let of = selection.trial(candidate);
    Reason::OnTrial {
        passed: history.proven(now).min(of),
        of,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::simulation::{Answer, SECOND, Simulation, after, all, random};

    fn reasons(it: &Simulation) -> [Reason; 4] {
        let reasons: Vec<_> = why(Some(&it.selection), &it.candidates, it.instant()).collect();
        all().map(|candidate| {
            let found = reasons.iter().find(|(it, _)| *it == candidate);
            found.expect("one of all").1
        })
    }

    #[test]
    fn each_candidate_has_its_reason() {
        let [silent, refused, used, worse] = all();
        let mut it = Simulation::new(&all(), used);
        assert_eq!(reasons(&it)[3], Reason::NoAnswerYet);
        it.run(SECOND * 120, |candidate, _| {
            let is_accepted = *candidate != refused;
            let answer = after(20).map(|it| Answer { is_accepted, ..it });
            answer.filter(|_| *candidate != silent)
        });
        assert_eq!(it.selection.path, used);
        assert!(it.candidates[&worse].last_answered().is_some());
        assert_eq!(
            reasons(&it),
            [
                Reason::NoAnswerYet,
                Reason::NotAccepted,
                Reason::InUse,
                Reason::NotBetter
            ]
        );
    }

    #[test]
    fn a_better_candidate_goes_through_silence_rest_and_trial() {
        let [best, other, ..] = all();
        let mut it = Simulation::new(&all(), best);
        it.run(SECOND * 60, |_, _| after(20));
        it.run(SECOND * 4, |candidate, _| {
            after(20).filter(|_| *candidate != best)
        });
        assert_eq!(it.selection.path, other);
        assert!(matches!(reasons(&it)[0], Reason::NoAnswerFor(time) if time.as_secs() == 4));

        let mut shown = Vec::new();
        while it.selection.path != best {
            it.run(SECOND / 4, |_, _| after(20));
            shown.push(match reasons(&it)[0] {
                Reason::Rests(time) => {
                    assert!(time <= SECOND * 5);
                    "rest"
                }
                Reason::OnTrial { passed, of: 15 } => {
                    assert!(passed <= 15);
                    "trial"
                }
                Reason::InUse => "use",
                _ => "silence",
            });
        }
        shown.dedup();
        let without_rest: Vec<_> = shown.iter().filter(|it| **it != "rest").collect();
        assert_eq!(without_rest, [&"silence", &"trial", &"use"], "{shown:?}");
    }

    #[test]
    fn a_better_candidate_that_answers_only_half_of_the_probes_loses_more() {
        let [best, other, ..] = all();
        let mut random = random(1);
        let mut it = Simulation::new(&[best, other], other);
        let is_lost = |candidate: &Candidate, random: f64| *candidate == best && random < 0.5;
        it.run(SECOND * 300, |it, _| {
            after(20).filter(|_| !is_lost(it, random()))
        });
        assert_eq!(it.selection.path, other);
        // An answer may be missing just now.
        while it.candidates[&best].misses(it.instant()) > 0 {
            it.run(SECOND, |_, _| after(20));
        }
        let mut reasons = why(Some(&it.selection), &it.candidates, it.instant());
        assert_eq!(reasons.next(), Some((best, Reason::LosesMore)));
    }

    #[test]
    fn reasons_are_short_sentences() {
        let reasons = [
            (Reason::InUse, "in use"),
            (Reason::NoAnswerYet, "no answer yet"),
            (Reason::NoAnswerFor(SECOND * 35), "no answer for 35 s"),
            (Reason::NotAccepted, "answers but not accepted"),
            (Reason::Rests(SECOND / 2), "rests 1 s"),
            (Reason::OnTrial { passed: 3, of: 15 }, "on trial 3 of 15"),
            (Reason::NotBetter, "not better"),
            (Reason::LosesMore, "loses more"),
            (Reason::NotProven, "answers"),
            (Reason::NotSearched, "other realm, not probed"),
        ];
        for (reason, sentence) in reasons {
            assert_eq!(reason.to_string(), sentence);
        }
    }
}
