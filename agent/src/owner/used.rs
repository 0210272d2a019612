//! What of a volume holds data, said in the metadata store: its owner alone knows. A figure for people; nothing is decided by it.

use super::control::Control;
use super::driver::Question;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use torus_core::block::VolumeState;
use torus_core::ids::{Epoch, VolumeId};
use torus_core::meta::docs::{EpochDoc, Holder, UsedDoc, encode};
use torus_core::meta::{Compare, MetaOp, Txn, Write, keys};

/// How soon after the opening it is said first: a pod that only looks is over by then.
const FIRST: Duration = Duration::from_secs(3);
/// How often the owner is asked.
const PERIOD: Duration = Duration::from_secs(20);
/// How long it may take to answer, and the store to write.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// A change of less than this, and of less than a hundredth, is not worth a write.
const NEWS_BLOCKS: u64 = 256;

/// Says it for one open volume.
#[derive(Clone)]
pub(super) struct Reporter {
    pub control: Control,
    pub volume: VolumeId,
    pub holder: Holder,
    pub nonce: u64,
}

impl Reporter {
    /// Says it now and then, for as long as the driver lives.
    pub fn begin(self, questions: mpsc::UnboundedSender<Question>, state: watch::Receiver<VolumeState>) {
        let runtime = self.control.runtime.clone();
        runtime.spawn(async move {
            let mut said = None;
            let mut pause = FIRST;
            loop {
                sleep(pause).await;
                pause = PERIOD;
                let (asker, answer) = oneshot::channel();
                if questions.send(Question::Stats(asker)).is_err() {
                    return;
                }
                let Ok(Ok(stats)) = timeout(ANSWER_TIME, answer).await else { continue };
                let VolumeState::Serving(epoch) = *state.borrow() else { continue };
                let blocks = stats.mapped_blocks;
                if is_news(said, blocks) && self.say(epoch, blocks).await {
                    said = Some(blocks);
                }
            }
        });
    }

    /// Whether it was written. One that was overtaken has nothing to say.
    pub async fn say(&self, epoch: Epoch, blocks: u64) -> bool {
        let claim = EpochDoc { epoch, holder: self.holder.clone(), nonce: self.nonce };
        let txn = Txn {
            when: vec![Compare::Holds(keys::volume_epoch(self.volume), encode(&claim))],
            then: vec![Write::Put {
                key: keys::volume_used(self.volume),
                value: encode(&UsedDoc { blocks }),
                lease: None,
            }],
        };
        let store = self.control.store.clone();
        let written = self.control.ask(async move { timeout(ANSWER_TIME, store.execute(MetaOp::Txn(txn))).await });
        matches!(written.await, Ok(Ok(Ok(_))))
    }
}

fn is_news(said: Option<u64>, blocks: u64) -> bool {
    said.is_none_or(|said| said.abs_diff(blocks) >= NEWS_BLOCKS.max(said / 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_are_not_written() {
        assert!(is_news(None, 0));
        assert!(!is_news(Some(0), 255) && is_news(Some(0), 256) && is_news(Some(256), 0));
        assert!(!is_news(Some(1 << 20), (1 << 20) + 10_000) && is_news(Some(1 << 20), (1 << 20) + 10_486));
    }
}
