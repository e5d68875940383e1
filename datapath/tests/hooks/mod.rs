//! Asks the kernel which programs are attached to an interface.

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use ipip_datapath::AttachMode;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;

/// Identifiers of the programs that the kernel has attached to an interface.
pub fn attached_to(ifname: &str, mode: AttachMode, attach_type: TcAttachType) -> Vec<u32> {
    match mode {
        AttachMode::Clsact => filters(ifname, attach_type),
        _ => {
            let (_, programs) = SchedClassifier::query_tcx(ifname, attach_type).unwrap();
            programs.iter().map(ProgramInfo::id).collect()
        }
    }
}

/// The programs that `tc filter show dev IFNAME ingress|egress` lists.
fn filters(ifname: &str, attach_type: TcAttachType) -> Vec<u32> {
    let mut request = TcMessage::default();
    request.header.index = if_nametoindex(ifname).unwrap() as i32;
    // TC_H_MIN_INGRESS and TC_H_MIN_EGRESS of the clsact qdisc.
    request.header.parent = TcHandle {
        major: 0xffff,
        minor: match attach_type {
            TcAttachType::Ingress => 0xfff2,
            _ => 0xfff3,
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let payload = RouteNetlinkMessage::GetTrafficFilter(request).into();
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.send(&bytes, 0).unwrap();

    let mut found = Vec::new();
    loop {
        let mut rest = &socket.recv_from_full().unwrap().0[..];
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).unwrap();
            match answer.payload {
                NetlinkPayload::Done(_) => return found,
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                    found.extend(program_of(&filter));
                }
                other => panic!("not a filter: {other:?}"),
            }
            // Messages begin at multiples of four.
            let len = (answer.header.length as usize).next_multiple_of(4);
            rest = &rest[len.min(rest.len())..];
        }
    }
}

/// The program of a filter. The kernel's first message about a priority describes the priority and has none.
fn program_of(filter: &TcMessage) -> Option<u32> {
    filter.attributes.iter().find_map(|attribute| {
        let TcAttribute::Options(options) = attribute else {
            return None;
        };
        options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        })
    })
}
