//! Writes `crds/` and the chart's copy, or with `--check` says whether it is up to date.

use anyhow::{Context, Result, bail};
use std::path::Path;
use torus_api::generate;

fn main() -> Result<()> {
    let check = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => bail!("usage: cargo run -p torus-api [-- --check]"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (directory, (name, text)) in
        generate::DIRECTORIES.into_iter().flat_map(|d| generate::files().map(|file| (d, file)))
    {
        let shown = format!("{directory}/{name}");
        let path = root.join(&shown);
        if !check {
            std::fs::write(&path, text).with_context(|| format!("cannot write {shown}"))?;
            println!("wrote {shown}");
        } else if std::fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))? != text {
            bail!("{shown} is not what operator/api says: run `cargo run -p torus-api`");
        }
    }
    Ok(())
}
