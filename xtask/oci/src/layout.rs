//! OCI images: a layout folder and a tar of it. Equal input gives equal bytes.

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder,
    SCHEMA_VERSION, Sha256Digest,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The creation time of every image: the epoch, so that equal input gives equal bytes.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// The image for one processor, of one layer.
#[derive(Debug, Deserialize)]
pub struct Image {
    /// OCI's name of the processor.
    pub arch: String,
    /// The command that a container runs.
    pub entrypoint: Vec<String>,
    /// Labels of the image's configuration.
    pub labels: BTreeMap<String, String>,
    /// Everything in the layer.
    pub files: Vec<File>,
}

/// A file of an image.
#[derive(Debug, Deserialize)]
pub struct File {
    /// Its path, without a leading slash.
    pub path: String,
    /// Its content.
    #[serde(flatten)]
    pub content: Content,
}

/// The content of a file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// An executable, copied from this path.
    Program(PathBuf),
    /// A symbolic link to this target.
    Link(String),
}

/// Writes the folder `file` and the archive `file`.tar into `folder`: an image called `name` for each of these
/// processors. Returns for each the bytes that a node must pull: layer, configuration and manifest.
pub fn write(folder: &Path, file: &str, name: &str, images: &[Image]) -> Result<Vec<u64>> {
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
        // containerd reads the first name, other programs the second.
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
    write_layout(&folder.join(file), &files)?;
    write_archive(&folder.join(format!("{file}.tar")), &files)?;
    Ok(sizes)
}

type Files = BTreeMap<String, Vec<u8>>;

fn write_layout(layout: &Path, files: &Files) -> Result<()> {
    if layout.exists() {
        fs::remove_dir_all(layout).with_context(|| format!("removing {}", layout.display()))?;
    }
    for (path, content) in files {
        let path = layout.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Replaces the archive in one step: a program that is importing the old archive can read it to its end.
fn write_archive(path: &Path, files: &Files) -> Result<()> {
    let bytes = archive(files.iter().map(|(path, content)| Entry {
        path,
        mode: 0o644,
        content: Some(content),
        link: None,
    }))?;
    let new = path.with_extension("tar.new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// Files of a layout by their paths.
#[derive(Default)]
struct Blobs(Files);

impl Blobs {
    /// Adds an image; returns its manifest's descriptor and the size of all its blobs.
    fn image(&mut self, image: &Image) -> Result<(Descriptor, u64)> {
        let layer = layer(&image.files)?;
        let diff_id = format!("sha256:{}", digest(&layer));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&layer)?;
        let layer = self.add(MediaType::ImageLayerGzip, encoder.finish()?)?;
        let config = ConfigBuilder::default()
            .entrypoint(image.entrypoint.clone())
            .labels(image.labels.clone().into_iter().collect::<HashMap<_, _>>())
            .build()?;
        let config = ImageConfigurationBuilder::default()
            .architecture(image.arch.as_str())
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
                .architecture(Arch::from(image.arch.as_str()))
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

/// JSON with sorted keys: the maps of the specification's types are unordered, and `Value` keeps that
/// order if another crate of the build enables serde_json's `preserve_order`.
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

/// The layer: the folders that the files need, then the files.
fn layer(files: &[File]) -> Result<Vec<u8>> {
    let folders: BTreeSet<String> = files
        .iter()
        .flat_map(|file| Path::new(&file.path).ancestors().skip(1))
        .filter_map(Path::to_str)
        .filter(|folder| !folder.is_empty())
        // Programs expect this folder, and cannot create it on a read-only root.
        .chain(["tmp"])
        .map(|folder| format!("{folder}/"))
        .collect();
    let folders = folders.iter().map(|path| Entry {
        path,
        mode: if path == "tmp/" { 0o1777 } else { 0o755 },
        content: None,
        link: None,
    });
    let programs = files
        .iter()
        .filter_map(|file| match &file.content {
            Content::Program(source) => Some((source, fs::read(source))),
            Content::Link(_) => None,
        })
        .map(|(source, read)| {
            let content = read.with_context(|| format!("reading {}", source.display()))?;
            Ok((source, content))
        })
        .collect::<Result<HashMap<&PathBuf, Vec<u8>>>>()?;
    let files = files.iter().map(|file| match &file.content {
        Content::Program(source) => Entry {
            path: &file.path,
            mode: 0o755,
            content: programs.get(source),
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

/// A tar archive of files that belong to root and were changed at the epoch.
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
        let request = r#"{
            "arch": "amd64",
            "entrypoint": ["/program"],
            "labels": {"b": "2", "a": "1", "c": "3"},
            "files": [
                {"path": "program", "program": "/proc/self/exe"},
                {"path": "bin/sh", "link": "/program"}
            ]
        }"#;
        serde_json::from_str(request).unwrap()
    }

    #[test]
    fn equal_input_gives_an_equal_image_whose_blobs_are_what_their_names_say() {
        let folder = std::env::temp_dir().join(format!("ipip-image-test-{}", std::process::id()));
        let tar = |file: &str| {
            write(&folder, file, "example.com/a:1", &[image()]).unwrap();
            fs::read(folder.join(format!("{file}.tar"))).unwrap()
        };
        assert!(tar("one") == tar("two"), "two builds differ");
        let blobs = folder.join("one/blobs/sha256");
        for blob in fs::read_dir(blobs).unwrap() {
            let blob = blob.unwrap();
            let name = blob.file_name().into_string().unwrap();
            assert_eq!(digest(&fs::read(blob.path()).unwrap()), name);
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
