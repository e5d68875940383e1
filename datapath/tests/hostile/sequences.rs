//! Runs sequences of packets through the programs, and compares each verdict and the maps of flows with the model.

use crate::{
    campaign::{Campaign, Code, judge_case},
    flows::{Flow, Flows, Place, changes_flows},
    generate::Case,
};
use anyhow::{Context, Result, ensure};
use aya::maps::MapError;
use ipip_abi::{Flow as Kept, FlowKey, flow_pair_index, handover::FAMILY_IPV4};
use std::collections::BTreeSet;

impl Campaign {
    /// Runs a sequence on a node without flows. Returns the difference at the first packet whose verdict is none of the
    /// model's.
    pub fn run_sequence(&mut self, cases: &[Case]) -> Result<Option<String>> {
        let (mut flows, mut seen) = (Flows::default(), BTreeSet::new());
        let mut difference = None;
        let mut is_known = true;
        for (number, case) in cases.iter().enumerate() {
            match self.follow(case, &mut flows, &mut seen) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    difference = Some(format!("packet {} of the sequence: {error:#}", number + 1));
                }
            }
            is_known = false;
            break;
        }
        for flow in seen {
            self.forget_key(key(flow))?;
        }
        if !is_known {
            self.forget_all()?;
        }
        Ok(difference)
    }

    /// Proves that no packet left an entry of a flow that is not its own.
    pub fn keeps_nothing(&self) -> Result<()> {
        let left: Vec<FlowKey> = self.keys()?;
        ensure!(
            left.is_empty(),
            "flows that the model does not have: {left:?}"
        );
        Ok(())
    }

    /// Runs the next packet. Returns whether the model still knows the flows.
    fn follow(
        &mut self,
        case: &Case,
        flows: &mut Flows,
        seen: &mut BTreeSet<Flow>,
    ) -> Result<bool> {
        let judged = flows.judge(case, &judge_case(case));
        let every: Vec<Code> = Code::all().collect();
        let parts = judged.iter().filter_map(|it| Flows::part(case, it));
        seen.extend(parts.map(|part| part.flow));
        let Some(treatment) = self.check(case, &judged, &every)? else {
            return Ok(false);
        };
        if let Some(part) = Flows::part(case, &treatment) {
            if !part.is_clear && changes_flows(&treatment) {
                return Ok(false);
            }
            flows.apply(part, &treatment);
        }
        for flow in seen.iter() {
            let kept = self.kept(*flow)?;
            flows
                .compare(*flow, &kept)
                .context("what the maps keep of a flow")?;
        }
        Ok(true)
    }

    /// What the maps keep of a flow: where, and whether its first packet came from the low end.
    fn kept(&self, flow: Flow) -> Result<Vec<(Place, bool)>> {
        let key = key(flow);
        let in_flows = absent_is_none(self.maps.flows.get(&key, 0))?;
        let in_connections = absent_is_none(self.maps.connections.get(&key, 0))?;
        let place = |kept: &Kept| match kept.flags & Kept::CLOSED {
            0 => Place::Flows,
            _ => Place::Closed,
        };
        let direction = |kept: Kept| kept.flags & Kept::FROM_LOW != 0;
        let in_flows = in_flows.map(|it| (place(&it), direction(it)));
        let in_connections = in_connections.map(|it| (Place::Connections, direction(it)));
        Ok(in_flows.into_iter().chain(in_connections).collect())
    }

    fn keys(&self) -> Result<Vec<FlowKey>> {
        let maps = [&self.maps.flows, &self.maps.connections];
        let keys = maps.into_iter().flat_map(|map| map.keys());
        keys.collect::<Result<_, _>>().context("reading the keys")
    }

    fn forget_all(&mut self) -> Result<()> {
        self.keys()?
            .into_iter()
            .try_for_each(|key| self.forget_key(key))
    }

    /// Removes a flow and the mark of its addresses, without which nothing looks for the flow.
    fn forget_key(&mut self, key: FlowKey) -> Result<()> {
        for map in [&mut self.maps.flows, &mut self.maps.connections] {
            if absent_is_none(map.get(&key, 0))?.is_some() {
                map.remove(&key)?;
            }
        }
        let pair = flow_pair_index(key.low, key.high);
        Ok(self.flow_pairs.set(pair, 0, 0)?)
    }
}

fn key(flow: Flow) -> FlowKey {
    FlowKey {
        low: flow.low.0,
        high: flow.high.0,
        low_port: flow.low.1.to_be_bytes(),
        high_port: flow.high.1.to_be_bytes(),
        protocol: flow.protocol,
        family: FAMILY_IPV4,
        _pad: [0; 2],
    }
}

fn absent_is_none<T>(result: Result<T, MapError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
