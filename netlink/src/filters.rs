//! BPF filters of the clsact queueing discipline.

use crate::{Netlink, Result};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

impl Netlink {
    /// The names of the BPF programs that are clsact filters of the interface `index`, in both directions.
    /// None if there is no such interface, or if it has no clsact.
    pub fn clsact_programs(&mut self, index: u32) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
            let mut request = TcMessage::with_index(index.cast_signed());
            request.header.parent = TcHandle {
                major: TcHandle::CLSACT.major,
                minor,
            };
            let request = RouteNetlinkMessage::GetTrafficFilter(request);
            match self.dump("list traffic-control filters", request) {
                Ok(table) => names.extend(table.iter().filter_map(program_name)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(names)
    }
}

pub(crate) fn program_name(message: &RouteNetlinkMessage) -> Option<String> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else {
        return None;
    };
    let options = message.attributes.iter().filter_map(|it| match it {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    })
}
