use crate::{Error, NetNs, Result};
use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{errno::Errno, libc};
use std::io;

/// The kernel never makes an answer of a dump larger than 32 KiB.
pub(crate) const RECEIVE_BYTES: usize = 64 * 1024;

/// How often a dump that was disturbed is tried again.
const DUMP_ATTEMPTS: u32 = 32;

/// `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;

/// Asks and changes links, IPv4 addresses, routes and neighbours of one network namespace.
pub struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let attempt = "open a netlink socket";
        let mut socket = at(attempt, Socket::new(NETLINK_ROUTE))?;
        at(attempt, socket.bind_auto())?;
        at(attempt, socket.connect(&SocketAddr::new(0, 0)))?;
        // An error then carries the kernel's own words instead of a copy of the request.
        at(attempt, socket.set_cap_ack(true))?;
        at(attempt, socket.set_ext_ack(true))?;
        // Only strict dumps of routes leave out the cached exceptions and obey the table filter.
        at(attempt, socket.set_netlink_get_strict_chk(true))?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE_BYTES),
            sequence: 0,
        })
    }

    /// Opens a socket in `ns`; the calling thread stays where it is.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// What tells this socket's requests from those of others, in events too.
    pub fn port(&self) -> Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        at(
            "ask for the port of a netlink socket",
            self.socket.get_address(&mut address),
        )?;
        Ok(address.port_number())
    }

    /// Sends a request that changes something and waits until the kernel has done it.
    pub(crate) fn change(
        &mut self,
        attempt: impl Fn() -> String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<()> {
        let sequence = self.send(&attempt, message, flags | NLM_F_ACK)?;
        loop {
            for answer in self.receive(&attempt, sequence)? {
                if let NetlinkPayload::Error(answer) = answer.map_err(|e| bad(&attempt, e))?.payload
                {
                    return check(&attempt, &answer);
                }
            }
        }
    }

    /// Asks for one object.
    pub(crate) fn get(
        &mut self,
        attempt: impl Fn() -> String,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage> {
        let sequence = self.send(&attempt, message, 0)?;
        loop {
            for answer in self.receive(&attempt, sequence)? {
                match answer.map_err(|e| bad(&attempt, e))?.payload {
                    NetlinkPayload::Error(answer) => {
                        check(&attempt, &answer)?;
                        return Err(bad(&attempt, "acknowledged without an answer".into()));
                    }
                    NetlinkPayload::InnerMessage(message) => return Ok(message),
                    _ => {}
                }
            }
        }
    }

    /// Asks for a whole table, again if it changed meanwhile.
    pub(crate) fn dump(
        &mut self,
        attempt: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(&|| attempt.into(), message.clone(), NLM_F_DUMP)?;
            if let Some(table) = self.dumped(attempt, sequence)? {
                return Ok(table);
            }
        }
        Err(Error::Unsteady {
            attempt: attempt.into(),
            times: DUMP_ATTEMPTS,
        })
    }

    /// The rest of a dump; `None` if the table changed on the way. It is read to its end also
    /// after a message that cannot be understood, for until then the socket takes no other dump.
    fn dumped(
        &mut self,
        attempt: &'static str,
        sequence: u32,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>> {
        let name = || attempt.to_string();
        let (mut table, mut disturbed, mut misread) = (Vec::new(), false, None);
        loop {
            for answer in self.receive(&name, sequence)? {
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(error) => {
                        misread.get_or_insert(error);
                        continue;
                    }
                };
                disturbed |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => table.push(message),
                    NetlinkPayload::Error(answer) => check(&name, &answer)?,
                    NetlinkPayload::Done(done) => {
                        // A dump that fails on the way says so in its last message.
                        if done.code < 0 {
                            return Err(Error::Refused {
                                attempt: name(),
                                errno: Errno::from_raw(-done.code),
                                reason: String::new(),
                            });
                        }
                        return match misread {
                            Some(error) => Err(bad(&name, error)),
                            None => Ok((!disturbed).then_some(table)),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(
        &mut self,
        attempt: &impl Fn() -> String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket
            .send(&bytes, 0)
            .map_err(|source| Error::Socket {
                attempt: attempt(),
                source,
            })?;
        Ok(self.sequence)
    }

    /// One datagram, without the messages that answer another request.
    fn receive(
        &mut self,
        attempt: &impl Fn() -> String,
        sequence: u32,
    ) -> Result<Vec<Result<NetlinkMessage<RouteNetlinkMessage>, DecodeError>>> {
        let len = loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(len) => break len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Socket {
                        attempt: attempt(),
                        source,
                    });
                }
            }
        };
        if len > self.buffer.len() {
            let text = format!("{len} bytes, more than the {} that fit", self.buffer.len());
            return Err(bad(attempt, text.into()));
        }
        let messages = messages(&self.buffer)
            .map_while(|message| match message {
                Ok(bytes) => {
                    let ours = NetlinkBuffer::new(bytes).sequence_number() == sequence;
                    Some(ours.then(|| NetlinkMessage::deserialize(bytes)))
                }
                Err(error) => Some(Some(Err(error))),
            })
            .flatten()
            .collect();
        Ok(messages)
    }
}

/// The messages of a datagram; the last item is an error if one is cut off.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<&[u8], DecodeError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        match NetlinkBuffer::new_checked(datagram) {
            Ok(message) => {
                let len = message.length() as usize;
                let bytes = &datagram[..len];
                datagram = &datagram[len.next_multiple_of(4).min(datagram.len())..];
                Some(Ok(bytes))
            }
            Err(error) => {
                datagram = &[];
                Some(Err(error))
            }
        }
    })
}

fn check(attempt: &impl Fn() -> String, answer: &ErrorMessage) -> Result<()> {
    if answer.raw_code() == 0 {
        return Ok(());
    }
    Err(Error::Refused {
        attempt: attempt(),
        errno: Errno::from_raw(answer.raw_code().abs()),
        reason: reason(&answer.header).unwrap_or_default(),
    })
}

/// The text after the header of the refused request, of which no more than that is sent back.
fn reason(answer: &[u8]) -> Option<String> {
    NlasIterator::new(answer.get(size_of::<libc::nlmsghdr>()..)?)
        .filter_map(|attribute| attribute.ok())
        .find(|attribute| attribute.kind() == ERROR_TEXT)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value())
                .trim_end_matches('\0')
                .to_string()
        })
}

fn at<T>(attempt: &str, result: io::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Socket {
        attempt: attempt.into(),
        source,
    })
}

fn bad(attempt: &impl Fn() -> String, source: DecodeError) -> Error {
    Error::Answer {
        attempt: attempt(),
        source,
    }
}

/// An answer of another type than the question asks for.
pub(crate) fn unexpected(attempt: impl Fn() -> String, answer: &RouteNetlinkMessage) -> Error {
    bad(&attempt, format!("not an answer to it: {answer:?}").into())
}
