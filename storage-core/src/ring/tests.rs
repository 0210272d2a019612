use super::*;
use crate::ids::ExtentSeq;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn agent(id: u64, domain: &str, weight: u64) -> RingAgent {
    RingAgent { id: AgentId(id), domain: domain.into(), weight }
}

fn spec(kind: &str, agents: &[RingAgent]) -> RingSpec {
    RingSpec { kind: kind.into(), replicas: 3, spread: None, agents: agents.to_vec(), options: serde_json::Value::Null }
}

fn ring(kind: &str, agents: &[RingAgent]) -> Ring {
    Ring::new(&spec(kind, agents)).unwrap()
}

/// Machines of their own, with these weights.
fn machines(weights: &[u64]) -> Vec<RingAgent> {
    weights.iter().zip(1..).map(|(&weight, id)| agent(id, &format!("zone/node-{id}"), weight)).collect()
}

/// Three zones of two racks of two machines; the second machine of each rack has two agents.
fn datacentre() -> Vec<RingAgent> {
    let mut agents = Vec::new();
    for (zone, rack, node) in (0..3).flat_map(|z| (0..2).flat_map(move |r| [(z, r, 0), (z, r, 1), (z, r, 1)])) {
        let id = agents.len() as u64 + 1;
        agents.push(agent(id, &format!("z{zone}/r{rack}/n{node}"), 100 + 10 * id));
    }
    agents
}

fn any_agents() -> impl Strategy<Value = Vec<RingAgent>> {
    let one = (0..3u8, 0..3u8, 0..4u8, 1..9u64);
    prop::collection::vec(one, 1..14).prop_map(|agents| {
        let agents = agents.into_iter().zip(1..);
        agents.map(|((z, r, n, weight), id)| agent(id * 77, &format!("z{z}/r{r}/n{n}"), weight)).collect()
    })
}

fn weighted_kind() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["rendezvous", "ketama", "mod"])
}

fn up(_: AgentId) -> bool {
    true
}

fn set(ensemble: &Ensemble) -> BTreeSet<AgentId> {
    ensemble.members.iter().copied().collect()
}

/// How many of `keys` keys come to each agent first.
fn shares(ring: &Ring, keys: u64) -> BTreeMap<AgentId, f64> {
    let mut shares = BTreeMap::new();
    for key in 0..keys {
        *shares.entry(ring.place(key, 1, up).members[0]).or_insert(0.0) += 1.0 / keys as f64;
    }
    shares
}

/// The most agents that differ in the first `level` parts of their paths.
fn domains<'a>(agents: impl Iterator<Item = &'a RingAgent>, level: usize) -> usize {
    let path = |agent: &'a RingAgent| agent.domain.split('/').take(level).collect::<Vec<_>>();
    agents.map(path).collect::<BTreeSet<_>>().len()
}

proptest! {
    #[test]
    fn members_are_apart_or_the_ensemble_is_degraded(
        agents in any_agents(), spread in prop::option::of(1..4u8), kind in weighted_kind(),
        want in 1..6usize, key: u64, down in prop::collection::btree_set(1..14u64, 0..5),
    ) {
        let ring = Ring::new(&RingSpec { spread, ..spec(kind, &agents) }).unwrap();
        let eligible = |id: AgentId| !down.contains(&(id.0 / 77));
        let ensemble = ring.place(key, want, eligible);
        let members: Vec<&RingAgent> =
            ensemble.members.iter().map(|id| agents.iter().find(|agent| agent.id == *id).unwrap()).collect();
        prop_assert_eq!(set(&ensemble).len(), members.len(), "distinct");
        prop_assert!(ensemble.members.iter().all(|&id| eligible(id)));
        let there: Vec<&RingAgent> = agents.iter().filter(|agent| eligible(agent.id)).collect();
        prop_assert_eq!(members.len(), want.min(there.len()), "as many as there are");
        for level in usize::from(spread.unwrap_or(3))..=3 {
            let possible = domains(there.iter().copied(), level).min(want);
            prop_assert_eq!(domains(members.iter().copied(), level), possible, "as spread as can be at {}", level);
        }
        let apart = domains(members.iter().copied(), spread.unwrap_or(3).into()) == want;
        prop_assert_eq!(ensemble.degraded, !apart);
        let names: BTreeSet<_> = ensemble.members.iter().map(|&id| ring.domain(id).unwrap()).collect();
        prop_assert_eq!(names.len(), domains(members.into_iter(), spread.unwrap_or(3).into()));
        if !ensemble.degraded {
            let order: Vec<_> = ring.order(key).filter(|id| ensemble.members.contains(id)).collect();
            prop_assert_eq!(&order[..], &ensemble.members[..], "in order of preference");
        }
    }

    #[test]
    fn an_order_has_every_agent_once_whatever_order_they_are_listed_in(
        agents in any_agents(), key: u64, kind in weighted_kind(),
    ) {
        let order: Vec<AgentId> = ring(kind, &agents).order(key).collect();
        let mut sorted = order.clone();
        sorted.sort();
        prop_assert_eq!(sorted, agents.iter().map(|agent| agent.id).collect::<Vec<_>>());
        let reversed: Vec<RingAgent> = agents.into_iter().rev().collect();
        prop_assert_eq!(ring(kind, &reversed).order(key).collect::<Vec<_>>(), order);
    }

    #[test]
    fn who_comes_or_goes_changes_no_other_place(
        agents in any_agents(), gone: prop::sample::Index, keys in prop::collection::vec(any::<u64>(), 20),
        kind in prop::sample::select(vec!["rendezvous", "ketama"]), want in 1..5usize,
    ) {
        let mut agents = agents;
        agents.push(agent(5000, "heaviest", 8));
        let gone = agents[gone.index(agents.len() - 1)].id;
        let without: Vec<RingAgent> = agents.iter().filter(|agent| agent.id != gone).cloned().collect();
        let (with, without) = (ring(kind, &agents), ring(kind, &without));
        for key in keys {
            let order: Vec<AgentId> = with.order(key).filter(|id| *id != gone).collect();
            prop_assert_eq!(order, without.order(key).collect::<Vec<_>>());
            let (more, less) = (with.place(key, want, up), without.place(key, want, up));
            prop_assert_eq!(&with.place(key, want, |id| id != gone), &less, "down is as gone");
            let arriving = set(&less).difference(&set(&more)).count();
            let leaving: Vec<AgentId> = set(&more).difference(&set(&less)).copied().collect();
            prop_assert!(leaving.is_empty() || leaving == [gone], "only the agent's own copies move: {:?}", leaving);
            prop_assert!(arriving <= leaving.len());
        }
    }

    #[test]
    fn a_heavier_agent_only_gets(agents in any_agents(), heavier: prop::sample::Index, by in 1..9u64, key: u64) {
        let mut after = agents.clone();
        let grown = heavier.index(agents.len());
        after[grown].weight += by;
        let (before, after) = (ring("rendezvous", &agents), ring("rendezvous", &after));
        let others = |ring: &Ring| ring.order(key).filter(|&id| id != agents[grown].id).collect::<Vec<_>>();
        prop_assert_eq!(others(&before), others(&after));
        let place = |ring: &Ring| ring.order(key).position(|id| id == agents[grown].id);
        prop_assert!(place(&after) <= place(&before));
    }

    #[test]
    fn what_no_ring_is_made_of_never_panics(text in "\\PC{0,40}", level: u8, weight: u64, replicas: u8) {
        for kind in KINDS.iter().map(|kind| kind.name).chain([&*text]) {
            let options = [serde_json::Value::Null, serde_json::json!({ "rules": [], "fallback": text })];
            for options in options {
                let agents = vec![agent(1, &text, weight), agent(2, "a/b", 1)];
                let _ = Ring::new(&RingSpec { kind: kind.into(), replicas, spread: Some(level), agents, options });
            }
        }
    }
}

#[test]
fn shares_follow_weights() {
    let agents = machines(&[1, 2, 3, 4, 6, 8]);
    // Four standard deviations of 20,000 keys at a share of a half; and what the number of points allows.
    for (kind, tolerance) in [("rendezvous", 0.014), ("mod", 0.014), ("ketama", 0.04)] {
        let shares = shares(&ring(kind, &agents), 20_000);
        for agent in &agents {
            let (share, expected) = (shares[&agent.id], agent.weight as f64 / 24.0);
            assert!((share - expected).abs() < tolerance, "{kind}: {} has {share} for {expected}", agent.id);
        }
    }
}

#[test]
fn second_and_third_copies_are_even_too() {
    let agents = machines(&[5; 8]);
    for kind in ["rendezvous", "ketama", "mod"] {
        let nothing = ring(kind, &agents);
        let moved = simulate(&nothing, &nothing, sample(8_000));
        for (id, flow) in moved.agents {
            assert!((2_400..=3_600).contains(&flow.after), "{kind}: {id} has {} of 24000", flow.after);
        }
    }
}

#[test]
fn a_new_agent_moves_its_share_and_no_more() {
    let (old, new) = (machines(&[4; 9]), machines(&[4; 10]));
    for (kind, at_most) in [("rendezvous", 0.105), ("ketama", 0.125)] {
        let moved = simulate(&ring(kind, &old), &ring(kind, &new), sample(10_000));
        assert!(moved.fraction() > 0.08 && moved.fraction() < at_most, "{kind}: {moved}");
        let arriving: u64 = moved.agents.values().map(|flow| flow.arriving).sum();
        let newcomer = moved.agents[&AgentId(10)];
        assert_eq!((newcomer.arriving, newcomer.before), (arriving, 0), "{kind}: all that moves goes to the new agent");
        assert_eq!((moved.copies, moved.copies_moved, moved.degraded), (30_000, arriving, 0));
    }
    let moved = simulate(&ring("mod", &old), &ring("mod", &new), sample(1_000));
    assert!(moved.fraction() > 0.5, "what it costs is seen beforehand: {moved}");
}

#[test]
fn an_agent_without_weight_is_emptied() {
    let agents = machines(&[1, 1, 1, 1]);
    let mut drained = agents.clone();
    drained[1].weight = 0;
    let moved = simulate(&ring("rendezvous", &agents), &ring("rendezvous", &drained), sample(1_000));
    let flow = moved.agents[&AgentId(2)];
    assert_eq!((flow.after, flow.leaving), (0, flow.before));
    assert_eq!(moved.copies_moved, flow.before);
    let text = moved.to_string();
    assert!(text.contains(" of 3000 copies move (") && text.contains(" of 1000 extents"), "{text}");
}

#[test]
fn single_and_empty_do_as_they_are_called() {
    let single = ring("single", &machines(&[7]));
    let ensemble = single.place(5, 1, up);
    assert_eq!((&ensemble.members[..], ensemble.degraded), (&[AgentId(1)][..], false));
    assert!(single.place(5, 2, up).degraded);
    let empty = ring("empty", &[]);
    assert_eq!(empty.place(5, 1, up), Ensemble { members: SmallVec::new(), degraded: true });
}

fn rules(options: serde_json::Value) -> RingSpec {
    RingSpec { options, ..spec("map", &datacentre()) }
}

#[test]
fn rules_come_before_their_fallback() {
    let options = serde_json::json!({ "rules": [
        { "volume": "a1", "agents": ["5", "1", "2"] },
        { "keys": { "from": "0000000000000000", "to": "7fffffffffffffff" }, "agents": ["3"] },
    ] });
    let (ring, plain) = (Ring::new(&rules(options)).unwrap(), ring("rendezvous", &datacentre()));
    let extent = |volume, seq| ExtentId { volume: VolumeId(volume), seq: ExtentSeq(seq) };
    for seq in 0..50 {
        let ruled = ring.place(extent(0xa1, seq), 3, up);
        assert_eq!(&ruled.members[..], &[5, 1, 2].map(AgentId), "the first rule that fits, in its order");
        let down = ring.place(extent(0xa1, seq), 3, |id| id != AgentId(1));
        let taken = [5, 2].map(|id| ring.domain(AgentId(id)));
        let free = |id: &AgentId| *id != AgentId(1) && !taken.contains(&ring.domain(*id));
        let next = plain.order(extent(0xa1, seq)).find(free).unwrap();
        assert_eq!(&down.members[..], &[AgentId(5), AgentId(2), next], "then whom the fallback puts first");
        let key = Key::from(extent(7, seq));
        let first = ring.order(key).next().unwrap();
        assert_eq!(first, if key.hash >> 63 == 0 { AgentId(3) } else { plain.order(key).next().unwrap() });
        assert_eq!(ring.order(key).collect::<BTreeSet<_>>().len(), 18, "everybody, once");
    }
}

#[test]
fn rules_without_fallback_are_all_there_is() {
    let options = serde_json::json!({ "rules": [{ "volume": "a1", "agents": ["5", "1"] }], "fallback": "empty" });
    let ring = Ring::new(&rules(options)).unwrap();
    let extent = |volume| ExtentId { volume: VolumeId(volume), seq: ExtentSeq(1) };
    assert_eq!(ring.order(extent(0xa1)).collect::<Vec<_>>(), [5, 1].map(AgentId));
    assert!(ring.place(extent(0xa1), 3, up).degraded);
    assert_eq!(ring.order(extent(0xa2)).count(), 0);
}

#[test]
fn what_is_not_a_ring_is_refused_with_a_sentence() {
    let refusal = |spec: RingSpec| Ring::new(&spec).unwrap_err().to_string();
    let good = spec("rendezvous", &datacentre());
    let says = |spec: RingSpec, part: &str| {
        let text = refusal(spec);
        assert!(text.contains(part), "{text:?} says nothing of {part:?}");
    };
    says(
        RingSpec { kind: "magic".into(), ..good.clone() },
        "choose one of rendezvous, ketama, mod, single, empty, map",
    );
    says(RingSpec { replicas: 0, ..good.clone() }, "cannot keep 0 copies: ask for 1 to 7");
    says(RingSpec { replicas: 8, ..good.clone() }, "cannot keep 8 copies");
    says(RingSpec { spread: Some(0), ..good.clone() }, "level 0");
    says(
        RingSpec { spread: Some(4), ..good.clone() },
        "\"z0/r0/n0\" with 3 parts, but the ring spreads copies over level 4",
    );
    says(RingSpec { options: serde_json::json!({ "points": 3 }), ..good.clone() }, "leave them out");
    says(spec("ketama", &[]), "needs agents");
    says(spec("mod", &machines(&[0, 0])), "all agents of the ring have weight 0");
    says(spec("single", &machines(&[1, 2])), "not 2: remove the others");
    says(spec("empty", &machines(&[1])), "has no agents, but 1 are listed");
    says(spec("rendezvous", &[agent(1, "a", 1), agent(1, "b", 1)]), "agent 0000000000000001 is in the ring twice");
    says(spec("rendezvous", &[agent(1, "a//b", 1)]), "\"a//b\", which is no path");
    says(spec("rendezvous", &[agent(1, "", 1)]), "\"\", which is no path");
    says(spec("rendezvous", &machines(&[u64::MAX])), "use a larger unit");
    says(spec("rendezvous", &machines(&[1; 5000])), "5000 agents");
    let json = |text: &str| rules(serde_json::from_str(text).unwrap());
    says(json("null"), "the options do not fit");
    says(json(r#"{"rules":[{"agents":["99"]}]}"#), "rule 1: agent 0000000000000099 is not in the ring");
    says(json(r#"{"rules":[{"agents":["1"]},{"agents":[]}]}"#), "rule 2: it names no agents");
    says(json(r#"{"rules":[{"agents":["1","1"]}]}"#), "twice");
    says(json(r#"{"rules":[{"agents":["1"],"zone":"a"}]}"#), "unknown field `zone`");
    says(json(r#"{"rules":[{"agents":["1"],"keys":{"from":"5","to":"6"}}]}"#), "16 hexadecimal digits");
    let backwards = r#"{"rules":[{"agents":["1"],"keys":{"from":"000000000000000f","to":"000000000000000e"}}]}"#;
    says(json(backwards), "end before they begin");
    says(json(r#"{"rules":[],"fallback":"map"}"#), "fallback: the options do not fit");
    says(json(r#"{"rules":[],"fallback":"single"}"#), "fallback: a ring of kind \"single\"");
}

#[test]
fn a_change_keeps_what_was_until_data_has_followed() {
    let first = RingDoc::first(spec("rendezvous", &machines(&[1, 1, 1]))).unwrap();
    let mut doc = first.changed(spec("rendezvous", &machines(&[1, 1, 1, 1, 1]))).unwrap();
    let rings = Rings::new(&doc).unwrap();
    assert!(rings.is_changing() && rings.version == RingVersion(2));
    for key in 0..100u64 {
        let holders = rings.holders(key, 2);
        let now = rings.now.place(key, 2, up).members;
        assert_eq!(&holders[..2], &now[..], "where it should be comes first");
        assert!(rings.before[0].place(key, 2, up).members.iter().all(|id| holders.contains(id)));
        assert_eq!(holders.iter().collect::<BTreeSet<_>>().len(), holders.len());
    }
    for _ in 1..crate::limits::RINGS_BEFORE_MAX {
        doc = doc.changed(first.now.clone()).unwrap();
    }
    let error = doc.changed(first.now.clone()).unwrap_err().to_string();
    assert!(error.starts_with("4 changes of the ring are still under way, the latest made version 5"), "{error}");
    let settled = doc.settled();
    assert!(!Rings::new(&settled).unwrap().is_changing());
    assert_eq!((settled.version, &settled.now), (doc.version, &doc.now));
    assert!(RingDoc::first(spec("magic", &[])).is_err() && doc.changed(spec("magic", &[])).is_err());
}

#[test]
fn the_document_is_json_that_people_can_write() {
    let agents = r#"[{"id":"000000000000001f","domain":"zone-a/node-7","weight":400}]"#;
    let now = format!(r#"{{"kind":"rendezvous","replicas":2,"spread":1,"agents":{agents}}}"#);
    let text = format!(r#"{{"version":3,"now":{now}}}"#);
    let doc: RingDoc = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&doc).unwrap(), text);
    let ring = Ring::new(&doc.now).unwrap();
    assert_eq!(
        ring.to_string(),
        "rendezvous: 2 copies spread over level 1 of their failure domains, 1 agent of weight 400"
    );
    assert_eq!(ring.domain(AgentId(0x1f)), Some("zone-a"));
    let newer = text.replace("\"spread\":1", "\"gravity\":1");
    assert!(serde_json::from_str::<RingDoc>(&newer).is_err(), "what may decide where data lies is not ignored");
}

/// Placements of all kinds as text: `testdata/ring-placements.txt`, which is only ever added to.
#[test]
fn placements_are_frozen() {
    let agents = datacentre();
    let options = serde_json::json!({ "rules": [
        { "volume": "00000000000000a1", "agents": ["0000000000000005", "0000000000000001"] },
        { "keys": { "from": "0000000000000000", "to": "3fffffffffffffff" }, "agents": ["0000000000000003"] },
    ], "fallback": "ketama" });
    let mut text = String::new();
    for (kind, spread) in [
        ("rendezvous", None),
        ("rendezvous", Some(1)),
        ("ketama", None),
        ("ketama", Some(2)),
        ("mod", None),
        ("map", Some(1)),
    ] {
        let options = if kind == "map" { options.clone() } else { serde_json::Value::Null };
        let ring = Ring::new(&RingSpec { spread, options, ..spec(kind, &agents) }).unwrap();
        text += &format!("{ring}\n");
        for (volume, seq) in (0xa0..0xa3).flat_map(|volume| (0..4).map(move |seq| (volume, seq << 24 | 5))) {
            let extent = ExtentId { volume: VolumeId(volume), seq: ExtentSeq(seq) };
            let show = |ids: &[AgentId]| ids.iter().map(|id| id.0.to_string()).collect::<Vec<_>>().join(" ");
            let (key, members) = (Key::from(extent), ring.place(extent, 3, up).members);
            let order: Vec<AgentId> = ring.order(extent).take(6).collect();
            // The text is as old as numbers with a count of 24 bits.
            let (volume, epoch, count) = (extent.volume, seq >> 24, seq & 0xff_ffff);
            let members = show(&members);
            text += &format!("  {volume}/{epoch}.{count} {:016x}: {members}; order {}\n", key.hash, show(&order));
        }
    }
    assert_eq!(text, include_str!("../../testdata/ring-placements.txt"), "a change of placement is a change of format");
}
