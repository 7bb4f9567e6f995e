//! Small facts about models, devices and speeds that no header says, each with its source: `catalogue/*.yaml`, in the program
//! itself. What is sized from them is called estimated; a header that can be read is always believed instead.

mod shape;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use tandem_crds::DeviceKind;
use tandem_gguf::ShardSet;

/// All of it.
#[derive(Debug)]
pub struct Catalogue {
    shapes: BTreeMap<String, Shape>,
    models: Vec<Model>,
    devices: Vec<Bandwidth>,
    speeds: Speeds,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Models {
    shapes: BTreeMap<String, Shape>,
    models: Vec<Model>,
}

/// Metadata of a model, by GGUF's keys without the architecture's prefix.
#[derive(Debug, Deserialize)]
struct Shape {
    architecture: String,
    source: String,
    #[serde(flatten)]
    keys: BTreeMap<String, u32>,
}

/// A model that is known without its files.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// Its usual name.
    pub name: String,
    shape: String,
    context_tokens: u32,
    /// `owner/repository` of hubs that hold it.
    repositories: Vec<String>,
    /// Where this is known from.
    pub source: String,
    /// Quants whose size is known.
    pub quants: Vec<KnownQuant>,
}

/// A quant that is known without its files.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KnownQuant {
    /// Its name, as files carry it.
    pub quant: String,
    /// Bytes of all files.
    pub bytes: u64,
    /// Whether the bytes are rounded.
    #[serde(default)]
    pub rounded: bool,
    /// Types of its matrices but for f32, the experts' first.
    pub types: Vec<String>,
    /// Bytes of weights that one token of one sequence reads.
    #[serde(default)]
    pub active_bytes: Option<u64>,
    /// Where this is known from.
    pub source: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bandwidth {
    name: String,
    kind: DeviceKind,
    bytes_per_second: u64,
    source: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Speeds {
    share: String,
    share_source: String,
    measured: Vec<Measured>,
}

/// What somebody measured.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Measured {
    /// The model's usual name.
    pub model: String,
    /// Its quant.
    pub quant: String,
    /// A part of the device's name.
    pub device: String,
    /// Its kind.
    pub kind: DeviceKind,
    /// How many took part, where that is known.
    #[serde(default)]
    pub devices: Option<u32>,
    /// What computed.
    pub engine: String,
    /// Tokens a second of one stream.
    pub decode: String,
    /// Prompt tokens a second.
    #[serde(default)]
    pub prefill: Option<String>,
    /// Who says so.
    pub source: String,
}

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    let Models { shapes, models } = embedded(include_str!("../catalogue/models.yaml"));
    let devices = embedded(include_str!("../catalogue/devices.yaml"));
    let speeds = embedded(include_str!("../catalogue/speeds.yaml"));
    Catalogue { shapes, models, devices, speeds }
});

fn embedded<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_yaml::from_str(text).expect("a test reads the catalogue that is built in")
}

impl Catalogue {
    /// The one that is built in.
    #[must_use]
    pub fn built_in() -> &'static Self {
        &CATALOGUE
    }

    /// The model that a source holds: by the `owner/repository` in it, whatever hub or mirror it is on.
    #[must_use]
    pub fn model_of(&self, source: &str) -> Option<&Model> {
        let path = source.split_once("://").map_or(source, |(_, rest)| rest);
        let path = path.split('@').next().unwrap_or(path).trim_end_matches('/').to_ascii_lowercase();
        self.models.iter().find(|model| {
            let held = |repository: &String| {
                let repository = repository.to_ascii_lowercase();
                path == repository || path.ends_with(&format!("/{repository}"))
            };
            model.repositories.iter().any(held)
        })
    }

    /// Headers as the files of this model would have them, all matrices of one type but for those that files keep finer:
    /// good for what does not depend on types, which is all but the weights.
    pub(crate) fn headers(&self, model: &Model, quant: Option<&KnownQuant>) -> Option<ShardSet> {
        shape::headers(self.shapes.get(&model.shape)?, model.context_tokens, quant)
    }

    /// How fast a device of this name reads its memory, and where that is known from.
    #[must_use]
    pub fn bandwidth(&self, kind: DeviceKind, name: &str) -> Option<(u64, &str)> {
        let name = name.to_ascii_lowercase();
        let known =
            |device: &&Bandwidth| device.kind == kind && name.contains(&device.name.to_ascii_lowercase());
        self.devices.iter().find(known).map(|device| (device.bytes_per_second, device.source.as_str()))
    }

    /// Where the shape of a model is known from.
    pub(crate) fn source_of_shape(&self, model: &Model) -> &str {
        self.shapes.get(&model.shape).map_or("", |shape| shape.source.as_str())
    }

    /// The least share of its ceiling that decoding is estimated to reach, and where it is known from.
    #[must_use]
    pub fn share(&self) -> (f64, &str) {
        let share = self.speeds.share.parse().expect("a test reads the catalogue that is built in");
        (share, &self.speeds.share_source)
    }

    /// What was measured of this model and quant on one device of this name.
    #[must_use]
    pub fn measured(&self, model: &str, quant: &str, kind: DeviceKind, device: &str) -> Option<&Measured> {
        let device = device.to_ascii_lowercase();
        self.speeds.measured.iter().find(|measured| {
            measured.model == model
                && measured.quant.eq_ignore_ascii_case(quant)
                && measured.kind == kind
                && measured.devices == Some(1)
                && device.contains(&measured.device.to_ascii_lowercase())
        })
    }
}

impl Model {
    /// What is known of a quant.
    #[must_use]
    pub fn quant(&self, name: &str) -> Option<&KnownQuant> {
        self.quants.iter().find(|quant| quant.quant.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests;
