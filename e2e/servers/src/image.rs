//! Container images without a daemon or a registry: OCI layouts in tar files, as the final stages of the Containerfiles say.
//!
//! A Containerfile's base image can't be pulled everywhere. What a program needs of it, the dynamic loader and the libraries
//! that it links, is taken from this machine, where it was built.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The final stage of a Containerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Programs and files of the system, by where they are in the image.
    pub programs: BTreeMap<String, String>,
    /// As whom it runs; empty: root.
    pub user: String,
    /// What it runs.
    pub entrypoint: Vec<String>,
}

impl Stage {
    /// Reads the final stage of a Containerfile. Programs are those that it copies from an earlier stage.
    ///
    /// # Errors
    /// When it says something that this doesn't know.
    pub fn parse(text: &str) -> Result<Self> {
        let mut stage = Self { programs: BTreeMap::new(), user: String::new(), entrypoint: Vec::new() };
        for line in text.replace("\\\n", " ").lines() {
            let line = line.trim();
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "FROM" => {
                    stage = Self { programs: BTreeMap::new(), user: String::new(), entrypoint: Vec::new() };
                }
                "COPY" if rest.starts_with("--from=build ") => {
                    let mut paths = rest.split_whitespace().skip(1);
                    let (Some(from), Some(to)) = (paths.next(), paths.next()) else {
                        bail!("COPY of what: {line}")
                    };
                    stage.programs.insert(to.to_owned(), from.trim_start_matches('/').to_owned());
                }
                "USER" => rest.clone_into(&mut stage.user),
                "ENTRYPOINT" => {
                    stage.entrypoint =
                        serde_json::from_str(rest).context("ENTRYPOINT is not a list of strings")?;
                }
                _ => {}
            }
        }
        ensure!(!stage.entrypoint.is_empty(), "there is no ENTRYPOINT in the final stage");
        Ok(stage)
    }
}

/// An image that is being put together: files by their path.
#[derive(Default)]
pub struct Image {
    files: BTreeMap<String, Vec<u8>>,
    user: String,
    entrypoint: Vec<String>,
}

impl Image {
    /// The image that a Containerfile's final stage describes, of programs in `built`.
    ///
    /// # Errors
    /// When a program is not there.
    pub fn of_stage(stage: &Stage, built: &Path) -> Result<Self> {
        let mut image =
            Self { user: stage.user.clone(), entrypoint: stage.entrypoint.clone(), ..Self::default() };
        for (path, name) in &stage.programs {
            if name.contains('/') {
                let file = Path::new("/").join(name);
                let bytes = fs::read(&file).with_context(|| format!("{} can't be read", file.display()))?;
                image.files.insert(path.trim_start_matches('/').to_owned(), bytes);
            } else {
                image.program(path, &built.join(name))?;
            }
        }
        Ok(image)
    }

    /// An image of one program alone.
    ///
    /// # Errors
    /// When it is not there.
    pub fn of_program(program: &Path) -> Result<Self> {
        let mut image = Self { entrypoint: vec!["/program".to_owned()], ..Self::default() };
        image.program("/program", program)?;
        Ok(image)
    }

    /// A program without its debug symbols, and what it links.
    fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        let stripped = tempfile::NamedTempFile::new().context("no temporary file")?;
        let status = Command::new("strip").arg("-o").arg(stripped.path()).arg(program).status();
        let strip = status.is_ok_and(|status| status.success());
        let source = if strip { stripped.path() } else { program };
        let bytes = fs::read(source).with_context(|| format!("{} can't be read", program.display()))?;
        self.files.insert(path.trim_start_matches('/').to_owned(), bytes);
        for library in libraries(program) {
            let bytes = fs::read(&library).with_context(|| format!("{} can't be read", library.display()))?;
            self.files.insert(library.display().to_string().trim_start_matches('/').to_owned(), bytes);
        }
        Ok(())
    }

    /// Writes it as an OCI layout in a tar file, under a name such as `local.test/agent:1`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, name: &str, path: &Path) -> Result<()> {
        let layer = self.layer()?;
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "User": self.user, "Env": ["PATH=/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        })
        .to_string()
        .into_bytes();
        let mut listed = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        listed["platform"] = json!({"architecture": architecture, "os": "linux"});
        listed["annotations"] = json!({"io.containerd.image.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [listed]}).to_string().into_bytes();

        let file = fs::File::create(path).with_context(|| format!("{} can't be written", path.display()))?;
        let mut tar = tar::Builder::new(file);
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        append(&mut tar, "index.json", &index, 0o644)?;
        for blob in [&layer, &config, &manifest] {
            append(&mut tar, &format!("blobs/sha256/{}", &digest(blob)["sha256:".len()..]), blob, 0o644)?;
        }
        tar.into_inner()?.flush().context("the image can't be written")
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, mode) in [("tmp/", 0o1777), ("etc/", 0o755)] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(mode);
            header.set_size(0);
            tar.append_data(&mut header, path, std::io::empty())?;
        }
        append(
            &mut tar,
            "etc/passwd",
            b"root:x:0:0::/:/bin/false\nnonroot:x:65532:65532::/:/bin/false\n",
            0o644,
        )?;
        for (path, bytes) in &self.files {
            append(&mut tar, path, bytes, 0o755)?;
        }
        Ok(tar.into_inner()?)
    }
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("{path} can't be packed"))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// The loader and the libraries of a program, as this machine has them; none for one that links nothing.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let Ok(output) = Command::new("ldd").arg(program).output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout);
    let path = |line: &str| {
        let found = line.split_once("=>").map_or(line, |(_, found)| found);
        let path = found.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_stage_says_what_is_in_an_image() {
        let stage = Stage::parse(
            "FROM rust AS build\nCOPY . .\nRUN a && \\\n    b\n\nFROM debian\nCOPY --from=build /x /usr/bin/x\nUSER 7:7\n\
             ENTRYPOINT [\"/usr/bin/x\"]\n",
        )
        .unwrap();
        assert_eq!(stage.programs, BTreeMap::from([("/usr/bin/x".to_owned(), "x".to_owned())]));
        assert_eq!(
            (stage.user.as_str(), stage.entrypoint.as_slice()),
            ("7:7", ["/usr/bin/x".to_owned()].as_slice())
        );
        assert!(Stage::parse("FROM debian\n").is_err());
    }
}
