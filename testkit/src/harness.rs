//! A harness for tests that share an expensive fixture: a lab, a cluster, an API server.
//!
//! The tests of a suite share one fixture. It starts with the first test that runs, and is replaced after a
//! test that fails. There is one fixture at a time, and tests run one after the other.

use crate::trash::empty_all_on_interrupt;
use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The tests that the end of a run names with their times.
const SHOWN: usize = 10;

/// Whether the tests that take minutes run, too: the variable `IPIP_LONG` is set.
pub fn is_long() -> bool {
    env::var_os("IPIP_LONG").is_some()
}

/// A test. Its name is the sentence that it proves. It leaves the fixture as it found it.
pub struct Test<F: 'static> {
    /// The function's name.
    pub name: &'static str,
    /// The test.
    pub run: fn(&mut F) -> Result<()>,
}

/// Tests that share one fixture.
pub struct Suite<F: 'static> {
    /// Name of the suite, in front of the tests' names.
    pub name: &'static str,
    /// Starts the fixture.
    pub start: fn() -> Result<F>,
    /// Lists of tests, in the order in which they run.
    pub tests: &'static [&'static [Test<F>]],
}

/// A test that needs no fixture, or makes its own.
pub struct LoneTest {
    /// The function's name.
    pub name: &'static str,
    /// The test.
    pub run: fn() -> Result<()>,
}

/// Lists functions as [`Test`](harness::Test)s. The lint `dead_code` finds a function that is in no list.
#[macro_export]
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        &[$($crate::harness::Test {
            name: stringify!($test),
            run: |fixture| $test(fixture),
        }),*]
    };
}

/// Lists functions as [`LoneTest`](harness::LoneTest)s.
#[macro_export]
macro_rules! lone_tests {
    ($($test:ident),* $(,)?) => {
        &[$($crate::harness::LoneTest { name: stringify!($test), run: $test }),*]
    };
}

/// All tests of a target. Dropping a fixture removes everything that it has created.
pub struct Harness<F: 'static> {
    report: fn(&F) -> String,
    current: Current<F>,
    trials: Vec<Trial>,
    times: Times,
}

/// How long each test took, with the start of its fixture.
type Times = Arc<Mutex<Vec<(Duration, String)>>>;

/// The fixture that runs now, with the name of its suite.
type Current<F> = Arc<Mutex<Option<(&'static str, F)>>>;

impl<F: Send> Harness<F> {
    /// A harness without tests. `report` returns diagnostics about the fixture of a failed test, for example the
    /// ends of logs.
    pub fn new(report: fn(&F) -> String) -> Self {
        Self {
            report,
            current: Arc::default(),
            trials: Vec::new(),
            times: Times::default(),
        }
    }

    /// Adds every test of a suite.
    pub fn suite(&mut self, suite: &'static Suite<F>) {
        for test in suite.tests.iter().copied().flatten() {
            self.test(suite, test.name, test.run);
        }
    }

    /// Adds one more test to a suite.
    pub fn test(
        &mut self,
        suite: &'static Suite<F>,
        name: &str,
        run: impl Fn(&mut F) -> Result<()> + Send + 'static,
    ) {
        let (current, report) = (self.current.clone(), self.report);
        let name = format!("{}::{name}", suite.name);
        self.trial(name, move || run_with_fixture(&current, suite, report, run));
    }

    /// Adds tests without the fixture, which is removed before they run.
    pub fn lone_tests(&mut self, group: &str, tests: &[LoneTest]) {
        for &LoneTest { name, run } in tests {
            let current = self.current.clone();
            self.trial(format!("{group}::{name}"), move || {
                *lock(&current) = None;
                caught(run).map_err(Failed::from)
            });
        }
    }

    fn trial(&mut self, name: String, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) {
        let (times, shown) = (self.times.clone(), name.clone());
        self.trials.push(Trial::test(name, move || {
            let start = Instant::now();
            let result = run();
            lock(&times).push((start.elapsed(), shown));
            result
        }));
    }

    /// Runs the tests that the command line selects, and removes the fixture. Ctrl-C removes it, too.
    pub fn run(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads = Some(1);
        if let Err(error) = empty_all_on_interrupt() {
            eprintln!("cannot wait for signals: {error}");
            return ExitCode::FAILURE;
        }
        let conclusion = libtest_mimic::run(&arguments, self.trials);
        *lock(&self.current) = None;
        let mut times = lock(&self.times);
        times.sort_unstable_by(|a, b| b.cmp(a));
        println!("the longest tests:");
        for (time, name) in times.iter().take(SHOWN) {
            println!("{:6.1} s  {name}", time.as_secs_f64());
        }
        conclusion.exit_code()
    }
}

fn run_with_fixture<F>(
    current: &Current<F>,
    suite: &Suite<F>,
    report: fn(&F) -> String,
    run: impl Fn(&mut F) -> Result<()>,
) -> Result<(), Failed> {
    let mut current = lock(current);
    if current
        .as_ref()
        .is_none_or(|(running, _)| *running != suite.name)
    {
        // Remove the old fixture before the new one starts: two would double the load.
        *current = None;
        let started =
            caught(|| (suite.start)().with_context(|| format!("{} does not start", suite.name)));
        *current = Some((suite.name, started?));
    }
    let Some((_, fixture)) = current.as_mut() else {
        return Err("no fixture".into());
    };
    let Err(failure) = caught(|| run(fixture)) else {
        return Ok(());
    };
    let report = report(fixture);
    // The next test must not depend on leftovers of this one.
    *current = None;
    Err(format!("{failure}\n{report}").into())
}

/// Runs `f`. An error or a panic becomes text, printed at once because the summary comes after the last test.
fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T, String> {
    let failure = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => format!("{error:?}"),
        Err(panic) => panic_message(&*panic),
    };
    eprintln!("{failure}");
    Err(failure)
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the test panicked".into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
