//! Real agents, a real etcd and real owners, while things break.
//!
//! Everything is in the module `under_faults`, by whose name `cargo xtask test` leaves these tests out where the rest of the
//! workspace is tested, and runs them by themselves in its stage `faults`: they measure how long I/O stalls. To run one:
//! `cargo test -p torus-e2e --test faults -- --nocapture --test-threads=1 NAME`.

mod under_faults;
