//! `torusctl init`: makes a cluster in an empty metadata store.

use crate::args::Global;
use crate::blockspec::{self, BlockSpec};
use crate::cluster;
use crate::failure::Failure;
use crate::output::{Printer, Record, Style};
use crate::units::Size;
use serde::Serialize;
use serde_json::Value;
use torus_agent::metadata;
use torus_core::ids::{BLOCK_BYTES, Blocks, ClusterId};
use torus_core::limits::{EXTENT_BLOCKS_DEFAULT, EXTENT_BLOCKS_MAX, EXTENT_BLOCKS_MIN, REPLICAS_DEFAULT};
use torus_core::meta::docs::ClusterDoc;
use torus_core::ring::RingSpec;

/// What the cluster is to be.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Bytes of an extent, the unit of placement: 4MiB to 256MiB [default: 64MiB].
    #[arg(long, visible_alias = "block-size", value_name = "SIZE")]
    extent_size: Option<Size>,
    /// Copies that a volume gets unless it says otherwise [default: 2].
    #[arg(long, short, value_parser = blockspec::replicas, value_name = "N")]
    replicas: Option<u8>,
    /// The same in the first Torus's way, such as crc,r=2.
    #[arg(long, value_name = "SPEC", conflicts_with = "replicas")]
    block_spec: Option<BlockSpec>,
    /// Make a ring that stays empty until a person changes it, whatever agents join.
    #[arg(long)]
    no_ring: bool,
    /// Show the cluster that there is, and make none.
    #[arg(long, conflicts_with_all = ["extent_size", "replicas", "block_spec", "no_ring"])]
    view: bool,
}

/// A cluster, for people and programs.
#[derive(Serialize)]
struct Shown {
    cluster: ClusterId,
    metadata: String,
    format: u32,
    extent_bytes: u64,
    replicas: u8,
}

impl Record for Shown {
    const COLUMNS: &'static [&'static str] = &["CLUSTER", "METADATA", "FORMAT", "EXTENT SIZE", "REPLICAS"];

    fn cells(&self, style: Style) -> Vec<String> {
        vec![
            self.cluster.to_string(),
            self.metadata.clone(),
            self.format.to_string(),
            style.size(self.extent_bytes),
            self.replicas.to_string(),
        ]
    }
}

/// Makes the cluster, or shows it.
pub async fn run(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    let extent_blocks = args.extent_size.map_or(Ok(EXTENT_BLOCKS_DEFAULT), extent_blocks)?;
    let replicas = args.replicas.or(args.block_spec.unwrap_or_default().replicas).unwrap_or(REPLICAS_DEFAULT);
    let store = cluster::connect(global).await?;
    let shown = |doc: ClusterDoc| Shown {
        cluster: doc.id,
        metadata: store.describe(),
        format: doc.format,
        extent_bytes: u64::from(doc.extent_blocks) * BLOCK_BYTES,
        replicas: doc.replicas,
    };
    if args.view {
        return printer.item(&shown(metadata::load_cluster(store.as_ref()).await?));
    }
    let made = shown(metadata::init_cluster(store.as_ref(), extent_blocks, replicas).await?);
    if args.no_ring {
        let empty = RingSpec { kind: "empty".into(), replicas, spread: None, agents: Vec::new(), options: Value::Null };
        metadata::change_ring(store.as_ref(), |_| Ok(empty.clone())).await?;
    }
    let sentence = format!(
        "cluster {} made in {}: extents of {}, replicas {}",
        made.cluster,
        made.metadata,
        printer.size(made.extent_bytes),
        made.replicas
    );
    printer.done(&sentence, &made)
}

fn extent_blocks(size: Size) -> Result<Blocks, Failure> {
    let (least, most) = (u64::from(EXTENT_BLOCKS_MIN), u64::from(EXTENT_BLOCKS_MAX));
    let blocks = size.0 / BLOCK_BYTES;
    if !size.0.is_multiple_of(BLOCK_BYTES) || !(least..=most).contains(&blocks) {
        let (least, most) = (Size(least * BLOCK_BYTES), Size(most * BLOCK_BYTES));
        return Err(Failure::usage(format!("an extent cannot have {size}"))
            .next(format!("Choose from {least} to {most}, in whole blocks of 4 KiB; 64 MiB suits most.")));
    }
    Ok(Blocks::try_from(blocks).expect("bounded above"))
}
