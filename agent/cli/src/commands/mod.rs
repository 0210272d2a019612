//! One module for each command.

pub mod completion;
pub mod config;
mod version;

use crate::args::{Args, Command};
use crate::failure::Failure;
use crate::output::Printer;

/// Does what `args` say.
pub fn run(args: Args) -> Result<(), Failure> {
    let Args { global, command } = args;
    let printer = Printer::new(global.output, global.si);
    match command {
        Command::Config(config) => config::run(&global, config, printer),
        Command::Completion(completion) => completion::run(&completion),
        Command::Version => version::run(printer),
    }
}
