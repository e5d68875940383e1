//! The definition of a metric: a case (traffic between two pods), the quantity that is read from its measurement, and
//! the setups that are compared.

use super::{
    load::Measured,
    setup::{SetupKind, Variant},
};
use clap::ValueEnum;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Load {
    /// TCP as fast as possible; counts bytes.
    Stream,
    /// TCP at [`PACED_BYTES`](super::endpoint::PACED_BYTES); counts bytes.
    PacedStream,
    /// Request and response of one byte over one TCP connection; counts and times round trips.
    RequestResponse,
    /// Like [`Self::RequestResponse`], but both ends poll.
    PolledRequestResponse,
    /// Connect, request and response of one byte, close; counts connections.
    Connections,
    /// Datagrams of 64 bytes as fast as possible to a polling receiver; counts those that arrive.
    Datagrams,
    /// Datagrams of 64 bytes at [`PACED_PACKETS`](super::endpoint::PACED_PACKETS); counts those that arrive.
    PacedDatagrams,
}

/// How an endpoint waits for data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wait {
    /// It sleeps in the kernel until data arrives.
    Sleep,
    /// It polls the socket without sleeping.
    Poll,
}

/// Traffic between two pods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// Its name; also the metric's name if only one metric reads it.
    pub name: &'static str,
    /// The traffic.
    pub load: Load,
    /// How many flows run at the same time.
    pub flows: u16,
    /// Whether the client is the second pod and the server the first.
    pub reverse: bool,
    /// Whether the nodes have kube-proxy's rules, and which address the client connects to.
    pub services: Services,
}

/// Whether kube-proxy's rules are loaded on each node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Services {
    /// No rules; the client connects to the pod.
    Absent,
    /// The rules are loaded; the client connects to the pod.
    Beside,
    /// The rules are loaded; the client connects to a ClusterIP.
    Through,
}

/// Which number of a measurement a metric shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantity {
    /// The count per second, divided by this number.
    Rate(f64),
    /// The median round-trip time in microseconds.
    Median,
    /// The 99th percentile of the round-trip times in microseconds.
    P99,
    /// CPU seconds of the whole machine for this count.
    CpuTime(f64),
}

/// A column of the result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Column {
    /// This project, built from this source tree.
    Ours,
    /// No encapsulation: routes between nodes, a bridge on one node.
    Plain,
    /// Kernel VXLAN.
    Vxlan,
    /// Kernel ipip, if the kernel has it.
    KernelIpip,
    /// This project as [`OtherBuild`](super::setup::OtherBuild) describes it, if that is wanted.
    Other,
}

/// The setup of each column, by [`Column`]; `None` if the metric does not have that column.
pub type Setups = [Option<SetupKind>; Column::ALL.len()];

/// One row of the result.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, also in JSON.
    pub name: &'static str,
    /// The unit in the table.
    pub unit: &'static str,
    /// The traffic.
    pub case: Case,
    /// The number that is read from the measurement of the traffic.
    pub quantity: Quantity,
    /// The setups that are compared.
    pub setups: Setups,
    /// The ratios to plain routing and to VXLAN that a release should reach.
    pub targets: [Option<f64>; 2],
}

impl Metric {
    /// The same metric with the column [`Column::Other`].
    pub fn against_other(mut self) -> Self {
        if let Some(SetupKind::Ours(variant)) = self.setups[Column::Ours as usize] {
            self.setups[Column::Other as usize] = Some(SetupKind::Other(variant));
        }
        self
    }

    /// Which of this project's setups it measures.
    pub fn variant(&self) -> Option<Variant> {
        match self.setups[Column::Ours as usize] {
            Some(SetupKind::Ours(variant)) => Some(variant),
            _ => None,
        }
    }

    /// Whether it compares this setup.
    pub fn uses(&self, kind: SetupKind) -> bool {
        self.setups.contains(&Some(kind))
    }

    /// The ratio to this column that a release should reach.
    pub fn target(&self, column: Column) -> Option<f64> {
        match column {
            Column::Plain => self.targets[0],
            Column::Vxlan => self.targets[1],
            Column::Ours | Column::KernelIpip | Column::Other => None,
        }
    }
}

impl Load {
    /// How its endpoints wait. Waking a sleeping receiver on another CPU takes a third of the sender's time for a
    /// small packet, and this time is the same in all setups. Polling avoids it.
    pub fn wait(self) -> Wait {
        match self {
            Self::PolledRequestResponse | Self::Datagrams => Wait::Poll,
            _ => Wait::Sleep,
        }
    }

    /// Whether the client measures; otherwise the server does.
    pub fn is_measured_by_client(self) -> bool {
        matches!(self, Self::RequestResponse | Self::PolledRequestResponse)
    }

    /// Whether it transfers as many bytes as it can, or bytes at a fixed rate.
    pub fn is_bulk(self) -> bool {
        matches!(self, Self::Stream | Self::PacedStream)
    }
}

impl Quantity {
    /// The number of one measurement.
    pub fn of(self, measured: &Measured) -> f64 {
        match self {
            Self::Rate(per_unit) => measured.per_second / per_unit,
            Self::Median => measured.median_us,
            Self::P99 => measured.p99_us,
            Self::CpuTime(count) => measured.cpu_seconds_each * count,
        }
    }

    /// Whether less is better.
    pub fn is_cost(self) -> bool {
        !matches!(self, Self::Rate(_))
    }
}

impl Column {
    /// All columns in the order of the table.
    pub const ALL: [Self; 5] = [
        Self::Ours,
        Self::Plain,
        Self::Vxlan,
        Self::KernelIpip,
        Self::Other,
    ];

    /// Its name in the table and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Plain => "plain",
            Self::Vxlan => "vxlan",
            Self::KernelIpip => "kernel_ipip",
            Self::Other => "other",
        }
    }

    /// Whether JSON omits it if it has no samples; otherwise JSON has `null`.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::KernelIpip | Self::Other)
    }
}
