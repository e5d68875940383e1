//! What is measured. A new metric is one entry here and, if its load is new, a [`Load`].

use clap::ValueEnum;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Load {
    /// TCP, as much as goes; counts bytes.
    Stream,
    /// One byte there, one byte back, over one TCP connection; counts round trips.
    RequestResponse,
    /// Connect, one byte there, one byte back, close; counts connections.
    Connections,
    /// Datagrams of 64 bytes, as many as go; counts those that arrive.
    Datagrams,
}

/// One line of the result.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, also in JSON.
    pub name: &'static str,
    /// The traffic.
    pub load: Load,
    /// How many flows at once.
    pub flows: u16,
    /// What a person reads.
    pub unit: &'static str,
    /// How many of what is counted make one unit.
    pub per_unit: f64,
}

/// All of them, in the order of the table.
pub const METRICS: [Metric; 5] = [
    Metric {
        name: "tcp_stream_1",
        load: Load::Stream,
        flows: 1,
        unit: "Gbit/s",
        per_unit: 1e9 / 8.0,
    },
    Metric {
        name: "tcp_stream_4",
        load: Load::Stream,
        flows: 4,
        unit: "Gbit/s",
        per_unit: 1e9 / 8.0,
    },
    Metric {
        name: "tcp_request_response",
        load: Load::RequestResponse,
        flows: 1,
        unit: "1000/s",
        per_unit: 1e3,
    },
    Metric {
        name: "tcp_connections",
        load: Load::Connections,
        flows: 4,
        unit: "1000/s",
        per_unit: 1e3,
    },
    Metric {
        name: "udp_64_bytes",
        load: Load::Datagrams,
        flows: 1,
        unit: "1000/s",
        per_unit: 1e3,
    },
];
