//! Compares the length of each program with a table in the repository. Times vary from run to run, but lengths do
//! not, so a regression is visible in review.

use crate::fixture::Node;
use aya::programs::ProgramInfo;
use ipip_abi::Program;
use std::{collections::BTreeMap, fmt::Write, fs};

/// The table, as checked in.
const TABLE: &str = include_str!("instructions.txt");
/// The path of the table, for renewing it.
const PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/programs/instructions.txt"
);
/// If this variable is set, the test writes its numbers into the table.
const RENEW: &str = "IPIP_RENEW_INSTRUCTIONS";
/// Allowed difference in percent, because another patch level of kernel or compiler changes a few instructions. It
/// applies in both directions, so that an improvement is recorded too.
const TOLERANCE: u64 = 5;

/// Length in bytes of the translated program and of its machine code, and the number of instructions that the
/// verifier processed on all paths.
type Cost = [u64; 3];
const NAMES: [&str; 3] = ["translated bytes", "machine code bytes", "verified"];

/// Program, kernel (major.minor) and architecture.
type Key = (String, String, String);

fn parse(table: &str) -> BTreeMap<Key, Cost> {
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    rows.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [program, kernel, arch, numbers @ ..] = words.as_slice() else {
            panic!("{PATH}: {line:?} is not a row");
        };
        let numbers: Vec<u64> = numbers.iter().map(|it| it.parse().unwrap()).collect();
        let key = [program, kernel, arch]
            .map(|word| (*word).to_string())
            .into();
        (key, numbers.try_into().expect("three numbers"))
    })
    .collect()
}

fn write(table: &BTreeMap<Key, Cost>) -> String {
    let mut text: String = TABLE
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    for ((program, kernel, arch), [translated, machine, verified]) in table {
        writeln!(
            text,
            "{program:<12} {kernel:<7} {arch:<8} {translated:>10} {machine:>10} {verified:>10}"
        )
        .unwrap();
    }
    text
}

fn cost(node: &Node, program: Program) -> Cost {
    let info = ProgramInfo::from_pin(node.pins().program(program)).expect("it is pinned");
    [
        u64::from(info.size_translated().expect("a size")),
        u64::from(info.size_jitted()),
        // Linux 5.16 and newer report this number.
        u64::from(info.verified_instruction_count().unwrap_or(0)),
    ]
}

fn is_near(found: u64, recorded: u64) -> bool {
    found.abs_diff(recorded) * 100 <= recorded * TOLERANCE
}

#[test]
fn the_programs_cost_the_recorded_number_of_instructions() {
    let node = Node::new();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel");
    let kernel = release.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    let mut table = parse(TABLE);
    let mut differ = Vec::new();
    for program in Program::ALL {
        let found = cost(&node, program);
        println!("{program:<12} {kernel} {found:?}");
        let key = (
            program.name().into(),
            kernel.clone(),
            std::env::consts::ARCH.into(),
        );
        // The machine code and the number of verified instructions depend on the kernel. The translated program
        // differs only by which lookups the kernel inlines, so a kernel without a row must equal one with a row.
        let (recorded, compared): (Vec<Cost>, _) = match table.get(&key) {
            Some(row) => (vec![*row], NAMES.len()),
            None => {
                let of_program = table.iter().filter(|(row, _)| row.0 == program.name());
                (of_program.map(|(_, row)| *row).collect(), 1)
            }
        };
        assert!(!recorded.is_empty(), "each program has a row");
        for (index, name) in NAMES.iter().enumerate().take(compared) {
            let recorded: Vec<u64> = recorded.iter().map(|row| row[index]).collect();
            if !recorded.iter().any(|row| is_near(found[index], *row)) {
                differ.push(format!(
                    "{program}: {name} {}, recorded {recorded:?}",
                    found[index]
                ));
            }
        }
        table.insert(key, found);
    }
    if std::env::var_os(RENEW).is_some() {
        fs::write(PATH, write(&table)).expect("the table can be written");
        return;
    }
    assert!(
        differ.is_empty(),
        "more than {TOLERANCE}% off the table:\n  {}\nIf that is intended (or the compiler changed), \
         renew it: {RENEW}=1 cargo xtask test datapath -- instructions",
        differ.join("\n  ")
    );
}
