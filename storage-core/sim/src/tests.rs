use super::*;

/// Seeds that failed once. Each stays here after its defect is mended.
fn kept() -> Vec<(Kind, u64)> {
    let lines = include_str!("../seeds.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (kind, rest) = line.split_once(' ').expect("a line is `owner seed what it found`");
            let seed = rest.split(' ').next().expect("a line has a seed").parse().expect("a seed is a number");
            (if kind == "scripted" { Kind::Scripted } else { Kind::Volume }, seed)
        })
        .collect()
}

fn passes(kind: Kind, seed: u64) -> Report {
    match run(seed, Options::draw(seed, kind), None, false) {
        Ok(report) => report,
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn seeds_that_failed_once_pass() {
    for (kind, seed) in kept() {
        passes(kind, seed);
    }
}

#[test]
fn the_members_keep_their_promises_to_a_scripted_owner() {
    for seed in 0..12 {
        let report = passes(Kind::Scripted, seed);
        assert!(report.counts.acked > 20, "seed {seed} got nothing done: {report:?}");
    }
}

#[test]
fn volumes_keep_their_promises() {
    for seed in 5..12 {
        let report = passes(Kind::Volume, seed);
        assert!(report.counts.acked > 20, "seed {seed} got nothing done: {report:?}");
    }
}

#[test]
fn a_seed_always_does_the_same() {
    for (kind, seed) in [(Kind::Scripted, 100), (Kind::Scripted, 101), (Kind::Volume, 6), (Kind::Volume, 7)] {
        assert_eq!(passes(kind, seed), passes(kind, seed), "{kind:?} seed {seed}");
    }
}

#[test]
fn a_disk_that_lies_about_a_sync_is_caught() {
    let lie = Mutation::World(mutation::WorldMutation::CommitWithoutSync);
    let caught = (0..60).any(|seed| run(seed, Options::draw(seed, Kind::Scripted), Some(lie), false).is_err());
    assert!(caught, "60 worlds without a single sync went well");
}
