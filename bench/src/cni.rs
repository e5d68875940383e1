//! ADD and DEL of the CNI plugin beside those of the reference plugins, measured in turns in one run.

mod contender;
mod report;

use crate::output;
use anyhow::{Result, ensure};
use clap::Args;
use contender::Contender;
use ipip_datapath::AttachMode;
use ipip_testkit::{cni_node::CniNode, host::Host, trash::empty_all_on_interrupt};
use std::path::PathBuf;

/// The plugins that ours is compared with.
const REFERENCES: [&str; 2] = ["bridge", "ptp"];
/// Rounds before the first that counts; they warm the caches.
const WARM_UP: usize = 2;

/// Arguments of the benchmark `cni`.
#[derive(Debug, Args)]
pub struct CniOptions {
    /// ADD + DEL one after another, of each plugin
    #[arg(long, value_name = "N", default_value_t = 100)]
    sequential: usize,
    /// ADD + DEL at the same time, in the second part
    #[arg(long, value_name = "N", default_value_t = 8)]
    parallel: usize,
    /// Also write all samples to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl CniOptions {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        empty_all_on_interrupt()?;
        ensure!(
            self.sequential > 0,
            "--sequential is 0; remedy: use 1 or more"
        );
        ensure!(self.parallel > 0, "--parallel is 0; remedy: use 1 or more");
        let node = CniNode::ready()?;
        let pods: Vec<Host> = (0..self.parallel)
            .map(|number| node.pod(&format!("p{number}")))
            .collect::<Result<_>>()?;
        let names = ["ipip"].into_iter().chain(REFERENCES);
        let mut contenders: Vec<Contender> = names.map(Contender::new).collect();
        self.measure_sequential(&mut contenders, &node, &pods[0])?;
        self.measure_parallel(&mut contenders, &node, &pods)?;
        node.expect_no_trace()?;
        println!("{}", report::table(&contenders, self.parallel));
        if let Some(path) = &self.json {
            let report = report::json(&contenders, self.sequential, self.parallel)?;
            output::write_json(path, &report)?;
            println!("all samples: {}", path.display());
        }
        Ok(())
    }

    fn measure_sequential(
        &self,
        contenders: &mut [Contender],
        node: &CniNode,
        pod: &Host,
    ) -> Result<()> {
        let has_tcx = AttachMode::Auto.is_tcx()?;
        let count = contenders.len();
        for round in 0..self.sequential + WARM_UP {
            let counts = round >= WARM_UP;
            for turn in 0..count {
                // The first plugin changes with the round, so that none always meets a warmer machine.
                let contender = &mut contenders[(turn + round) % count];
                let (add, del) = contender.add_and_del(node, pod, &format!("s{round}"))?;
                let start = contender.version(node)?;
                if counts {
                    contender.samples.add.push(add);
                    contender.samples.del.push(del);
                    contender.samples.start.push(start);
                }
            }
            if has_tcx && counts {
                contenders[0].promote(node, pod, &format!("t{round}"))?;
            }
        }
        Ok(())
    }

    fn measure_parallel(
        &self,
        contenders: &mut [Contender],
        node: &CniNode,
        pods: &[Host],
    ) -> Result<()> {
        let count = contenders.len();
        for round in 0..self.sequential.div_ceil(self.parallel) {
            for turn in 0..count {
                let contender = &mut contenders[(turn + round) % count];
                let samples = contender.parallel(node, pods, round)?;
                contender.samples.parallel.extend(samples);
            }
        }
        Ok(())
    }
}
