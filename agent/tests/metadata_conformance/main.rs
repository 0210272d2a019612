//! One suite for every metadata store: the cases in [`cases`] run against the embedded store in memory and in a file, and
//! against a real etcd.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

mod bed;
mod cases;
mod embedded_file;
mod etcd_access;
mod etcd_faults;
mod proxy;

macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::cases::$case(crate::bed::Bed::memory()).await;
            })*
        }
        mod file {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::cases::$case(crate::bed::Bed::file()).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::cases::$case(crate::bed::Bed::etcd().await).await;
            })*
        }
    };
}

/// These make the store forget its history, so the etcd is not shared.
mod forgetful {
    use crate::{bed::Bed, cases};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_watch_from_forgotten_history_is_lost_in_memory() {
        cases::a_watch_from_forgotten_history_is_lost(Bed::memory()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_watch_from_forgotten_history_is_lost_in_a_file() {
        cases::a_watch_from_forgotten_history_is_lost(Bed::file()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_watch_from_forgotten_history_is_lost_in_etcd() {
        cases::a_watch_from_forgotten_history_is_lost(Bed::etcd_alone().await).await;
    }
}

conformance!(
    a_key_reads_back_as_it_was_written,
    absent_compares,
    present_compares,
    unchanged_compares,
    holds_compares,
    all_conditions_must_hold,
    a_conflict_writes_nothing,
    deletes,
    revisions_rise_with_each_writing_transaction,
    a_transaction_of_a_hundred_operations_is_one_revision,
    a_large_value_reads_back,
    what_is_too_large_is_refused,
    a_key_written_twice_is_refused,
    an_empty_key_is_refused,
    no_update_is_lost_among_concurrent_writers,
    transactions_are_atomic_to_lists,
    lists_have_their_prefix_only_and_are_in_order,
    long_lists_are_complete_and_of_one_revision,
    a_watch_brings_every_change_once_and_in_order,
    a_watch_from_the_past_begins_there,
    a_watch_brings_a_revision_whole,
    a_watch_sees_its_prefix_only,
    a_watch_after_a_list_misses_nothing,
    a_watch_from_now_begins_now,
    a_watch_from_the_future_is_lost,
    a_lease_that_is_not_kept_runs_out_with_its_keys,
    a_lease_that_is_kept_stays,
    a_revoked_lease_takes_its_keys,
    a_key_leaves_its_lease_when_it_is_written_without,
    a_lease_that_is_gone_takes_no_keys,
);
