//! Writes an OCI image: takes a [`Request`] as JSON on its standard input, and prints for each
//! processor how many bytes a node must pull, as a JSON list.
//!
//! `cargo xtask image` runs it. It is a program of its own so that commands which write no image
//! need not compile the libraries for it.

mod layout;

use anyhow::{Context, Result};
use layout::Image;
use serde::Deserialize;
use std::{io, path::PathBuf};

/// The images to write, and the folder to write them to.
#[derive(Debug, Deserialize)]
struct Request {
    /// Gets `FILE/`, an OCI image layout, and `FILE.tar`, the same as an archive.
    folder: PathBuf,
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
