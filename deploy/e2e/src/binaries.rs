//! Torus's own programs, built.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Builds `programs` of the workspace in `profile` and says where each is, in the order asked for.
///
/// Asked of cargo itself, so it is right wherever the target directory is, and never an old build.
pub fn build<const N: usize>(profile: &str, programs: [&str; N]) -> Result<[PathBuf; N]> {
    build_all(profile, &programs)?.try_into().ok().context("cargo built something else")
}

/// The same for any number of programs.
pub fn build_all(profile: &str, programs: &[&str]) -> Result<Vec<PathBuf>> {
    let mut cargo = cargo(profile);
    cargo.arg("--workspace");
    for &program in programs {
        cargo.args(["--bin", program]);
    }
    if profile == "dev" {
        // Where a test is among what is built, dependencies get the features that tests ask for, as they have got for
        // whoever runs this: without it cargo would build many of them a second time.
        cargo.args(["--test", "takeover"]);
    }
    built(cargo, programs)
}

fn cargo(profile: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--message-format=json-render-diagnostics", "--profile", profile]);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or(here.to_path_buf(), PathBuf::from);
    // What cargo set for this process would make build scripts of dependencies run again, and all above them.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(here).stdin(Stdio::null()).stderr(Stdio::inherit());
    cargo
}

/// Has cargo build; where `programs` are.
fn built(mut cargo: Command, programs: &[&str]) -> Result<Vec<PathBuf>> {
    let output = cargo.output().context("cannot run cargo build")?;
    if !output.status.success() {
        bail!("cargo build of {} failed", programs.join(", "));
    }
    let built = String::from_utf8_lossy(&output.stdout);
    let mut paths = Vec::new();
    for &program in programs {
        let path = built.lines().find_map(|line| executable(line, program));
        paths.push(path.with_context(|| format!("cargo built {program} but does not say where"))?);
    }
    Ok(paths)
}

/// Builds `program`, linked with everything it needs, so that it runs on any host; where it is.
///
/// For a target that is named, as otherwise build scripts and macros would be linked in that way too. The C library has to be
/// there as an archive (on Debian: libc6-dev).
pub fn build_static(profile: &str, program: &str) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = cargo(profile);
    cargo.args(["--package", program, "--bin", program, "--target", &target]);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    built(cargo, &[program])?.pop().context("cargo built nothing")
}

/// The path in one of cargo's messages, if it is about the binary `program`.
fn executable(line: &str, program: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_it = message["target"]["name"] == program && message["target"]["kind"][0] == "bin";
    is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_in_what_cargo_says() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"torusctl"},"executable":"/t/torusctl"}"#;
        assert_eq!(executable(line, "torusctl"), Some("/t/torusctl".into()));
        assert_eq!(executable(line, "torus-agent"), None);
        let library = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"torusctl"},"executable":null}"#;
        assert_eq!(executable(library, "torusctl"), None);
        assert_eq!(executable("not json", "torusctl"), None);
    }
}
