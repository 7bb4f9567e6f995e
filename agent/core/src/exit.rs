//! What the end of a worker's process means.

use tandem_crds::LastExit;
use tandem_worker_api::WorkerExit;

/// What to do about an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Starting again may go better.
    MayRestart,
    /// The weights may be damaged on disk: look, before anything is started again.
    DoubtsWeights,
    /// The same spec ends the same way.
    Hopeless,
}

impl Ended {
    /// From the exit code; a signal's death has none.
    #[must_use]
    pub fn of(code: Option<i32>) -> Self {
        match code.and_then(WorkerExit::from_code) {
            Some(WorkerExit::BadWeights) => Self::DoubtsWeights,
            Some(exit) if !exit.restart_may_help() => Self::Hopeless,
            _ => Self::MayRestart,
        }
    }
}

/// The end in words. `note` is what the runner adds, such as that the kernel ran out of memory.
#[must_use]
pub fn cause(code: Option<i32>, signal: Option<i32>, note: Option<&str>) -> LastExit {
    let words = match (code, signal) {
        (Some(code), _) => match WorkerExit::from_code(code) {
            Some(WorkerExit::Stopped) => "ended as told".to_owned(),
            Some(WorkerExit::Failed) => {
                "ended with an error that a restart may cure; its log says which".to_owned()
            }
            Some(WorkerExit::BadSpec) => "could not use its spec; its log says why".to_owned(),
            Some(WorkerExit::BadWeights) => "could not use the weights; its log says why".to_owned(),
            Some(WorkerExit::OutOfMemory) => "needs more memory than this machine has".to_owned(),
            Some(WorkerExit::Crashed) => "crashed while computing".to_owned(),
            None => format!("ended with exit code {code}"),
        },
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended with its runner".to_owned(),
    };
    let cause = match note {
        Some(note) => format!("{words}: {note}"),
        None => words,
    };
    LastExit { code, signal, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_whether_to_try_again() {
        let expected = [
            (Some(0), Ended::MayRestart),
            (Some(1), Ended::MayRestart),
            (Some(2), Ended::Hopeless),
            (Some(3), Ended::DoubtsWeights),
            (Some(4), Ended::Hopeless),
            (Some(5), Ended::MayRestart),
            (Some(101), Ended::MayRestart),
            (None, Ended::MayRestart),
        ];
        for (code, ended) in expected {
            assert_eq!(Ended::of(code), ended, "{code:?}");
        }
    }

    #[test]
    fn causes_read_as_sentences() {
        let killed = cause(None, Some(9), Some("the kernel has run out of memory meanwhile"));
        assert_eq!(killed.cause, "was ended by signal 9: the kernel has run out of memory meanwhile");
        assert!(cause(Some(77), None, None).cause.contains("77"));
    }
}
