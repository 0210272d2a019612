//! Why a command failed, in the words a person reads, and the exit code a script reads.

use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// What a script can tell apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// It was tried and did not work: exit code 1.
    Failed,
    /// What was asked for makes no sense: exit code 2, as for unknown flags.
    Usage,
    /// It makes sense, and Torus declines, because something would be lost or is held by another: exit code 3.
    Refused,
}

/// Why a command failed: which action, on which object, and what to do next.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    sentence: String,
    closed_pipe: bool,
}

impl Failure {
    /// Tried, and it did not work.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, sentence: sentence.into(), closed_pipe: false }
    }

    /// Asked for something that makes no sense.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self::failed_as(Kind::Usage, sentence)
    }

    /// Did not work, of this kind.
    pub fn failed_as(kind: Kind, sentence: impl Into<String>) -> Self {
        Self { kind, ..Self::failed(sentence) }
    }

    /// `error` says it all: its whole chain of causes is told.
    pub fn of(kind: Kind, error: &dyn Error) -> Self {
        Self::failed_as(kind, told(error))
    }

    /// `what` failed because of `error`: the whole chain of causes is told, each once.
    pub fn because(what: impl fmt::Display, error: &dyn Error) -> Self {
        Self::failed(format!("{what}: {}", told(error)))
    }

    /// Printing failed. A reader that went away (`torusctl … | head`) is no failure worth a word.
    pub fn print(error: &io::Error) -> Self {
        let closed_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self { closed_pipe, ..Self::because("cannot print", error) }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn next(mut self, advice: impl fmt::Display) -> Self {
        let stop = if self.sentence.ends_with(['.', '?', '!']) { "" } else { "." };
        self.sentence = format!("{}{stop} {advice}", self.sentence);
        self
    }

    /// The reader of our output went away.
    pub fn is_closed_pipe(&self) -> bool {
        self.closed_pipe
    }

    /// What a script can tell of it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Refused => 3,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// An error and what caused it, in one line.
pub fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
