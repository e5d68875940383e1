//! Asking web servers.

use crate::host::Host;
use anyhow::{Context, Result};
use std::{
    io::{Read, Write},
    net::SocketAddrV4,
};

/// What a web server says to `GET path`, asked from `host`.
pub fn get(host: &Host, server: SocketAddrV4, path: &str) -> Result<String> {
    let mut stream = host.connect(server)?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("{} asks {server}", host.name()))?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("{server}: no HTTP answer: {answer:?}"))?;
    Ok(body.trim().into())
}
