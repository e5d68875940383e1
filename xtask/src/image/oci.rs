//! OCI images: a layout folder, and the same as a tar. Equal input gives equal bytes.

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder,
    SCHEMA_VERSION, Sha256Digest,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
};

/// When every image was made, as far as it tells.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// One processor's image, of one layer.
#[derive(Debug)]
pub struct Image {
    /// As OCI names the processor.
    pub arch: &'static str,
    /// The command that a container runs.
    pub entrypoint: Vec<String>,
    /// What it tells of itself.
    pub labels: Vec<(&'static str, String)>,
    /// All that is in it.
    pub files: Vec<File>,
}

/// A file of an image.
#[derive(Debug)]
pub struct File {
    path: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Program(Vec<u8>),
    Link(String),
}

/// Where an image was written to.
#[derive(Debug)]
pub struct Written {
    /// The layout folder.
    pub layout: PathBuf,
    /// The layout as a tar.
    pub tar: PathBuf,
    /// What a node must pull, for each processor: layer, configuration and manifest.
    pub sizes: Vec<u64>,
}

impl File {
    /// A program, from a file here.
    pub fn program(path: &str, source: &Path) -> Result<Self> {
        let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        Ok(Self {
            path: path.into(),
            content: Content::Program(content),
        })
    }

    /// A symbolic link.
    pub fn link(path: &str, target: &str) -> Self {
        Self {
            path: path.into(),
            content: Content::Link(target.into()),
        }
    }
}

/// Writes `FILE/` and `FILE.tar` into `folder`: an image called `name` for each of these processors.
pub fn write(folder: &Path, file: &str, name: &str, images: &[Image]) -> Result<Written> {
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    let mut sizes = Vec::new();
    for image in images {
        let (manifest, size) = blobs.image(image)?;
        manifests.push(manifest);
        sizes.push(size);
    }
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()?;
    let mut named = blobs.json(MediaType::ImageIndex, &index)?;
    named.set_annotations(Some(HashMap::from([
        // The one is for containerd, the other for everyone else.
        ("io.containerd.image.name".into(), name.into()),
        ("org.opencontainers.image.ref.name".into(), name.into()),
    ])));
    let top = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests([named])
        .build()?;
    let mut files = blobs.0;
    files.insert("index.json".into(), sorted_json(&top)?);
    files.insert(
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    );

    let layout = folder.join(file);
    if layout.exists() {
        fs::remove_dir_all(&layout).with_context(|| format!("removing {}", layout.display()))?;
    }
    for (path, content) in &files {
        let path = layout.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    let tar = folder.join(format!("{file}.tar"));
    let bytes = archive(files.iter().map(|(path, content)| Entry {
        path,
        mode: 0o644,
        content: Some(content),
        link: None,
    }))?;
    // Whoever imports it just now has the old one whole.
    let half_done = folder.join(format!("{file}.tar.new"));
    fs::write(&half_done, bytes)
        .and_then(|()| fs::rename(&half_done, &tar))
        .with_context(|| format!("writing {}", tar.display()))?;
    Ok(Written { layout, tar, sizes })
}

/// Files of a layout by their paths.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds an image; returns its manifest's descriptor, and what all of it weighs.
    fn image(&mut self, image: &Image) -> Result<(Descriptor, u64)> {
        let layer = layer(&image.files)?;
        let diff_id = format!("sha256:{}", digest(&layer));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&layer)?;
        let layer = self.add(MediaType::ImageLayerGzip, encoder.finish()?)?;
        let labels: HashMap<String, String> = image
            .labels
            .iter()
            .map(|(key, value)| ((*key).into(), value.clone()))
            .collect();
        let config = ConfigBuilder::default()
            .entrypoint(image.entrypoint.clone())
            .labels(labels)
            .build()?;
        let config = ImageConfigurationBuilder::default()
            .architecture(image.arch)
            .os(Os::Linux)
            .created(CREATED)
            .config(config)
            .rootfs(
                RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids([diff_id])
                    .build()?,
            )
            .history([HistoryBuilder::default()
                .created(CREATED)
                .created_by("cargo xtask image")
                .build()?])
            .build()?;
        let config = self.json(MediaType::ImageConfig, &config)?;
        let mut size = layer.size() + config.size();
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers([layer])
            .build()?;
        let mut manifest = self.json(MediaType::ImageManifest, &manifest)?;
        size += manifest.size();
        manifest.set_platform(Some(
            PlatformBuilder::default()
                .architecture(Arch::from(image.arch))
                .os(Os::Linux)
                .build()?,
        ));
        Ok((manifest, size))
    }

    fn json(&mut self, media_type: MediaType, value: &impl Serialize) -> Result<Descriptor> {
        self.add(media_type, sorted_json(value)?)
    }

    fn add(&mut self, media_type: MediaType, content: Vec<u8>) -> Result<Descriptor> {
        let digest = digest(&content);
        let descriptor = DescriptorBuilder::default()
            .media_type(media_type)
            .digest(Sha256Digest::from_str(&digest)?)
            .size(content.len() as u64)
            .build()?;
        self.0.insert(format!("blobs/sha256/{digest}"), content);
        Ok(descriptor)
    }
}

/// Keys in order: the maps of the specification's types have none, and `Value` keeps theirs where
/// another crate of the build asks for that.
fn sorted_json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The file system of an image: the folders that its files need, then the files.
fn layer(files: &[File]) -> Result<Vec<u8>> {
    let folders: BTreeSet<String> = files
        .iter()
        .flat_map(|file| Path::new(&file.path).ancestors().skip(1))
        .filter_map(Path::to_str)
        .filter(|folder| !folder.is_empty())
        // Programs expect it, and a read-only root cannot get it later.
        .chain(["tmp"])
        .map(|folder| format!("{folder}/"))
        .collect();
    let folders = folders.iter().map(|path| Entry {
        path,
        mode: if path == "tmp/" { 0o1777 } else { 0o755 },
        content: None,
        link: None,
    });
    let files = files.iter().map(|file| match &file.content {
        Content::Program(content) => Entry {
            path: &file.path,
            mode: 0o755,
            content: Some(content),
            link: None,
        },
        Content::Link(target) => Entry {
            path: &file.path,
            mode: 0o777,
            content: None,
            link: Some(target),
        },
    });
    archive(folders.chain(files))
}

struct Entry<'a> {
    path: &'a str,
    mode: u32,
    content: Option<&'a Vec<u8>>,
    link: Option<&'a String>,
}

/// A tar of root's files, made at the epoch.
fn archive<'a>(entries: impl Iterator<Item = Entry<'a>>) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let content = entry.content.map_or(&[][..], Vec::as_slice);
        header.set_size(content.len() as u64);
        header.set_entry_type(match (entry.content, entry.link) {
            (Some(_), _) => tar::EntryType::Regular,
            (None, Some(_)) => tar::EntryType::Symlink,
            (None, None) => tar::EntryType::Directory,
        });
        match entry.link {
            Some(target) => builder.append_link(&mut header, entry.path, target)?,
            None => builder.append_data(&mut header, entry.path, content)?,
        }
    }
    Ok(builder.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            arch: "amd64",
            entrypoint: vec!["/program".into()],
            labels: vec![("b", "2".into()), ("a", "1".into()), ("c", "3".into())],
            files: vec![
                File::program("program", Path::new("/proc/self/exe")).unwrap(),
                File::link("bin/sh", "/program"),
            ],
        }
    }

    #[test]
    fn equal_input_gives_an_equal_image_whose_blobs_are_what_their_names_say() {
        let folder = std::env::temp_dir().join(format!("ipip-image-test-{}", std::process::id()));
        let tar = |file: &str| {
            let written = write(&folder, file, "example.com/a:1", &[image()]).unwrap();
            (fs::read(&written.tar).unwrap(), written)
        };
        let (first, written) = tar("one");
        let (second, _) = tar("two");
        assert!(first == second, "two builds differ");
        let blobs = written.layout.join("blobs/sha256");
        for blob in fs::read_dir(blobs).unwrap() {
            let blob = blob.unwrap();
            let name = blob.file_name().into_string().unwrap();
            assert_eq!(digest(&fs::read(blob.path()).unwrap()), name);
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
