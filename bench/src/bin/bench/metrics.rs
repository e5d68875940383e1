//! What is measured. A new row is one entry here and, if its load is new, a [`Load`].

use crate::{
    beds::{Kind, Ours},
    load::Measured,
    traffic::Wait,
};
use clap::ValueEnum;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Load {
    /// TCP, as much as goes; counts bytes.
    Stream,
    /// TCP at [`PACED_BYTES`](crate::load::PACED_BYTES); counts bytes.
    PacedStream,
    /// One byte there, one byte back, over one TCP connection; counts and times round trips.
    RequestResponse,
    /// The same between ends that poll.
    PolledRequestResponse,
    /// Connect, one byte there, one byte back, close; counts connections.
    Connections,
    /// Datagrams of 64 bytes, as many as go, to one who polls; counts those that arrive.
    Datagrams,
    /// Datagrams of 64 bytes, [`PACED_PACKETS`](crate::load::PACED_PACKETS) a second; counts those
    /// that arrive.
    PacedDatagrams,
}

/// Traffic between two pods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// Its name; the metric's too, where it has only one.
    pub name: &'static str,
    /// The traffic.
    pub load: Load,
    /// How many flows at once.
    pub flows: u16,
    /// From the second pod to the first.
    pub back: bool,
    /// Which way the client dials the server, and what stands in the nodes' netfilter.
    pub services: Services,
}

/// Whether kube-proxy's rules are loaded on each node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Services {
    /// No rule.
    Absent,
    /// The rules are there; the client dials the pod.
    Beside,
    /// The rules are there; the client dials a ClusterIP.
    Through,
}

/// Which number of a measurement a row shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// What was counted, a second and by this divisor.
    Rate(f64),
    /// Median of the round trips' times, in microseconds.
    Median,
    /// 99th percentile of them.
    P99,
    /// CPU seconds of the whole machine for so many of what was counted.
    Busy(f64),
}

/// Which beds a row compares: ours, then plain, VXLAN, kernel ipip and, if [`Row::against_other`] was
/// asked, ours in the other build.
pub type Columns = [Option<Kind>; COLUMNS.len()];

/// Names of the columns.
pub const COLUMNS: [&str; 5] = ["ours", "plain", "vxlan", "kernel_ipip", "other"];

/// One line of the result.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name, also in JSON.
    pub metric: &'static str,
    /// What a person reads.
    pub unit: &'static str,
    /// The traffic.
    pub case: Case,
    /// The number.
    pub value: Value,
    /// The beds.
    pub columns: Columns,
    /// What the ratios to plain and VXLAN should reach.
    pub bars: [Option<f64>; 2],
}

impl Row {
    /// Also compares ours with itself in the other build.
    pub fn against_other(mut self) -> Self {
        if let Some(Kind::Ours(ours)) = self.columns[0] {
            self.columns[4] = Some(Kind::Other(ours));
        }
        self
    }
}

impl Load {
    /// Whether its ends sleep while they wait. Who polls costs the sender nothing: to wake another CPU is
    /// a third of a small packet's way, and no part of what is compared.
    pub fn wait(self) -> Wait {
        match self {
            Self::PolledRequestResponse | Self::Datagrams => Wait::Polling,
            _ => Wait::Asleep,
        }
    }

    /// Whether the client measures, and not the server.
    pub fn is_timed_by_client(self) -> bool {
        matches!(self, Self::RequestResponse | Self::PolledRequestResponse)
    }
}

impl Value {
    /// The number of one measurement.
    pub fn of(self, measured: &Measured) -> f64 {
        match self {
            Self::Rate(per_unit) => measured.per_second / per_unit,
            Self::Median => measured.median_us,
            Self::P99 => measured.p99_us,
            Self::Busy(count) => measured.busy_seconds_each * count,
        }
    }

    /// Whether less is better.
    pub fn is_cost(self) -> bool {
        !matches!(self, Self::Rate(_))
    }
}

/// Pods of two nodes.
const fn two_nodes(ours: Ours, plain: Kind, kernel_ipip: Option<Kind>) -> Columns {
    [
        Some(Kind::Ours(ours)),
        Some(plain),
        Some(Kind::Vxlan),
        kernel_ipip,
        None,
    ]
}

const NETWORK: Columns = two_nodes(Ours::Ipip, Kind::Plain, Some(Kind::KernelIpip));
/// Plain routing could use the 20 bytes that our header takes; here it does not.
const SAME_MTU: Columns = two_nodes(Ours::Ipip, Kind::PlainOurMtu, None);
const UDP: Columns = two_nodes(Ours::Udp, Kind::Plain, None);
const BIG_TCP: Columns = two_nodes(Ours::BigTcp, Kind::Plain, None);
const BIG_TCP_UDP: Columns = two_nodes(Ours::BigTcpUdp, Kind::Plain, None);
const ONE_NODE: Columns = [
    Some(Kind::Ours(Ours::OneNode)),
    Some(Kind::Bridge),
    None,
    None,
    None,
];

const GBIT: Value = Value::Rate(1e9 / 8.0);
const THOUSAND: Value = Value::Rate(1e3);
const PER_GB: Value = Value::Busy(1e9);
const PER_MILLION: Value = Value::Busy(1e6);

const fn case(name: &'static str, load: Load, flows: u16) -> Case {
    Case {
        name,
        load,
        flows,
        back: false,
        services: Services::Absent,
    }
}

const fn back(case: Case, name: &'static str) -> Case {
    Case {
        name,
        back: true,
        ..case
    }
}

const STREAM_1: Case = case("tcp_1_flow", Load::Stream, 1);
const STREAM_4: Case = case("tcp_4_flows", Load::Stream, 4);
const STREAM_16: Case = case("tcp_16_flows", Load::Stream, 16);
const STREAM_1_BACK: Case = back(STREAM_1, "tcp_1_flow_back");
const STREAM_4_BACK: Case = back(STREAM_4, "tcp_4_flows_back");
const STREAM_16_BACK: Case = back(STREAM_16, "tcp_16_flows_back");
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

const fn row(
    metric: &'static str,
    unit: &'static str,
    case: Case,
    value: Value,
    columns: Columns,
    bars: [Option<f64>; 2],
) -> Row {
    Row {
        metric,
        unit,
        case,
        value,
        columns,
        bars,
    }
}

const fn stream(case: Case, columns: Columns, metric: &'static str, vxlan: f64) -> Row {
    row(
        metric,
        "Gbit/s",
        case,
        GBIT,
        columns,
        [Some(1.0), Some(vxlan)],
    )
}

const fn one_node(metric: &'static str, unit: &'static str, case: Case, value: Value) -> Row {
    row(metric, unit, case, value, ONE_NODE, [Some(1.0), None])
}

/// All of them, in the order of the table.
pub const ROWS: [Row; 39] = [
    stream(STREAM_1, NETWORK, "tcp_1_flow", 1.05),
    stream(STREAM_4, NETWORK, "tcp_4_flows", 1.3),
    stream(STREAM_16, NETWORK, "tcp_16_flows", 1.3),
    stream(STREAM_1_BACK, NETWORK, "tcp_1_flow_back", 1.05),
    stream(STREAM_4_BACK, NETWORK, "tcp_4_flows_back", 1.3),
    stream(STREAM_16_BACK, NETWORK, "tcp_16_flows_back", 1.3),
    row(
        "tcp_round_trips",
        "1000/s",
        ROUND_TRIPS,
        THOUSAND,
        NETWORK,
        [Some(1.05), Some(1.3)],
    ),
    row(
        "tcp_round_trip_median",
        "us",
        ROUND_TRIPS,
        Value::Median,
        NETWORK,
        [Some(1.05), Some(1.3)],
    ),
    row(
        "tcp_round_trip_p99",
        "us",
        ROUND_TRIPS,
        Value::P99,
        NETWORK,
        [Some(1.05), Some(1.3)],
    ),
    row(
        "tcp_polled_round_trips",
        "1000/s",
        POLLED_ROUND_TRIPS,
        THOUSAND,
        NETWORK,
        [Some(1.05), Some(1.3)],
    ),
    row(
        "tcp_polled_round_trip_p99",
        "us",
        POLLED_ROUND_TRIPS,
        Value::P99,
        NETWORK,
        [Some(1.05), Some(1.3)],
    ),
    row(
        "tcp_connections",
        "1000/s",
        CONNECTIONS,
        THOUSAND,
        NETWORK,
        [Some(1.05), Some(1.3)],
    ),
    row(
        "udp_64_bytes",
        "1000/s",
        DATAGRAMS,
        THOUSAND,
        NETWORK,
        [Some(1.1), Some(1.6)],
    ),
    row(
        "tcp_connections_2000_services",
        "1000/s",
        BESIDE_SERVICES,
        THOUSAND,
        NETWORK,
        [Some(3.0), Some(3.0)],
    ),
    row(
        "tcp_connections_to_a_cluster_ip",
        "1000/s",
        THROUGH_SERVICE,
        THOUSAND,
        NETWORK,
        [None, None],
    ),
    row(
        "cpu_per_gb",
        "CPU s/GB",
        PACED_STREAM,
        PER_GB,
        NETWORK,
        [Some(1.0), Some(1.25)],
    ),
    row(
        "cpu_per_million_packets",
        "CPU s/10^6",
        PACED_DATAGRAMS,
        PER_MILLION,
        NETWORK,
        [Some(1.0), Some(1.25)],
    ),
    row(
        "tcp_1_flow_in_udp",
        "Gbit/s",
        STREAM_1,
        GBIT,
        UDP,
        [Some(0.9), Some(1.0)],
    ),
    stream(STREAM_1, SAME_MTU, "tcp_1_flow_same_mtu", 1.05),
    stream(STREAM_4, SAME_MTU, "tcp_4_flows_same_mtu", 1.3),
    stream(STREAM_16, SAME_MTU, "tcp_16_flows_same_mtu", 1.3),
    stream(STREAM_1_BACK, SAME_MTU, "tcp_1_flow_back_same_mtu", 1.05),
    stream(STREAM_4_BACK, SAME_MTU, "tcp_4_flows_back_same_mtu", 1.3),
    stream(STREAM_16_BACK, SAME_MTU, "tcp_16_flows_back_same_mtu", 1.3),
    row(
        "cpu_per_gb_same_mtu",
        "CPU s/GB",
        PACED_STREAM,
        PER_GB,
        SAME_MTU,
        [Some(1.0), Some(1.25)],
    ),
    stream(STREAM_1, BIG_TCP, "tcp_1_flow_big_tcp", 1.05),
    stream(STREAM_4, BIG_TCP, "tcp_4_flows_big_tcp", 1.3),
    stream(STREAM_16, BIG_TCP, "tcp_16_flows_big_tcp", 1.3),
    row(
        "tcp_1_flow_in_udp_big_tcp",
        "Gbit/s",
        STREAM_1,
        GBIT,
        BIG_TCP_UDP,
        [Some(0.9), Some(1.0)],
    ),
    row(
        "cpu_per_gb_big_tcp",
        "CPU s/GB",
        PACED_STREAM,
        PER_GB,
        BIG_TCP,
        [Some(1.0), Some(1.25)],
    ),
    one_node("one_node_tcp_1_flow", "Gbit/s", STREAM_1, GBIT),
    one_node("one_node_tcp_4_flows", "Gbit/s", STREAM_4, GBIT),
    one_node("one_node_tcp_round_trips", "1000/s", ROUND_TRIPS, THOUSAND),
    one_node("one_node_tcp_round_trip_p99", "us", ROUND_TRIPS, Value::P99),
    one_node(
        "one_node_tcp_polled_round_trips",
        "1000/s",
        POLLED_ROUND_TRIPS,
        THOUSAND,
    ),
    one_node("one_node_tcp_connections", "1000/s", CONNECTIONS, THOUSAND),
    one_node("one_node_udp_64_bytes", "1000/s", DATAGRAMS, THOUSAND),
    one_node("one_node_cpu_per_gb", "CPU s/GB", PACED_STREAM, PER_GB),
    one_node(
        "one_node_cpu_per_million_packets",
        "CPU s/10^6",
        PACED_DATAGRAMS,
        PER_MILLION,
    ),
];
