//! `torus`: the FlexVolume driver `coreos.com/torus`, as kubelets start it: one call, one line of JSON, an exit code.
//!
//! All it knows is how a kubelet asks; what is asked for is done by the agent of role `node` on this host, over its socket. It
//! never prints anything else than JSON, on no input.

mod agent;
mod call;
mod options;
mod reply;

use reply::Reply;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A kubelet reads both outputs as one.
    std::panic::set_hook(Box::new(|_| {}));
    let answered = std::panic::catch_unwind(|| answer(std::env::args_os().skip(1)));
    answered.unwrap_or_else(|_| Reply::failure("the driver ended by a defect: run it by hand to see it")).print()
}

fn answer(args: impl Iterator<Item = std::ffi::OsString>) -> Reply {
    let words = args.map(std::ffi::OsString::into_string).collect::<Result<Vec<_>, _>>();
    let Ok(words) = words else { return Reply::failure("an argument is not UTF-8") };
    let call = match call::read(&words) {
        Ok(call) => call,
        Err(reply) => return reply,
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(agent::carry_out(call)),
        Err(error) => Reply::failure(format!("cannot start: {error}")),
    }
}
