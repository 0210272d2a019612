//! Deliberate defects: those of the world around the cores, and the cores' own
//! ([`torus_core::mutation`]). Each must be caught, or the simulator does not bite.

#[cfg(feature = "mutations")]
use torus_core::mutation::Mutation as CoreMutation;

/// One deliberate defect of the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorldMutation {
    /// Disks report a commit before it is durable.
    CommitWithoutSync,
    /// The metadata store lets every comparison of an epoch pass.
    StoreIgnoresEpochs,
    /// Clocks run at speeds further apart than a lease allows for.
    ClocksRunWild,
}

/// One deliberate defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Around the cores.
    World(WorldMutation),
    /// In a core.
    #[cfg(feature = "mutations")]
    Core(CoreMutation),
}

impl Mutation {
    /// The world's share of it.
    #[must_use]
    pub fn world(self) -> Option<WorldMutation> {
        match self {
            Self::World(mutation) => Some(mutation),
            #[cfg(feature = "mutations")]
            Self::Core(_) => None,
        }
    }

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::World(mutation) => format!("{mutation:?}"),
            #[cfg(feature = "mutations")]
            Self::Core(mutation) => format!("{mutation:?}"),
        }
    }

    /// Gives this thread's cores the defect, or takes it away.
    pub(crate) fn install(mutation: Option<Mutation>) {
        #[cfg(feature = "mutations")]
        torus_core::mutation::set(match mutation {
            Some(Self::Core(core)) => Some(core),
            _ => None,
        });
        #[cfg(not(feature = "mutations"))]
        let _ = mutation;
    }
}

/// A deliberate defect, the owner in whose worlds it is looked for, and the invariant whose checker is to see it first.
#[cfg(feature = "mutations")]
#[derive(Clone, Copy, Debug)]
pub struct Defect {
    /// What is wrong.
    pub mutation: Mutation,
    /// Which owner.
    pub owner: crate::Kind,
    /// The number of the invariant that it breaks.
    pub breaks: &'static str,
}

/// Invariants that have a checker; each must see a defect. Not I14 to I16, which are of rebalancing, nor I20, which is of
/// snapshots: there are neither yet.
pub const CHECKED: [&str; 18] = [
    "I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "I12", "I13", "I17", "I18", "I19", "I21", "I22",
];

/// All defects.
#[cfg(feature = "mutations")]
#[must_use]
pub fn all() -> Vec<Defect> {
    use crate::Kind::{Scripted, Volume};
    let world = [
        (WorldMutation::CommitWithoutSync, Scripted, "I17"),
        (WorldMutation::StoreIgnoresEpochs, Scripted, "I21"),
        (WorldMutation::ClocksRunWild, Scripted, "I4"),
    ];
    let core = [
        (CoreMutation::EpochIgnored, Scripted, "I7"),
        (CoreMutation::AppendedBeforeCommit, Scripted, "I1"),
        (CoreMutation::DamageHidden, Scripted, "I17"),
        (CoreMutation::ResendAppendsAgain, Scripted, "I8"),
        (CoreMutation::LeaseForgotten, Scripted, "I4"),
        (CoreMutation::FenceNotPersisted, Volume, "I4"),
        (CoreMutation::CrcIgnored, Volume, "I18"),
        (CoreMutation::SealsAtOwnLength, Volume, "I6"),
        (CoreMutation::AckBeforeAllMembers, Volume, "I1"),
        (CoreMutation::AckOutOfOrder, Volume, "I9"),
        (CoreMutation::UnregisteredExtent, Volume, "I5"),
        (CoreMutation::ShortestLengthSeals, Volume, "I21"),
        (CoreMutation::LastFrameLeftOut, Volume, "I7"),
        (CoreMutation::GapKept, Volume, "I3"),
        (CoreMutation::SilenceWaitedOut, Volume, "I21"),
        (CoreMutation::LostMemberKept, Volume, "I22"),
        (CoreMutation::FlushDoesNotWait, Volume, "I19"),
        (CoreMutation::LeaseIgnored, Volume, "I4"),
        (CoreMutation::LeaseNotWaitedOut, Volume, "I4"),
        (CoreMutation::WitnessNotWaitedOut, Volume, "I4"),
        (CoreMutation::ExtentReused, Volume, "I6"),
        (CoreMutation::BlocksTurned, Volume, "I2"),
        (CoreMutation::FrameSkipped, Volume, "I3"),
        (CoreMutation::ReplayOutOfOrder, Volume, "I10"),
        (CoreMutation::CheckpointIncomplete, Volume, "I11"),
        (CoreMutation::RelocUnconditional, Volume, "I12"),
        (CoreMutation::DeleteBeforeCheckpoint, Volume, "I13"),
        (CoreMutation::DeleteOnMetaError, Volume, "I22"),
    ];
    let world = world.into_iter().map(|(mutation, owner, breaks)| (Mutation::World(mutation), owner, breaks));
    let core = core.into_iter().map(|(mutation, owner, breaks)| (Mutation::Core(mutation), owner, breaks));
    world.chain(core).map(|(mutation, owner, breaks)| Defect { mutation, owner, breaks }).collect()
}
