//! What a seed's world is like: sizes, and which faults happen how often.
//!
//! Everything is drawn from the seed. Each kind of fault is on in about half of the seeds ("swarm testing"): a world in
//! which everything fails all the time never gets far enough to be wrong in an interesting way.
//!
//! **Profiles.** Some defects show only where several rare things meet. So one seed in ten of the real owner's is bent towards
//! such a place ([`Profile`]): chance does the rest.
//!
//! **Tolerance.** Data may be lost for good on `min_replicas - 1` agents: those are the *spare* ones, and only they are
//! wiped, rot, or have disks that lie. All others may crash, pause, lose power and be cut off at will, because none of
//! that may cost an acknowledged write.

use crate::disk::DiskFaults;
use crate::rng::Rng;
use std::fmt;
use torus_core::ids::AgentId;
use torus_core::meta::docs::AckMode;
use torus_core::time::Duration;

/// Which owner is driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// The block volume of `torus-core`.
    #[default]
    Volume,
    /// A small owner that lives here, for the member core by itself.
    Scripted,
}

/// What a seed's world is bent towards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Profile {
    /// Power fails all the time under slow disks, and writes are acknowledged on receipt.
    Blackouts,
    /// Owners stand still just when their extents were registered; then another one opens the volume and ends, and all
    /// agents restart.
    Usurpers,
    /// A small pool in which little else happens than overwriting, so that garbage is collected all the time.
    Crowded,
    /// A pool with so few slots that an owner may get none. All can still be read; owners overtake each other meanwhile.
    Full,
}

impl Profile {
    fn of(seed: u64, kind: Kind) -> Option<Self> {
        match seed % 10 {
            _ if kind != Kind::Volume => None,
            8 => Some([Self::Blackouts, Self::Usurpers, Self::Crowded][(seed / 10 % 3) as usize]),
            3 if (seed / 10).is_multiple_of(2) => Some(Self::Full),
            _ => None,
        }
    }
}

/// One seed's world.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which owner.
    pub kind: Kind,
    /// Agents.
    pub agents: usize,
    /// Disks of each agent.
    pub disks_per_agent: usize,
    /// Slots of each disk.
    pub slots_per_disk: u32,
    /// Blocks of data in an extent.
    pub extent_blocks: u32,
    /// Copies.
    pub replicas: u8,
    /// Copies below which nothing is acknowledged.
    pub min_replicas: u8,
    /// Size of the volume.
    pub volume_blocks: u64,
    /// When writes are acknowledged.
    pub ack_mode: AckMode,
    /// Operations of the workload.
    pub operations: u32,
    /// Operations at a time.
    pub in_flight: usize,
    /// Percent of operations that write.
    pub write_percent: u64,
    /// Longest pause of the workload between two operations.
    pub think_max: Duration,
    /// Longest trip of a message.
    pub delay_max: Duration,
    /// Agents whose data may be lost for good.
    pub spare_agents: usize,
    /// Their disks' faults.
    pub disk_faults: DiskFaults,
    /// Bits rot on them.
    pub rot: bool,
    /// They are wiped.
    pub wipes: bool,
    /// Agents crash, losing what was not synced.
    pub agent_crashes: bool,
    /// All agents lose power at once.
    pub power_cuts: bool,
    /// Agents stand still for a while.
    pub agent_pauses: bool,
    /// Connections break.
    pub disconnects: bool,
    /// Links go dead, in one direction or both.
    pub partitions: bool,
    /// Requests are delivered once more, later.
    pub duplicates: bool,
    /// Owners crash.
    pub owner_crashes: bool,
    /// Owners stand still, and others open the volume meanwhile.
    pub owner_pauses: bool,
    /// Others open the volume although the owner is well.
    pub rivals: bool,
    /// The store gives no answer, or an ambiguous one.
    pub meta_faults: bool,
    /// Some disks are slow.
    pub slow_disks: bool,
    /// Clocks run at different speeds.
    pub drift: bool,
    /// The volume grows.
    pub grows: bool,
    /// Extents that an owner writes side by side.
    pub open_extents: usize,
    /// Frames that an owner has under way before it packs.
    pub frames_max: usize,
    /// Small frames wait for company, as they do outside; where they do not, more are under way, and more goes wrong between them.
    pub gather: bool,
    /// How long an agent may be away before its copies are made anew.
    pub grace: Duration,
    /// The first agent is in the owner's process, as far as the owner knows.
    pub near: bool,
    /// Longest time between two faults.
    pub fault_every_max: Duration,
    /// Failure domains that the agents share; 0: each has its own.
    pub racks: u64,
    /// All disks are slow.
    pub all_slow: bool,
    /// Owners are usurped just when they have registered extents.
    pub usurpers: bool,
    /// Most blocks of one operation.
    pub operation_blocks_max: u64,
}

impl Options {
    /// The world of `seed`.
    #[must_use]
    pub fn draw(seed: u64, kind: Kind) -> Self {
        let mut rng = Rng::new(seed ^ 0x4f70_7469_6f6e_7300);
        let replicas = *rng.pick(&[1u8, 2, 2, 3, 3, 3]);
        let min_replicas = if rng.percent(70) { replicas } else { rng.within(1..u64::from(replicas) + 1) as u8 };
        let spare_agents = usize::from(min_replicas) - 1;
        let agents = usize::from(replicas) + spare_agents + rng.index(3);
        let calm = rng.one_in(12);
        let mut on = |percent: u64| !calm && rng.percent(percent);
        let (rot, wipes, lies) = (on(35), on(25), on(30));
        let (agent_crashes, power_cuts, agent_pauses) = (on(55), on(30), on(35));
        let (disconnects, partitions, duplicates) = (on(45), on(40), on(40));
        let (owner_crashes, owner_pauses, rivals) = (on(60), on(35), on(25));
        let (meta_faults, slow_disks, drift) = (on(45), on(25), on(50));
        let disk_faults = DiskFaults {
            lost_write_one_in: if lies { rng.within(20..400) } else { 0 },
            misdirected_one_in: if lies && rng.one_in(2) { rng.within(50..400) } else { 0 },
            flip_on_read_one_in: if rot { rng.within(10..200) } else { 0 },
            error_one_in: if lies && rng.one_in(3) { rng.within(100..1000) } else { 0 },
        };
        let mut options = Self {
            kind,
            agents,
            disks_per_agent: 1 + rng.index(2),
            slots_per_disk: if kind == Kind::Scripted { 160 } else { rng.within(12..28) as u32 },
            extent_blocks: torus_core::limits::EXTENT_BLOCKS_MIN,
            replicas,
            min_replicas,
            volume_blocks: rng.within(24..400),
            ack_mode: if kind == Kind::Volume && rng.percent(30) { AckMode::Received } else { AckMode::Durable },
            operations: rng.within(150..900) as u32,
            in_flight: rng.within(1..17) as usize,
            write_percent: rng.within(40..90),
            think_max: Duration::from_micros(*rng.pick(&[200, 3_000, 20_000, 60_000])),
            delay_max: Duration::from_micros(*rng.pick(&[150, 1_000, 8_000])),
            spare_agents,
            disk_faults,
            rot,
            wipes,
            agent_crashes,
            power_cuts,
            agent_pauses,
            disconnects,
            partitions,
            duplicates,
            owner_crashes,
            owner_pauses,
            rivals,
            meta_faults,
            slow_disks,
            drift,
            grows: kind == Kind::Volume && rng.percent(20),
            open_extents: rng.within(1..5) as usize,
            frames_max: *rng.pick(&[1, 2, 8]),
            gather: seed % 4 == 2,
            grace: Duration::from_millis(*rng.pick(&[500, 4_000, 60_000])),
            near: seed % 8 == 5,
            fault_every_max: Duration::from_millis(*rng.pick(&[60, 400, 1_500])),
            racks: if kind == Kind::Volume && rng.percent(25) { u64::from(replicas) + rng.within(0..2) } else { 0 },
            all_slow: false,
            usurpers: false,
            operation_blocks_max: 16,
        };
        if let Some(profile) = Profile::of(seed, kind) {
            options.bend(profile, &mut rng);
        }
        options
    }

    /// Without faults that cost time or data.
    fn calm(&mut self) {
        self.disk_faults = DiskFaults::default();
        (self.rot, self.wipes, self.agent_crashes, self.power_cuts, self.agent_pauses) = Default::default();
        (self.disconnects, self.partitions, self.duplicates) = Default::default();
        (self.owner_crashes, self.owner_pauses, self.rivals) = Default::default();
    }

    fn bend(&mut self, profile: Profile, rng: &mut Rng) {
        self.calm();
        match profile {
            Profile::Blackouts => {
                self.ack_mode = AckMode::Received;
                (self.power_cuts, self.owner_crashes, self.slow_disks, self.all_slow) = (true, true, true, true);
                self.fault_every_max = Duration::from_millis(400);
            }
            Profile::Usurpers => {
                (self.usurpers, self.disconnects) = (true, true);
                self.think_max = Duration::from_millis(20);
                self.fault_every_max = Duration::from_millis(1_500);
            }
            Profile::Crowded => {
                (self.replicas, self.min_replicas, self.spare_agents) = (1, 1, 0);
                (self.agents, self.disks_per_agent, self.slots_per_disk) = (1, 1, 12);
                (self.open_extents, self.volume_blocks) = (1, rng.within(200..600));
                (self.operations, self.in_flight, self.write_percent) = (900, 16, 85);
                (self.operation_blocks_max, self.think_max) = (64, Duration::from_micros(200));
                (self.meta_faults, self.racks) = (rng.one_in(2), 0);
            }
            Profile::Full => {
                (self.replicas, self.min_replicas, self.spare_agents) = (1, 1, 0);
                (self.agents, self.disks_per_agent, self.slots_per_disk) =
                    (1 + rng.index(2), 1, rng.within(1..4) as u32);
                (self.open_extents, self.volume_blocks, self.write_percent) = (1, rng.within(24..100), 0);
                (self.owner_crashes, self.owner_pauses, self.rivals) = (true, true, true);
                (self.meta_faults, self.racks) = (rng.one_in(2), 0);
                self.fault_every_max = Duration::from_millis(*rng.pick(&[400, 1_500]));
            }
        }
    }

    /// The failure domain of an agent.
    #[must_use]
    pub fn domain(racks: u64, agent: AgentId) -> String {
        match racks {
            0 => format!("node-{}", agent.0),
            racks => format!("rack-{}", agent.0 % racks),
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, agents, disks_per_agent, slots_per_disk, replicas, min_replicas, volume_blocks, .. } = self;
        write!(f, "{kind:?} owner, {agents} agents x {disks_per_agent} disks x {slots_per_disk} slots, ")?;
        write!(f, "{replicas} copies (at least {min_replicas}), {volume_blocks} blocks, {:?} acks, ", self.ack_mode)?;
        write!(f, "{} operations ({} at a time, {}% writes), ", self.operations, self.in_flight, self.write_percent)?;
        let gather = if self.gather { " that gather" } else { "" };
        write!(f, "{} open extents, {} frames{gather}, ", self.open_extents, self.frames_max)?;
        write!(f, "grace {:?}, ", self.grace)?;
        write!(f, "think {:?}, delay {:?}, fault every {:?}", self.think_max, self.delay_max, self.fault_every_max)?;
        let faults = [
            ("rot", self.rot && self.spare_agents > 0),
            ("wipes", self.wipes && self.spare_agents > 0),
            ("lying disks", self.disk_faults.lost_write_one_in != 0 && self.spare_agents > 0),
            ("agent crashes", self.agent_crashes),
            ("power cuts", self.power_cuts),
            ("agent pauses", self.agent_pauses),
            ("disconnects", self.disconnects),
            ("partitions", self.partitions),
            ("duplicates", self.duplicates),
            ("owner crashes", self.owner_crashes),
            ("owner pauses", self.owner_pauses),
            ("rivals", self.rivals),
            ("metadata faults", self.meta_faults),
            ("slow disks", self.slow_disks),
            ("drifting clocks", self.drift),
            ("growing", self.grows),
            ("racks", self.racks > 0),
            ("usurpers", self.usurpers),
            ("an agent beside the owner", self.near),
        ];
        for (name, _) in faults.iter().filter(|(_, on)| *on) {
            write!(f, ", {name}")?;
        }
        Ok(())
    }
}
