//! The netlink socket: requests, answers, dumps and transactions.

use crate::{Error, NetNs, Result, attributes::text};
use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{errno::Errno, libc};
use std::{fmt::Debug, io, marker::PhantomData, panic::catch_unwind};

/// Size of the receive buffer: the kernel limits each datagram of a dump to 32 KiB.
pub(crate) const RECEIVE_BYTES: usize = 64 * 1024;

/// Number of attempts for a dump that is interrupted by changes.
const DUMP_ATTEMPTS: u32 = 32;

/// `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;

const OPEN: &str = "open a netlink socket";

/// Reads and changes links, IPv4 addresses, routes and neighbours of one network namespace.
///
/// `M` is the message type of the protocol. [`crate::Nftables`] and [`crate::Fou`] use others.
pub struct Netlink<M = RouteNetlinkMessage> {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
    messages: PhantomData<M>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let netlink = Self::open_protocol(NETLINK_ROUTE)?;
        // A dump of routes omits cached exceptions and filters by table only with strict checking.
        at(OPEN, netlink.socket.set_netlink_get_strict_chk(true))?;
        Ok(netlink)
    }

    /// Opens a socket in `ns`; the calling thread stays in its own namespace.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }
}

impl<M> Netlink<M>
where
    M: NetlinkSerializable + NetlinkDeserializable + Clone + Debug,
{
    pub(crate) fn open_protocol(protocol: isize) -> Result<Self> {
        let mut socket = at(OPEN, Socket::new(protocol))?;
        at(OPEN, socket.bind_auto())?;
        at(OPEN, socket.connect(&SocketAddr::new(0, 0)))?;
        // Errors then carry the kernel's message instead of a copy of the request.
        at(OPEN, socket.set_cap_ack(true))?;
        at(OPEN, socket.set_ext_ack(true))?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE_BYTES),
            sequence: 0,
            messages: PhantomData,
        })
    }

    /// The port ID, which marks this socket's requests, also in events.
    pub fn port(&self) -> Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        at(
            "read the port of a netlink socket",
            self.socket.get_address(&mut address),
        )?;
        Ok(address.port_number())
    }

    /// Sends a request that changes something, and waits for the acknowledgement.
    pub(crate) fn change(
        &mut self,
        attempt: impl Fn() -> String,
        message: M,
        flags: u16,
    ) -> Result<()> {
        let sequence = self.send(&attempt, message, flags | NLM_F_ACK)?;
        loop {
            for answer in self.receive(&attempt, sequence, 1)? {
                if let NetlinkPayload::Error(answer) = answer.map_err(|e| bad(&attempt, e))?.payload
                {
                    return check(&attempt, &answer);
                }
            }
        }
    }

    /// Sends a transaction: messages, each with its flags, that the kernel executes completely or not
    /// at all. Waits for the acknowledgement of every message with `NLM_F_ACK`.
    pub(crate) fn change_all(
        &mut self,
        attempt: impl Fn() -> String,
        messages: Vec<(M, u16)>,
    ) -> Result<()> {
        let count = messages.len() as u32;
        let flags: Vec<u16> = messages.iter().map(|(_, flags)| *flags).collect();
        let mut open = flags.iter().filter(|it| **it & NLM_F_ACK != 0).count();
        let first = self.send_all(&attempt, messages)?;
        while open > 0 {
            for answer in self.receive(&attempt, first, count)? {
                let answer = answer.map_err(|e| bad(&attempt, e))?;
                if let NetlinkPayload::Error(error) = answer.payload {
                    check(&attempt, &error)?;
                    let index = answer.header.sequence_number.wrapping_sub(first);
                    open -= usize::from(flags[index as usize] & NLM_F_ACK != 0);
                }
            }
        }
        Ok(())
    }

    /// Reads one object.
    pub(crate) fn get(&mut self, attempt: impl Fn() -> String, message: M) -> Result<M> {
        let sequence = self.send(&attempt, message, 0)?;
        loop {
            for answer in self.receive(&attempt, sequence, 1)? {
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

    /// Reads a whole table. Repeats this if the table changed in the meantime.
    pub(crate) fn dump(&mut self, attempt: &'static str, message: M) -> Result<Vec<M>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut table = Vec::new();
            if self.try_each(attempt, message.clone(), |it| table.push(it))? {
                return Ok(table);
            }
        }
        Err(interrupted(attempt))
    }

    /// Passes each object of a table to `visit`, as it is received. If the table changes in the meantime, an object may
    /// be passed twice.
    pub(crate) fn each(
        &mut self,
        attempt: &'static str,
        message: M,
        mut visit: impl FnMut(M),
    ) -> Result<()> {
        for _ in 0..DUMP_ATTEMPTS {
            if self.try_each(attempt, message.clone(), &mut visit)? {
                return Ok(());
            }
        }
        Err(interrupted(attempt))
    }

    /// Passes each object of a table to `visit`. Returns whether the table stayed as it is in the meantime. The dump is
    /// read to its end even after a message that cannot be parsed: until then the kernel refuses another dump.
    fn try_each(
        &mut self,
        attempt: &'static str,
        message: M,
        mut visit: impl FnMut(M),
    ) -> Result<bool> {
        let name = || attempt.to_string();
        let sequence = self.send(&name, message, NLM_F_DUMP)?;
        let (mut interrupted, mut invalid) = (false, None);
        loop {
            for answer in self.receive(&name, sequence, 1)? {
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(error) => {
                        invalid.get_or_insert(error);
                        continue;
                    }
                };
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => visit(message),
                    NetlinkPayload::Error(answer) => check(&name, &answer)?,
                    NetlinkPayload::Done(done) => {
                        // The last message of a dump that failed carries the error.
                        if done.code < 0 {
                            return Err(Error::Refused {
                                attempt: name(),
                                errno: errno(done.code),
                                reason: String::new(),
                            });
                        }
                        return match invalid {
                            Some(error) => Err(bad(&name, error)),
                            None => Ok(!interrupted),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, attempt: &impl Fn() -> String, message: M, flags: u16) -> Result<u32> {
        self.send_all(attempt, vec![(message, flags)])
    }

    /// Sends messages in one datagram. Returns the sequence number of the first one.
    fn send_all(&mut self, attempt: &impl Fn() -> String, messages: Vec<(M, u16)>) -> Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for (message, flags) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut datagram, message, flags, self.sequence);
        }
        match self.socket.send(&datagram, 0) {
            Ok(_) => Ok(first),
            Err(source) => Err(Error::Socket {
                attempt: attempt(),
                source,
            }),
        }
    }

    /// Receives one datagram. Skips answers to requests other than the `count` requests that start
    /// with the sequence number `first`.
    fn receive(
        &mut self,
        attempt: &impl Fn() -> String,
        first: u32,
        count: u32,
    ) -> Result<Vec<Result<NetlinkMessage<M>, DecodeError>>> {
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
                    let number = NetlinkBuffer::new(bytes).sequence_number();
                    let ours = number.wrapping_sub(first) < count;
                    Some(ours.then(|| deserialize(bytes)))
                }
                Err(error) => Some(Some(Err(error))),
            })
            .flatten()
            .collect();
        Ok(messages)
    }
}

/// Appends a request to a datagram.
pub(crate) fn append<M: NetlinkSerializable>(
    datagram: &mut Vec<u8>,
    message: M,
    flags: u16,
    sequence: u32,
) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = datagram.len();
    datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut datagram[start..]);
}

/// Parses a message. The libraries index the data of expressions without a check, so a message of a form that they do not
/// expect is a panic, which must not end the agent.
pub(crate) fn deserialize<M: NetlinkDeserializable>(
    message: &[u8],
) -> Result<NetlinkMessage<M>, DecodeError> {
    catch_unwind(|| NetlinkMessage::deserialize(message))
        .unwrap_or_else(|_| Err("a message of an unknown form".into()))
}

/// The messages of a datagram. If the last one is truncated, the last item is an error.
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

fn interrupted(attempt: &str) -> Error {
    Error::DumpInterrupted {
        attempt: attempt.into(),
        times: DUMP_ATTEMPTS,
    }
}

pub(crate) fn check(attempt: &impl Fn() -> String, answer: &ErrorMessage) -> Result<()> {
    if answer.raw_code() == 0 {
        return Ok(());
    }
    Err(Error::Refused {
        attempt: attempt(),
        errno: errno(answer.raw_code()),
        reason: reason(&answer.header).unwrap_or_default(),
    })
}

/// The error in an answer, which has a negative number.
pub(crate) fn errno(code: i32) -> Errno {
    Errno::from_raw(code.saturating_neg())
}

/// The kernel's message. It follows the header of the refused request, whose body is not returned.
fn reason(answer: &[u8]) -> Option<String> {
    text(answer.get(size_of::<libc::nlmsghdr>()..)?, ERROR_TEXT)
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

/// The error for an answer whose type does not match the request.
pub(crate) fn unexpected(attempt: impl Fn() -> String, answer: &impl Debug) -> Error {
    bad(
        &attempt,
        format!("not an answer to this request: {answer:?}").into(),
    )
}
