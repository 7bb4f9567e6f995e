//! A list of checks, run in order until one fails, and counted by name.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// What came of a step.
pub(crate) enum Outcome {
    Passed,
    /// Not run, and why: what the machine lacks.
    Skipped(String),
    /// Passed, but for these parts of it, which were not run, each with its reason.
    Partly(Vec<String>),
}

/// Runs steps and remembers how they went.
#[derive(Default)]
pub(crate) struct Steps {
    passed: usize,
    skipped: Vec<(String, String)>,
}

impl Steps {
    /// Runs one step; a failed one ends the list, after saying which it was.
    pub(crate) fn step(&mut self, name: &str, run: impl FnOnce() -> Result<Outcome>) -> Result<()> {
        eprintln!("── {name}");
        let start = Instant::now();
        match run() {
            Ok(Outcome::Passed) => {
                self.passed += 1;
                eprintln!("── {name}: passed in {:.0} s", start.elapsed().as_secs_f64());
                Ok(())
            }
            Ok(Outcome::Partly(skipped)) => {
                self.passed += 1;
                let (count, seconds) = (skipped.len(), start.elapsed().as_secs_f64());
                eprintln!("── {name}: passed in {seconds:.0} s, but {count} of it SKIPPED");
                self.skipped.extend(skipped.into_iter().map(|why| (name.to_owned(), why)));
                Ok(())
            }
            Ok(Outcome::Skipped(why)) => {
                eprintln!("── {name}: SKIPPED, {why}");
                self.skipped.push((name.to_owned(), why));
                Ok(())
            }
            Err(error) => {
                println!("{} passed, 1 failed, {} skipped", self.passed, self.skipped.len());
                Err(error).with_context(|| format!("`{name}` failed"))
            }
        }
    }

    /// Prints the count, and every skipped step with its reason.
    pub(crate) fn finish(self) {
        for (name, why) in &self.skipped {
            println!("skipped: {name} ({why})");
        }
        println!("{} passed, 0 failed, {} skipped", self.passed, self.skipped.len());
    }
}

/// One step by itself, counted like the others.
pub(crate) fn alone(name: &str, run: impl FnOnce() -> Result<Outcome>) -> Result<()> {
    let mut steps = Steps::default();
    steps.step(name, run)?;
    steps.finish();
    Ok(())
}

/// Runs a command to its end, its output on ours.
pub(crate) fn run(command: &mut Command) -> Result<Outcome> {
    let status =
        command.status().with_context(|| format!("{:?} could not be started", command.get_program()))?;
    if !status.success() {
        bail!("{:?} ended with {status}", command.get_program());
    }
    Ok(Outcome::Passed)
}
