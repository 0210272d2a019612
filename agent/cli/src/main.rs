//! `torusctl`.

fn main() {
    println!("torusctl {}", env!("CARGO_PKG_VERSION"));
}
