//! Writes an OCI image: takes a [`Request`] as JSON on its standard input, and prints, as
//! a JSON list, the bytes that a node must pull for each processor.
//!
//! `cargo xtask image` runs it. It is a separate program, so that commands that write no image
//! do not compile its libraries.

mod layout;

use anyhow::{Context, Result};
use layout::Image;
use serde::Deserialize;
use std::{io, path::PathBuf};

/// The images to write, and the place to write them to.
#[derive(Debug, Deserialize)]
struct Request {
    /// The parent folder of the output.
    folder: PathBuf,
    /// The name of the OCI image layout, which is a folder. The archive has the suffix `.tar`.
    file: String,
    /// The image's full name with its tag.
    name: String,
    /// One image for each processor.
    images: Vec<Image>,
}

fn main() -> Result<()> {
    let request: Request =
        serde_json::from_reader(io::stdin().lock()).context("reading the request")?;
    let sizes = layout::write(
        &request.folder,
        &request.file,
        &request.name,
        &request.images,
    )
    .with_context(|| format!("writing the image {}", request.name))?;
    println!("{}", serde_json::to_string(&sizes)?);
    Ok(())
}
