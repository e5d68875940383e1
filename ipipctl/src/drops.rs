//! `ipipctl drops`: why packets were dropped, and how many.

use crate::{entries, output, output::Format, rows::DropRow};
use anyhow::Result;
use ipip_abi::{DropReason, Tally};
use ipip_datapath::Maps;

/// The reasons that occurred, or with `all` every reason.
pub fn drops(maps: &Maps, all: bool, format: Format) -> Result<String> {
    let rows = rows(&entries::drops(maps)?, all);
    match (rows.is_empty(), format) {
        (true, Format::Table) => Ok("no packet was dropped\n".into()),
        _ => output::render(&rows, format),
    }
}

/// All drops together.
pub fn total(drops: &[(DropReason, Tally)]) -> Tally {
    drops.iter().fold(Tally::default(), |sum, (_, one)| Tally {
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
    })
}

fn rows(drops: &[(DropReason, Tally)], all: bool) -> Vec<DropRow> {
    drops
        .iter()
        .filter(|(_, tally)| all || tally.packets > 0)
        .map(DropRow::new)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reasons_that_occurred_are_shown_unless_all_are_asked_for() {
        let tally = |packets| Tally {
            packets,
            bytes: packets * 100,
        };
        let drops = [
            (DropReason::UnknownPeer, tally(0)),
            (DropReason::InnerMartian, tally(3)),
        ];
        let shown = rows(&drops, false);
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].reason, shown[0].bytes), ("InnerMartian", 300));
        assert_eq!(rows(&drops, true).len(), 2);
        assert_eq!(total(&drops), tally(3));
    }
}
