//! `ipipctl drops`: the number of dropped packets by reason.

use crate::{
    names::Names,
    output::{self, Format},
    rows::{DropRow, MapRow},
};
use anyhow::Result;
use ipip_abi::{DropReason, Tally};
use ipip_datapath::Maps;

/// The reasons that occurred, or every reason if `all` is set.
pub fn drops(maps: &Maps, all: bool, format: Format) -> Result<String> {
    let rows = rows(&DropRow::read(maps)?, all);
    if rows.is_empty() && format == Format::Table {
        return Ok("no packet was dropped\n".into());
    }
    output::render(&rows, format)
}

/// The sum over all reasons.
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
        .map(|entry| DropRow::new(entry, &Names::default()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reasons_that_occurred_are_shown_unless_all_are_requested() {
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
