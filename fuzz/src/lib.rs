//! Fuzz targets: everything in user space that parses bytes of others.
//!
//! The program `fuzz` runs one of them with libFuzzer, and the test `corpus` runs each with its corpus only.

mod drop_event;
mod inventory;
mod objects;

/// A target: reads any bytes, and panics if what must hold for each input does not.
pub type Target = fn(&[u8]);

/// The targets, by the names of their corpora in `fuzz/corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("cni_arguments", |input| {
        on_text(input, ipip_cni::fuzzing::arguments);
    }),
    (
        "cni_configuration",
        ipip_cni::fuzzing::network_configuration,
    ),
    ("drop_event", drop_event::drop_event),
    ("inventory", |input| on_text(input, inventory::inventory)),
    ("ipam_result", ipip_cni::fuzzing::ipam_result),
    ("legacy_rules", ipip_netlink::fuzzing::legacy_rules),
    ("netlink_generic", ipip_netlink::fuzzing::generic_datagram),
    (
        "netlink_netfilter",
        ipip_netlink::fuzzing::netfilter_datagram,
    ),
    ("netlink_route", ipip_netlink::fuzzing::route_datagram),
    ("objects", |input| on_text(input, objects::objects)),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    let mut targets = TARGETS.iter();
    targets
        .find(|(known, _)| *known == name)
        .map(|(_, target)| *target)
}

/// What is no text is refused before these parsers.
fn on_text(input: &[u8], read: impl Fn(&str)) {
    if let Ok(text) = str::from_utf8(input) {
        read(text);
    }
}
