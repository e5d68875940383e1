//! The list of metrics. A new metric is one entry here and, if its traffic is new, a [`Load`].

use super::{
    metrics::{Case, Load, Metric, Quantity, Services, Setups},
    setup::{SetupKind, Variant},
};

const fn two_nodes(variant: Variant, plain: SetupKind, kernel_ipip: Option<SetupKind>) -> Setups {
    [
        Some(SetupKind::Ours(variant)),
        Some(plain),
        Some(SetupKind::Vxlan),
        kernel_ipip,
        None,
    ]
}

const NETWORK: Setups = two_nodes(Variant::Ipip, SetupKind::Plain, Some(SetupKind::KernelIpip));
/// Plain routing leaves the 20 bytes unused that our outer header takes.
const SAME_MTU: Setups = two_nodes(Variant::Ipip, SetupKind::PlainOurMtu, None);
const UDP: Setups = two_nodes(Variant::Udp, SetupKind::Plain, None);
const BIG_TCP: Setups = two_nodes(Variant::BigTcp, SetupKind::Plain, None);
const BIG_TCP_UDP: Setups = two_nodes(Variant::BigTcpUdp, SetupKind::Plain, None);
const ONE_NODE: Setups = [
    Some(SetupKind::Ours(Variant::OneNode)),
    Some(SetupKind::Bridge),
    None,
    None,
    None,
];

const GBIT: Quantity = Quantity::Rate(1e9 / 8.0);
const THOUSAND: Quantity = Quantity::Rate(1e3);
const PER_GB: Quantity = Quantity::CpuTime(1e9);
const PER_MILLION: Quantity = Quantity::CpuTime(1e6);

const fn case(name: &'static str, load: Load, flows: u16) -> Case {
    Case {
        name,
        load,
        flows,
        reverse: false,
        services: Services::Absent,
    }
}

const fn reversed(case: Case, name: &'static str) -> Case {
    Case {
        name,
        reverse: true,
        ..case
    }
}

const STREAM_1: Case = case("tcp_1_flow", Load::Stream, 1);
const STREAM_4: Case = case("tcp_4_flows", Load::Stream, 4);
const STREAM_16: Case = case("tcp_16_flows", Load::Stream, 16);
const STREAM_1_BACK: Case = reversed(STREAM_1, "tcp_1_flow_back");
const STREAM_4_BACK: Case = reversed(STREAM_4, "tcp_4_flows_back");
const STREAM_16_BACK: Case = reversed(STREAM_16, "tcp_16_flows_back");
const ROUND_TRIPS: Case = case("tcp_round_trips", Load::RequestResponse, 1);
const POLLED_ROUND_TRIPS: Case = case("tcp_polled_round_trips", Load::PolledRequestResponse, 1);
const CONNECTIONS: Case = case("tcp_connections", Load::Connections, 4);
const DATAGRAMS: Case = case("udp_64_bytes", Load::Datagrams, 1);
const PACED_STREAM: Case = case("paced_tcp", Load::PacedStream, 1);
const PACED_DATAGRAMS: Case = case("paced_udp_64_bytes", Load::PacedDatagrams, 1);
const BESIDE_SERVICES: Case = Case {
    name: "tcp_connections_2000_services",
    services: Services::Beside,
    ..CONNECTIONS
};
const THROUGH_SERVICE: Case = Case {
    name: "tcp_connections_to_a_cluster_ip",
    services: Services::Through,
    ..CONNECTIONS
};

/// The ratios to plain routing and to VXLAN that a release should reach.
type TargetRatios = [Option<f64>; 2];

const ONE_FLOW: TargetRatios = [Some(1.0), Some(1.05)];
const FLOWS: TargetRatios = [Some(1.0), Some(1.3)];
const IN_UDP: TargetRatios = [Some(0.9), Some(1.0)];
const LATENCY: TargetRatios = [Some(1.05), Some(1.3)];
const PACKETS: TargetRatios = [Some(1.1), Some(1.6)];
const SERVICES: TargetRatios = [Some(3.0), Some(3.0)];
const CPU_TIME: TargetRatios = [Some(1.0), Some(1.25)];
const BRIDGE: TargetRatios = [Some(1.0), None];
const NONE: TargetRatios = [None, None];

const fn metric(
    name: &'static str,
    unit: &'static str,
    case: Case,
    quantity: Quantity,
    setups: Setups,
    targets: TargetRatios,
) -> Metric {
    Metric {
        name,
        unit,
        case,
        quantity,
        setups,
        targets,
    }
}

const fn stream(name: &'static str, case: Case, setups: Setups) -> Metric {
    let targets = if case.flows == 1 { ONE_FLOW } else { FLOWS };
    metric(name, "Gbit/s", case, GBIT, setups, targets)
}

/// One flow with `encapsulation: udp`.
const fn in_udp(name: &'static str, setups: Setups) -> Metric {
    metric(name, "Gbit/s", STREAM_1, GBIT, setups, IN_UDP)
}

/// Thousands per second over two nodes.
const fn thousands(name: &'static str, case: Case, targets: TargetRatios) -> Metric {
    metric(name, "1000/s", case, THOUSAND, NETWORK, targets)
}

/// A round-trip time over two nodes.
const fn time(name: &'static str, case: Case, quantity: Quantity) -> Metric {
    metric(name, "us", case, quantity, NETWORK, LATENCY)
}

const fn cpu_per_gb(name: &'static str, setups: Setups) -> Metric {
    metric(name, "CPU s/GB", PACED_STREAM, PER_GB, setups, CPU_TIME)
}

const fn cpu_per_million(name: &'static str, setups: Setups, targets: TargetRatios) -> Metric {
    let (unit, case) = ("CPU s/10^6", PACED_DATAGRAMS);
    metric(name, unit, case, PER_MILLION, setups, targets)
}

const fn one_node(name: &'static str, unit: &'static str, case: Case, value: Quantity) -> Metric {
    metric(name, unit, case, value, ONE_NODE, BRIDGE)
}

const fn one_node_rate(name: &'static str, case: Case) -> Metric {
    one_node(name, "1000/s", case, THOUSAND)
}

/// All metrics in the order of the table.
pub const METRICS: [Metric; 39] = [
    stream("tcp_1_flow", STREAM_1, NETWORK),
    stream("tcp_4_flows", STREAM_4, NETWORK),
    stream("tcp_16_flows", STREAM_16, NETWORK),
    stream("tcp_1_flow_back", STREAM_1_BACK, NETWORK),
    stream("tcp_4_flows_back", STREAM_4_BACK, NETWORK),
    stream("tcp_16_flows_back", STREAM_16_BACK, NETWORK),
    thousands("tcp_round_trips", ROUND_TRIPS, LATENCY),
    time("tcp_round_trip_median", ROUND_TRIPS, Quantity::Median),
    time("tcp_round_trip_p99", ROUND_TRIPS, Quantity::P99),
    thousands("tcp_polled_round_trips", POLLED_ROUND_TRIPS, LATENCY),
    time(
        "tcp_polled_round_trip_p99",
        POLLED_ROUND_TRIPS,
        Quantity::P99,
    ),
    thousands("tcp_connections", CONNECTIONS, LATENCY),
    thousands("udp_64_bytes", DATAGRAMS, PACKETS),
    thousands("tcp_connections_2000_services", BESIDE_SERVICES, SERVICES),
    thousands("tcp_connections_to_a_cluster_ip", THROUGH_SERVICE, NONE),
    cpu_per_gb("cpu_per_gb", NETWORK),
    cpu_per_million("cpu_per_million_packets", NETWORK, CPU_TIME),
    in_udp("tcp_1_flow_in_udp", UDP),
    stream("tcp_1_flow_same_mtu", STREAM_1, SAME_MTU),
    stream("tcp_4_flows_same_mtu", STREAM_4, SAME_MTU),
    stream("tcp_16_flows_same_mtu", STREAM_16, SAME_MTU),
    stream("tcp_1_flow_back_same_mtu", STREAM_1_BACK, SAME_MTU),
    stream("tcp_4_flows_back_same_mtu", STREAM_4_BACK, SAME_MTU),
    stream("tcp_16_flows_back_same_mtu", STREAM_16_BACK, SAME_MTU),
    cpu_per_gb("cpu_per_gb_same_mtu", SAME_MTU),
    stream("tcp_1_flow_big_tcp", STREAM_1, BIG_TCP),
    stream("tcp_4_flows_big_tcp", STREAM_4, BIG_TCP),
    stream("tcp_16_flows_big_tcp", STREAM_16, BIG_TCP),
    in_udp("tcp_1_flow_in_udp_big_tcp", BIG_TCP_UDP),
    cpu_per_gb("cpu_per_gb_big_tcp", BIG_TCP),
    one_node("one_node_tcp_1_flow", "Gbit/s", STREAM_1, GBIT),
    one_node("one_node_tcp_4_flows", "Gbit/s", STREAM_4, GBIT),
    one_node_rate("one_node_tcp_round_trips", ROUND_TRIPS),
    one_node(
        "one_node_tcp_round_trip_p99",
        "us",
        ROUND_TRIPS,
        Quantity::P99,
    ),
    one_node_rate("one_node_tcp_polled_round_trips", POLLED_ROUND_TRIPS),
    one_node_rate("one_node_tcp_connections", CONNECTIONS),
    one_node_rate("one_node_udp_64_bytes", DATAGRAMS),
    one_node("one_node_cpu_per_gb", "CPU s/GB", PACED_STREAM, PER_GB),
    cpu_per_million("one_node_cpu_per_million_packets", ONE_NODE, BRIDGE),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_metrics_share_a_name() {
        let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
    }
}
