//! An HTTP client that sends `GET` over plain TCP.

use crate::host::Host;
use anyhow::{Context, Result, ensure};
use std::{
    io::{Read, Write},
    net::{SocketAddrV4, TcpStream},
    time::Duration,
};

/// How long a connection, and each read, may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The answer of a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body, without white space around it.
    pub body: String,
}

/// Sends `GET path` from `host`, and returns the answer with any status.
pub fn get(host: &Host, server: SocketAddrV4, path: &str) -> Result<Response> {
    host.enter(|| get_here(server, path))?
        .with_context(|| format!("from {}", host.name()))
}

/// Sends `GET path` from `host`, and returns the body of an answer with status 200.
pub fn get_text(host: &Host, server: SocketAddrV4, path: &str) -> Result<String> {
    let Response { status, body } = get(host, server, path)?;
    ensure!(
        status == 200,
        "{server}{path} has status {status}, not 200: {body}"
    );
    Ok(body)
}

/// Sends `GET path` from the network namespace of this thread, and returns the answer with any status.
pub fn get_here(server: SocketAddrV4, path: &str) -> Result<Response> {
    let answer = exchange(server, path).with_context(|| format!("GET {path} of {server}"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("{server}: no HTTP answer: {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok(Response {
        status: status.with_context(|| format!("{server}: no status: {head:?}"))?,
        body: body.trim().into(),
    })
}

/// HTTP/1.0, so that the server closes the connection after the answer and sends it in one piece.
fn exchange(server: SocketAddrV4, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server.into(), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // In one piece, because a server may answer and close after its first read.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::TcpListener, thread};

    #[test]
    fn status_and_body_of_an_answer_are_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = match listener.local_addr().unwrap() {
            std::net::SocketAddr::V4(server) => server,
            other => panic!("{other} is not IPv4"),
        };
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let length = stream.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /readyz HTTP/1.0\r\n"));
            stream
                .write_all(b"HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\nnot yet\n")
                .unwrap();
        });
        let expected = Response {
            status: 503,
            body: "not yet".into(),
        };
        assert_eq!(get_here(server, "/readyz").unwrap(), expected);
    }
}
