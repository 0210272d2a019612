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

/// All defects, each with the owner that is to catch it.
#[cfg(feature = "mutations")]
#[must_use]
pub fn all() -> Vec<(Mutation, crate::Kind)> {
    use crate::Kind::{Scripted, Volume};
    let world = [
        (WorldMutation::CommitWithoutSync, Scripted),
        (WorldMutation::StoreIgnoresEpochs, Scripted),
        (WorldMutation::ClocksRunWild, Scripted),
    ];
    let core = [
        (CoreMutation::EpochIgnored, Scripted),
        (CoreMutation::AppendedBeforeCommit, Scripted),
        (CoreMutation::DamageHidden, Scripted),
        (CoreMutation::ResendAppendsAgain, Scripted),
        (CoreMutation::LeaseForgotten, Scripted),
        (CoreMutation::FenceNotPersisted, Volume),
        (CoreMutation::CrcIgnored, Volume),
        (CoreMutation::SealsAtOwnLength, Volume),
        (CoreMutation::AckBeforeAllMembers, Volume),
        (CoreMutation::AckOutOfOrder, Volume),
        (CoreMutation::UnregisteredExtent, Volume),
        (CoreMutation::ShortestLengthSeals, Volume),
        (CoreMutation::FlushDoesNotWait, Volume),
        (CoreMutation::LeaseIgnored, Volume),
        (CoreMutation::LeaseNotWaitedOut, Volume),
        (CoreMutation::WitnessNotWaitedOut, Volume),
        (CoreMutation::ExtentReused, Volume),
        (CoreMutation::ReplayOutOfOrder, Volume),
        (CoreMutation::RelocUnconditional, Volume),
        (CoreMutation::DeleteBeforeCheckpoint, Volume),
        (CoreMutation::DeleteOnMetaError, Volume),
    ];
    let world = world.into_iter().map(|(mutation, kind)| (Mutation::World(mutation), kind));
    world.chain(core.into_iter().map(|(mutation, kind)| (Mutation::Core(mutation), kind))).collect()
}
