//! `cargo xtask`.

fn main() {
    println!("cargo xtask {}", env!("CARGO_PKG_VERSION"));
}
