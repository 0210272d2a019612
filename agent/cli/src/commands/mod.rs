//! One module for each command.

pub mod attach;
pub mod block;
pub mod completion;
pub mod config;
pub mod demo;
pub mod flex;
pub mod init;
pub mod kube;
pub mod peer;
pub mod ring;
pub mod serve;
mod version;
pub mod volume;

use crate::args::{Args, Command};
use crate::failure::Failure;
use crate::output::Printer;

/// Does what `args` say.
pub fn run(args: Args) -> Result<(), Failure> {
    let Args { global, command } = args;
    let printer = Printer::new(global.output, global.si);
    match command {
        Command::Init(init) => wait(init::run(&global, init, printer)),
        Command::Volume(volume) => wait(volume::run(&global, volume, printer)),
        Command::Peer(peer) => wait(peer::run(&global, peer, printer)),
        Command::ListPeers => wait(peer::list(&global, printer)),
        Command::Ring(ring) => wait(ring::run(&global, ring, printer)),
        Command::Serve(serve) => serve::run(&global, serve, printer),
        Command::Attach(attach) => attach::run(&global, attach, printer),
        Command::Attached(list) => attach::list(&list, printer),
        Command::Detach(detach) => wait(attach::detach(detach, printer)),
        Command::Flex(flex) => wait(flex::run(flex, printer)),
        Command::Preflight(rest) => kube::run(&global, &["preflight"], rest),
        Command::Status(rest) => kube::run(&global, &["status"], rest),
        Command::Kube(rest) => kube::run(&global, &[], rest),
        Command::Demo(demo) => demo::run(&demo, printer),
        Command::Block(block) => wait(block::run(&global, block, printer)),
        Command::Config(config) => config::run(&global, config, printer),
        Command::Completion(completion) => completion::run(&completion),
        Command::Version => version::run(printer),
    }
}

/// Runs a command that talks to others.
fn wait(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::because("cannot start", &error))?.block_on(command)
}
