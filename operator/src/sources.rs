//! Where models may come from, and how they are reached: the same for the operator, which reads headers, and for hosts, which are
//! told in their supply.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use tandem_sources::{Access, Source};

use crate::settings::SourceSettings;

/// Most bytes of authorities that are handed to hosts: a system's whole bundle is a quarter of it.
const MOST_AUTHORITIES: usize = 1 << 20;

/// As [`SourceSettings`], checked.
pub(crate) struct Sources {
    pub(crate) access: Access,
    /// As hosts are told.
    pub(crate) allowed: Vec<String>,
    /// As hosts are told; an S3 store of one's own among them.
    pub(crate) mirrors: Vec<String>,
    /// As hosts are told; empty where nobody has said.
    pub(crate) s3_region: String,
    /// As hosts are told, as PEM.
    pub(crate) extra_ca: Bytes,
}

impl Sources {
    /// Checks settings.
    ///
    /// # Errors
    /// When one of them can't be used; the text says what to write.
    pub(crate) fn new(settings: &SourceSettings) -> Result<Self> {
        let mut access = Access::default();
        let mut extra_ca = Bytes::new();
        if let Some(path) = &settings.extra_ca {
            let named = || format!("the file of --extra-ca, {}", path.display());
            extra_ca = std::fs::read(path).with_context(|| format!("{}, can't be read", named()))?.into();
            ensure!(
                extra_ca.len() <= MOST_AUTHORITIES,
                "{}, has {} bytes, and hosts are handed at most {MOST_AUTHORITIES}: leave out what systems trust anyway",
                named(),
                extra_ca.len()
            );
            access = access.trusting(&extra_ca).with_context(|| format!("{}, can't be used", named()))?;
        }
        for prefix in &settings.allowed {
            access = access.allowing(prefix).context("--allow-source can't be used")?;
        }
        let mut mirrors = settings.mirrors.clone();
        mirrors.extend(settings.s3_endpoint.iter().map(|endpoint| format!("s3://={endpoint}")));
        for mirror in &mirrors {
            access = access.mirrored(mirror).context("--mirror can't be used")?;
        }
        if let Some(region) = &settings.s3_region {
            access = access.s3(None, region).context("--s3-region can't be used")?;
        }
        let s3_region = settings.s3_region.clone().unwrap_or_default();
        Ok(Self { access, allowed: settings.allowed.clone(), mirrors, s3_region, extra_ca })
    }

    /// Parses a source that may be used.
    ///
    /// # Errors
    /// A sentence that says what to change, here or in the operator's own arguments.
    pub(crate) fn parse(&self, source: &str) -> Result<Source, String> {
        let parsed: Source = source.parse().map_err(|error: tandem_sources::BadSource| error.to_string())?;
        self.access.allows(&parsed).map_err(|error| {
            format!("{error}; the operator's argument `--allow-source {}` would allow it", prefix(source))
        })?;
        Ok(parsed)
    }
}

/// What allows a source and its neighbours: the hub's owner, the host, the bucket, the registry; of a folder, itself.
fn prefix(source: &str) -> String {
    match source.split_once("://") {
        Some((kind, rest)) if kind != "file" => {
            format!("{kind}://{}/", rest.split(['/', '@']).next().unwrap_or_default())
        }
        _ => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_says_what_would_allow_it_and_that_does() {
        let settings = |allowed: &[&str]| SourceSettings {
            allowed: allowed.iter().map(|&prefix| prefix.to_owned()).collect(),
            ..SourceSettings::default()
        };
        for source in [
            "hf://unsloth/Kimi-K2.5-GGUF@main",
            "https://models.example.com/kimi/",
            "s3://models/kimi",
            "oci://registry.example.com/acme/kimi:q8",
            "file:///models/kimi",
        ] {
            let sentence = Sources::new(&settings(&["hf://nobody"])).unwrap().parse(source).unwrap_err();
            println!("{sentence}");
            assert!(sentence.contains("hf://nobody") && sentence.contains(source), "{sentence}");
            let (_, advice) = sentence.split_once("--allow-source ").unwrap();
            let advised = advice.split('`').next().unwrap();
            Sources::new(&settings(&["hf://nobody", advised])).unwrap().parse(source).unwrap();
        }
    }

    #[test]
    fn arguments_that_cannot_be_used_are_refused_at_the_start() {
        let large = tempfile::NamedTempFile::new().unwrap();
        large.as_file().set_len(MOST_AUTHORITIES as u64 + 1).unwrap();
        let bad = [
            SourceSettings { allowed: vec!["unsloth".into()], ..SourceSettings::default() },
            SourceSettings { mirrors: vec!["hf://".into()], ..SourceSettings::default() },
            SourceSettings { s3_endpoint: Some("minio".into()), ..SourceSettings::default() },
            SourceSettings { s3_region: Some("a b".into()), ..SourceSettings::default() },
            SourceSettings { extra_ca: Some("/nonexistent".into()), ..SourceSettings::default() },
            SourceSettings { extra_ca: Some(large.path().to_owned()), ..SourceSettings::default() },
        ];
        for settings in bad {
            let Err(error) = Sources::new(&settings) else { panic!("{settings:?} is taken") };
            let text = format!("{error:#}");
            assert!(text.starts_with("--") || text.contains("--extra-ca"), "{text}");
        }
    }
}
